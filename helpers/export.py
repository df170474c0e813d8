"""A classifier for elsewhere: merged into a plain model, uploaded, as ONNX."""

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, HfApi, get_token

from helpers.data import head_tokens, load_reviews
from helpers.files import new_folder, write_json
from helpers.inference import ADAPTER_CONFIG, INFERENCE_FILE, MERGED_SETTINGS, TRAINING_TEXTS, SentimentClassifier
from helpers.profiles import PROFILES, ROOT
from helpers.start import command, installed_versions, unmet
from helpers.tables import read_rows
from helpers.tasks import decide, read_labels

FP32, INT8 = "model.onnx", "model_int8.onnx"
CHECKED, TOLERANCE = 500, 1e-3
REQUIREMENTS = ROOT / "requirements-export.txt"


def merge_adapter(adapter: str | Path, folder: str | Path) -> Path:
    """Merges a saved adapter into its base: a plain model folder that transformers loads alone, without this package.

    The weights are fp32, those of a 4-bit base unpacked, since the adapter was trained on top of them. Raises
    FileExistsError when `folder` holds something, and as `load_adapter` does.
    """
    folder = check_empty(folder)
    classifier = SentimentClassifier.from_pretrained(adapter, "fp32", dequantize=True)
    model, tokenizer = classifier.model.cpu(), classifier.tokenizer
    for name in MERGED_SETTINGS:  # which transformers does not read, and this package does
        setattr(model.config, name, getattr(classifier, name))
    tokenizer.model_max_length = classifier.max_length
    tokenizer.truncation_side = "left" if classifier.truncation == "tail" else "right"
    tokenizer.init_kwargs["truncation_side"] = tokenizer.truncation_side  # or it would not be saved
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def check_empty(folder: str | Path) -> Path:
    """`folder` as a path. Raises FileExistsError when it holds something, or is a file."""
    folder = Path(folder)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose a new folder.")
    return folder


def push_to_hub(folder: str | Path, repo_id: str | None = None) -> str:
    """Uploads the files in `folder` to the private repository `repo_id`; returns one line that says where, or how to do
    it where there is no `repo_id`, no token (`HF_TOKEN`, or `hf auth login`) or no success.

    What lies in folders below it stays here (the report quotes rows), and so do the hashes of the training texts.
    """
    kept = f"--exclude '*/*' --exclude {TRAINING_TEXTS}"
    command = f"hf upload {repo_id or 'USER/NAME'} {quote(str(folder))} . --private {kept}"
    if repo_id is None or get_token() is None:
        return f"To upload: HF_TOKEN=... {command}"
    paths = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and path.name != TRAINING_TEXTS]
    try:
        HfApi().create_repo(repo_id, private=True, exist_ok=True)
        files = [CommitOperationAdd(path.name, _as_uploaded(path)) for path in paths]
        return f"Uploaded: {HfApi().create_commit(repo_id, files, commit_message='Upload model')}"
    except Exception as error:  # the model is safe on disk, whatever the network or the hub says
        return f"Not uploaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}). To upload: {command}"


def _as_uploaded(path: Path) -> Path | bytes:
    """What goes up in the place of a file: of a base that is a folder of this machine the name alone."""
    key = {ADAPTER_CONFIG: "base_model_name_or_path", INFERENCE_FILE: "base_model"}.get(path.name)
    settings = json.loads(path.read_text(encoding="utf-8")) if key else {}
    if key not in settings or not Path(settings[key]).is_absolute():
        return path
    return json.dumps(settings | {key: Path(settings[key]).name}, indent=1).encode()


def check_exportable(pairs: bool = False) -> None:
    """Raises ImportError, in one line, where a package that ONNX needs is missing, and ValueError for pairs."""
    if pairs:
        raise ValueError("A model that reads pairs cannot be exported; its merged folder loads in transformers.")
    if missing := [quote(str(one)) for one in unmet(REQUIREMENTS, installed_versions())]:
        raise ImportError(f"To export to ONNX something is missing: pip install {' '.join(missing)}")


