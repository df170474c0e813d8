"""Classifiers in folders: save an adapter, load it or a plain model, predict."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peft import PeftModel
from scipy.special import softmax
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.checkpoints import loaded_revision
from helpers.data import clean, truncate
from helpers.evaluation import predict_logits
from helpers.files import new_folder, write_json
from helpers.models import load_classifier
from helpers.profiles import DTYPES, current_precision
from helpers.recipes import Recipe
from helpers.start import hide_torchao

INFERENCE_FILE, ADAPTER_CONFIG, WEIGHTS = "inference.json", "adapter_config.json", "adapter_model.safetensors"
TRAINING_TEXTS = "training_texts.npy"  # their hashes, for helpers.evaluate
REPORT, MERGED, ONNX = "report", "merged", "onnx"  # folders in an adapter's


class AdapterError(ValueError):
    """A saved adapter that does not load."""


class Prediction(NamedTuple):
    """The most probable label and its probability."""

    label: str
    score: float


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, recipe: Recipe, base_model: str, max_length: int
) -> Path:
    """Writes adapter, head and tokenizer to `folder`, replacing what was there only when all is written.

    `inference.json` beside them holds what prediction needs and peft does not save, such as how texts were cut.
    """
    lora = model.active_peft_config
    lora.target_modules = sorted(lora.target_modules)  # peft has a set, in another order in every process
    settings = {
        "base_model": base_model,
        "quantization": recipe.quantization,
        "max_length": max_length,
        "truncation": recipe.truncation,
        "labels": list(model.config.id2label.values()),
        "base_revision": loaded_revision(base_model).get(base_model),
    }
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink()  # peft's, which names a folder of this machine
        tokenizer.save_pretrained(temporary)
        write_json(temporary / INFERENCE_FILE, settings)
    return folder


def load_adapter(
    folder: Path, precision: str, dequantize: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase, dict]:
    """(model, tokenizer, settings of inference.json) of the adapter in `folder`, not merged into its base.

    `dequantize` unpacks a 4-bit base first. Raises AdapterError, in one line, where the folder is no adapter, is
    damaged or does not fit its base, and ConnectionError as `load_classifier` does.
    """
    hide_torchao()
    for name in (INFERENCE_FILE, ADAPTER_CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():  # without safetensors, peft would look for a pickle
            raise AdapterError(f"{folder} is no saved adapter: it has no {name}.")
    try:
        settings = json.loads((folder / INFERENCE_FILE).read_text(encoding="utf-8"))
        base_model, revision = settings["base_model"], settings.get("base_revision")
        if revision and revision.startswith("sha256:"):  # of weights that are here, not a commit of the hub
            found = loaded_revision(base_model).get(base_model, revision)
            if found != revision:
                raise ValueError(f"it was trained on {base_model} in version {revision}, and here that is {found}")
            revision = None
        how = {"quantization": settings["quantization"], "labels": tuple(settings["labels"]), "revision": revision}
        base = load_classifier(base_model, precision=precision, **how)
        base = base.dequantize() if dequantize and settings["quantization"] else base
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(base, str(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except ConnectionError:
        raise
    except Exception as error:  # json, safetensors, peft, tokenizers and transformers each have their own
        why = " ".join(str(error).split())[:500]
        raise AdapterError(f"{folder} does not load: {why}. Copy the folder anew, or train again.") from error
    return model, tokenizer, settings


def load_plain(
    folder: Path, precision: str, dequantize: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """As `load_adapter`, of a plain model in `folder`. In a merged one's config stands how texts are cut."""
    hide_torchao()
    model = load_classifier(str(folder), precision=precision, labels=None)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    cut = getattr(model.config, "truncation", "tail" if tokenizer.truncation_side == "left" else "head")
    return model, tokenizer, {"max_length": limit, "truncation": cut, "quantization": None}


@dataclass
class SentimentClassifier:
    """A fine-tuned classifier, of any labels: `SentimentClassifier.from_pretrained(folder).predict(texts)`.

    `task` is "single" (one label a text), "multi" (all labels of at least `threshold`) or "regression" (a number).
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    max_length: int
    truncation: str
    task: str = "single"
    threshold: float = 0.5

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, precision: str | None = None, dequantize: bool = False
    ) -> "SentimentClassifier":
        """The classifier in `folder`, an adapter's or a plain model's, in `precision` (None: this machine's fastest).

        An adapter is merged into its base, into one in 4 bits only with `dequantize`, which unpacks it. Raises as
        `load_adapter` does, and ValueError for a plain model without a trained head.
        """
        precision, plain = precision or current_precision(), Path(folder, "config.json").is_file()
        load = load_plain if plain and not Path(folder, ADAPTER_CONFIG).is_file() else load_adapter
        model, tokenizer, settings = load(Path(folder), precision, dequantize)
        if isinstance(model, PeftModel) and (dequantize or settings["quantization"] is None):
            model = model.merge_and_unload()  # into 4 bits it would round them anew
        if not settings["quantization"] or dequantize:
            model = model.to(DTYPES[precision])
        return cls(model, tokenizer, precision, settings["max_length"], settings["truncation"])

    @property
    def labels(self) -> list[str]:
        """The model's labels, in the order of its logits."""
        return list(self.model.config.id2label.values())

    def predict(self, texts: str | Sequence[str]) -> list[Prediction]:
        """A label and its probability for each text, in order; one string is a list of one."""
        labels = self.labels
        return [Prediction(labels[int(row.argmax())], float(row.max())) for row in self.probabilities(texts)]

    def probabilities(self, texts: str | Sequence[str]) -> np.ndarray:
        """Each label's probability, shape (len(texts), n_labels), in order."""
        return softmax(self.logits(texts), axis=1)

    def logits(self, texts: str | Sequence[str]) -> np.ndarray:
        """Logits of shape (len(texts), n_labels), in order. Raises TypeError for anything but strings."""
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # its keys would be taken, the columns' names
            raise TypeError(f"texts must be a string or a list of strings, not {type(texts).__name__}.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if wrong := [index for index, text in enumerate(texts) if not isinstance(text, str)]:
            raise TypeError(f"texts must be strings, and text {wrong[0]} is a {type(texts[wrong[0]]).__name__}.")
        encoded = self.tokenizer([clean(text) for text in texts], verbose=False)["input_ids"] if texts else []
        ids = [truncate(row, self.max_length, self.truncation) for row in encoded]
        return predict_logits(self.model, self.tokenizer, ids, self.precision)
