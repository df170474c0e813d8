"""Classifiers in folders: save an adapter, load it or a plain model, predict."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.checkpoints import has_words, loaded_revision, model_folder
from helpers.data import clean, encode
from helpers.evaluation import predict_logits
from helpers.files import new_folder, write_json
from helpers.models import load_classifier, load_tokenizer, only_known_types, store_frozen, trained_whole
from helpers.own_data import token_limit
from helpers.profiles import DTYPES, current_precision
from helpers.recipes import Recipe
from helpers.tasks import TASKS

INFERENCE_FILE, ADAPTER_CONFIG, WEIGHTS = "inference.json", "adapter_config.json", "adapter_model.safetensors"
TRAINING_TEXTS = "training_texts.npy"  # their hashes, for helpers.evaluate
MERGED_SETTINGS = ("truncation", "threshold", "pairs")  # of inference.json, in a merged model's config.json
REPORT, MERGED, ONNX = "report", "merged", "onnx"  # folders in an adapter's


class Prediction(NamedTuple):
    """The most probable label and its probability."""

    label: str
    score: float


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    recipe: Recipe,
    base_model: str,
    max_length: int,
    **more,
) -> Path:
    """Writes adapter, head and tokenizer to `folder`, replacing what was there only when all is written.

    `inference.json` beside them holds what prediction needs and peft does not save, such as how texts were cut;
    `more` are `threshold` and `pairs` of `SentimentClassifier`.
    """
    lora = model.active_peft_config
    if isinstance(lora.target_modules, set):  # in another order in every process
        lora.target_modules = sorted(lora.target_modules)
    settings = {
        "base_model": base_model,
        "quantization": recipe.quantization,
        "max_length": max_length,
        "truncation": recipe.truncation,
        "task": recipe.task,
        "labels": list(model.config.id2label.values()),
        # The commit that was loaded: older than the newest one where an earlier adapter's training went on.
        "base_revision": getattr(model.config, "_commit_hash", None) or loaded_revision(base_model).get(base_model),
        **more,
    }
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink()  # peft's, which names a folder of this machine
        tokenizer.save_pretrained(temporary)
        write_json(temporary / INFERENCE_FILE, settings)
    return folder


def load_adapter(
    folder: str | Path, precision: str, dequantize: bool = False, train: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase, dict]:
    """(model, tokenizer, settings of inference.json and `source`) of the adapter in `folder`, not merged into its base.

    `folder` may be a hub name (see `model_folder`). `dequantize` unpacks a 4-bit base first; `train` makes it ready to
    go on training, without the encoder's dropout. Raises ValueError, in one line, where the folder is no adapter, is
    damaged or does not fit its base, and ConnectionError as `load_classifier` and `model_folder` do.
    """
    folder = model_folder(folder)
    for name in (INFERENCE_FILE, ADAPTER_CONFIG, WEIGHTS, "tokenizer_config.json"):
        if not (folder / name).is_file():  # without safetensors, peft would look for a pickle
            raise ValueError(f"{folder} is no saved adapter: it has no {name}.")
    try:
        settings = json.loads((folder / INFERENCE_FILE).read_text(encoding="utf-8"))
        settings["source"] = f"adapter {sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:8]}"
        base_model, revision = settings["base_model"], settings.get("base_revision")
        if revision and revision.startswith("sha256:"):  # of weights that are here, not a commit of the hub
            found = loaded_revision(base_model).get(base_model, revision)
            if found != revision:
                raise ValueError(f"it was trained on {base_model} in version {revision}, and here that is {found}")
            revision = None
        how = {"quantization": settings["quantization"], "labels": tuple(settings["labels"]), "revision": revision}
        how["task"] = settings.setdefault("task", "single")
        base = load_classifier(base_model, precision=precision, model_dropout=0.0 if train else None, **how)
        base = base.dequantize() if dequantize and settings["quantization"] else base
        base = prepare_model_for_kbit_training(base, False) if train and settings["quantization"] else base
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(base, str(folder), is_trainable=train)
        if train or (settings["quantization"] and not dequantize):  # others are merged
            model = store_frozen(model, "fp32" if settings["task"] == "regression" else precision)
        if lost := set(base.new_parts) - set(trained_whole(model)):
            raise ValueError(f"{', '.join(sorted(lost))} of its model is neither here nor in its base")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not has_words(tokenizer):
            raise ValueError("its tokenizer has no vocabulary")
    except ConnectionError:
        raise
    except Exception as error:  # json, safetensors, peft, tokenizers and transformers each have their own
        why = " ".join(str(error).split())[:500]
        raise ValueError(f"{folder} does not load: {why}. If it is damaged, copy it anew, or train again.") from error
    return model, tokenizer, settings


def load_plain(folder: Path, precision: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """As `load_adapter`, of a plain model in `folder`. In a merged one's config stands what inference.json has."""
    model = load_classifier(str(folder), precision=precision, labels=None, task=None)
    tokenizer, config = load_tokenizer(str(folder)), model.config
    only_known_types(model, tokenizer)
    settings = {
        "quantization": None,
        "task": next((task for task in TASKS if TASKS[task].problem_type == config.problem_type), "single"),
        "pairs": None,  # no config says it
        "max_length": token_limit(str(folder)),
        "truncation": "tail" if tokenizer.truncation_side == "left" else "head",
    }
    stored = {name: getattr(config, name) for name in MERGED_SETTINGS if hasattr(config, name)}
    return model, tokenizer, settings | stored


