"""What an exported model answers, with onnxruntime and tokenizers alone: `python predict.py "a text" ...`.

helpers.export puts this file beside the model as predict.py; from there it needs nothing else of this package.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class OnnxClassifier:
    """The model `file` in `folder`: `OnnxClassifier().predict(texts)`."""

    def __init__(self, folder: Path = Path(__file__).parent, file: str = "model_int8.onnx"):
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.labels, self.max_length, self.head = settings["labels"], settings["max_length"], settings["head"]
        self.task = settings["task"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Each label's probability, shape (len(texts), n_labels), in order; of a regression the number."""
        logits = np.array([self._logits(text) for text in texts]).reshape(len(texts), -1)
        if self.task == "regression":
            return logits
        if self.task == "multi":
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def _logits(self, text: str) -> np.ndarray:
        """Of one text alone: in a batch, INT8 rounds it by what the others are."""
        text = " ".join(re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE).split())
        ids = self.tokenizer.encode(text).ids
        if len(ids) > self.max_length:
            ids = ids[: self.head] + ids[len(ids) - (self.max_length - self.head) :]
        row = np.array([ids])
        return self.session.run(None, {"input_ids": row, "attention_mask": np.ones_like(row)})[0][0]


if __name__ == "__main__":
    classifier = OnnxClassifier()
    for asked, row in zip(sys.argv[1:], classifier.probabilities(sys.argv[1:]), strict=True):
        shown = dict(zip(classifier.labels, row.astype(float).round(4).tolist(), strict=True))
        print(json.dumps({"text": asked, **shown}, ensure_ascii=False))