def export(
    model: str, folder: Path, data: Path | None = None, text_column: str | None = None, label_column: str | None = None
) -> None:
    """Writes MODEL to FOLDER as ONNX: fp32, INT8, and predict.py, which needs onnxruntime and tokenizers alone.

    Both are compared with MODEL on the labelled rows of --data, or on reviews that pip installs. FOLDER must be empty.
    """
    if data:
        rows, task, _ = read_labels(read_rows(data, text_column, label_column))
        rows = rows.dropna().sample(frac=1, random_state=0).to_dict("list")
        rows = rows if task == "single" else rows | {"label": []}
    else:
        rows = load_reviews("rotten_tomatoes", PROFILES["quick"])["train"].shuffle(seed=0)[:CHECKED] | {"label": []}
    print(export_onnx(model, folder, rows["text"], rows["label"]))
    print(f"Without torch: python {folder / 'predict.py'} 'a text'")


def export_onnx(model: str | Path, folder: str | Path, texts: Sequence[str], labels: Sequence[str] = ()) -> str:
    """Writes a classifier as ONNX (see `export`); returns how its answers to (the first 500) `texts` compare with it.

    INT8 is dynamic: weights are stored in 8 bits, a layer's inputs rounded as they come. Raises ImportError as
    `check_exportable` does, FileExistsError, and ValueError for a model that torch cannot export or that then differs.
    """
    check_exportable()
    from helpers.onnx_predict import OnnxClassifier

    texts, labels, said = texts[:CHECKED], labels[:CHECKED], []
    classifier = SentimentClassifier.from_pretrained(model, "fp32", dequantize=True)
    check_exportable(classifier.pairs)
    ours = classifier.probabilities(texts)
    with new_folder(check_empty(folder)) as temporary:
        _write_onnx(classifier, temporary)
        for file in (FP32, INT8):
            found = OnnxClassifier(temporary, file).probabilities(texts)
            off, size = np.abs(found - ours).max(), (temporary / file).stat().st_size / 1e6
            if file == FP32 and not off < TOLERANCE * max(1, np.abs(ours).max()):  # numbers may be large
                raise ValueError(f"As ONNX this model answers otherwise: a probability is off by {off:.2g}.")
            answers = (decide(classifier.task, one, classifier.threshold) for one in (found, ours))
            same = np.isclose(*answers, atol=TOLERANCE).reshape(len(texts), -1).all(axis=1).sum()
            line = f"{file}, {size:.1f} MB: {same:,} of {len(texts):,} answers are the model's"
            line += f", off by {off:.4f} at most"
            if labels and classifier.task == "single":
                scores = [np.mean(np.array(classifier.labels)[one.argmax(axis=1)] == labels) for one in (found, ours)]
                line += "; accuracy {:.1%}, the model's {:.1%}".format(*scores)
            said.append(line)
    return "\n".join(said)


class _Probabilities(torch.nn.Module):
    def __init__(self, classifier: SentimentClassifier):
        super().__init__()
        self.model, self.task = classifier.model.cpu().eval(), classifier.task

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"single": logits.softmax(-1), "multi": logits.sigmoid(), "regression": logits}[self.task]


def _write_onnx(classifier: SentimentClassifier, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    tokenizer, sizes = classifier.tokenizer, {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    encoded = tokenizer(["a", "a a a"], padding=True, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    options = {"input_names": list(inputs), "output_names": ["probabilities"], "dynamo": True, "verbose": False}
    options["dynamic_shapes"] = dict.fromkeys(inputs, sizes)
    logging.disable(logging.WARNING)  # of torchvision's operators, and of a step before rounding that changes nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(_Probabilities(classifier), kwargs=inputs, **options).save(folder / FP32)
            quantize_dynamic(folder / FP32, folder / INT8, weight_type=QuantType.QInt8, per_channel=True)
        tokenizer.backend_tokenizer.no_truncation()  # what it was last used with is saved, too
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    except (RuntimeError, AttributeError) as error:  # torch's; and a tokenizer in Python alone has no backend
        kind = classifier.model.config.model_type
        raise ValueError(f"A {kind!r} model cannot be exported to ONNX: {error!s:.300}") from error
    finally:
        logging.disable(logging.NOTSET)
    length, head = classifier.max_length, head_tokens(classifier.max_length, classifier.truncation)
    write_json(folder / "settings.json", {"labels": classifier.labels, "max_length": length, "head": head})
    shutil.copyfile(Path(__file__).with_name("onnx_predict.py"), folder / "predict.py")


main = command(export)