@dataclass
class SentimentClassifier:
    """A fine-tuned classifier, of any labels: `SentimentClassifier.from_pretrained(folder).predict(texts)`.

    `task` is "single" (one label a text), "multi" (all labels of at least `threshold`) or "regression" (a number); with
    `pairs` it reads two texts each, with None one or two.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    max_length: int
    truncation: str
    task: str = "single"
    threshold: float = 0.5
    pairs: bool | None = False

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, precision: str | None = None, dequantize: bool = False
    ) -> "SentimentClassifier":
        """The classifier in `folder`, an adapter's or a plain model's, or of that name on the hub (`NAME@REVISION`), in
        `precision` (None: this machine's fastest; numbers are always predicted in fp32).

        An adapter is merged into its base, into one in 4 bits only with `dequantize`, which unpacks it. Raises as
        `load_adapter` does, and ValueError for a plain model without a trained head.
        """
        folder, precision = model_folder(folder), precision or current_precision()
        plain = (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file()
        loaded = load_plain(folder, precision) if plain else load_adapter(folder, precision, dequantize)
        model, tokenizer, settings = loaded
        precision = "fp32" if settings["task"] == "regression" else precision  # see `training.fine_tune`
        if dequantize or settings["quantization"] is None:  # merging into 4 bits would round them anew
            model = model.merge_and_unload() if isinstance(model, PeftModel) else model
            model = model.to(DTYPES[precision])
            try:
                predict_logits(model, tokenizer, tokenizer(["a short text"])["input_ids"], precision)
            except RuntimeError:  # FNet's transform is not there in bf16: autocast leaves it out
                model.float()
        known = ("max_length", "truncation", "task", "threshold", "pairs")
        return cls(model, tokenizer, precision, **{name: settings[name] for name in known if name in settings})

    @property
    def labels(self) -> list[str]:
        """The model's labels, in the order of its logits."""
        return [str(label) for _, label in sorted(self.model.config.id2label.items())]

    def predict(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None) -> list:
        """A Prediction for each text, in order; a list of them, those over the threshold, where texts have several
        labels; or a number. One string is a list of one; `pairs` are the second texts of a model that reads two."""
        probabilities = self.probabilities(texts, pairs).tolist()
        if self.task == "regression":
            return [number for (number,) in probabilities]
        every = [list(map(Prediction, self.labels, row)) for row in probabilities]
        if self.task == "single":
            return [max(row, key=lambda one: one.score) for row in every]
        return [[one for one in row if one.score >= self.threshold] for row in every]

    def probabilities(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None) -> np.ndarray:
        """Probabilities of shape (len(texts), n_labels), in order; for regression the numbers, (len(texts), 1)."""
        return TASKS[self.task].probabilities(self.logits(texts, pairs))

    def logits(self, texts: str | Sequence[str], pairs: str | Sequence[str] | None = None) -> np.ndarray:
        """Logits of shape (len(texts), n_labels), in order. Raises TypeError for anything but strings, and ValueError
        for pairs where the model reads single texts, or the other way round."""
        if self.pairs not in (None, pairs is not None):
            raise ValueError(f"This model reads {'pairs of' if self.pairs else 'single'} texts.")
        texts, pairs = _strings(texts), pairs if pairs is None else _strings(pairs)
        if pairs is not None and len(pairs) != len(texts):
            raise TypeError(f"There are {len(texts):,} texts, and {len(pairs):,} second texts.")
        columns = encode(self.tokenizer, texts, pairs, self.max_length, self.truncation)
        if not np.isfinite(found := predict_logits(self.model, self.tokenizer, columns, self.precision)).all():
            raise ValueError(f"The model's answers are no numbers in {self.precision}: set PRECISION=fp32.")
        return found


def _strings(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # its keys would be taken, the columns' names
        raise TypeError(f"texts must be a string or a list of strings, not {type(texts).__name__}.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if wrong := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
        raise TypeError(f"texts must be strings, and text {wrong[0]} is a {type(texts[wrong[0]]).__name__}.")
    return [clean(text) for text in texts]
