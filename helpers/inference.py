"""Load a saved adapter and predict."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peft import PeftModel
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.adapters import load_adapter
from helpers.base.texts import clean, text_problem
from helpers.data import truncate
from helpers.evaluation import predict_logits
from helpers.profiles import Execution, fastest_execution


class Prediction(NamedTuple):
    """The most probable label and its probability."""

    label: str
    score: float


class SentimentClassifier:
    """A fine-tuned classifier that answers for text: `SentimentClassifier.from_pretrained(folder).predict(texts)`."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        execution: Execution,
        *,
        max_length: int,
        truncation: str = "head",
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.execution = execution
        self.max_length = max_length
        self.truncation = truncation

    @classmethod
    def from_pretrained(cls, folder: str | Path, execution: Execution | None = None) -> "SentimentClassifier":
        """The classifier in `folder`, as `adapters.save_adapter` wrote it, on this machine's fastest execution.

        A full-precision adapter is merged into the weights, which are then stored in the execution's compute dtype; a
        4-bit base keeps it beside them, since merging would round the weights anew. Raises FileNotFoundError where
        `folder` lacks a file and adapters.AdapterError, a ValueError that names file and cause, where one is damaged,
        altered, or does not fit the others.
        """
        execution = execution or fastest_execution()
        model, tokenizer, settings = load_adapter(Path(folder), execution)
        if settings["quantization"] is None:
            model = model.merge_and_unload().to(execution.compute_dtype)
        return cls(model, tokenizer, execution, max_length=settings["max_length"], truncation=settings["truncation"])

    def predict(self, texts: str | Sequence[str]) -> list[Prediction]:
        """A label and its probability for each text, in order; one string is a list of one, no texts an empty list."""
        logits = self.logits(texts)
        if not len(logits):
            return []
        labels = self.model.config.id2label
        return [Prediction(labels[int(row.argmax())], float(row.max())) for row in softmax(logits, axis=1)]

    def logits(self, texts: str | Sequence[str]) -> np.ndarray:
        """Logits of shape (len(texts), n_labels), in order. Batches are made of texts of similar length.

        An empty text is answered, too: by what the model makes of no words. Raises TypeError for anything but strings,
        ValueError for a text with half a character; its index is named.
        """
        texts = _list_of(texts)
        for index, text in enumerate(texts):
            if problem := text_problem(text):
                error = ValueError if isinstance(text, str) else TypeError
                raise error(f"texts must be strings, and text {index} {problem}")
        encoded = self.tokenizer([clean(text) for text in texts], verbose=False)["input_ids"] if texts else []
        ids = [truncate(row, self.max_length, self.truncation) for row in encoded]
        return predict_logits(self.model, self.tokenizer, ids, self.execution)


def _list_of(texts: object) -> list:
    """`texts` as a list, one string as a list of one."""
    if isinstance(texts, str):
        return [texts]
    # Of a dict the keys would be taken, of a table the names of its columns, of bytes numbers.
    if isinstance(texts, (Mapping, bytes, bytearray)) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a string or a list of strings, not {type(texts).__name__}.")
    return list(texts)
