"""Beside an exported model, as predict.py: its answers with onnxruntime and tokenizers alone, no torch, no helpers.

`python predict.py "a text" ...`, or in Python `OnnxClassifier().probabilities(texts)`.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer


class OnnxClassifier:
    """The model `file` in `folder`; `labels` are its labels."""

    def __init__(self, folder: Path = Path(__file__).parent, file: str = "model_int8.onnx"):
        vars(self).update(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.session = InferenceSession(folder / file, providers=["CPUExecutionProvider"])

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Each label's probability, shape (len(texts), n_labels), one text at a time: INT8 rounds a batch together."""
        rows = []
        for text in texts:
            text = " ".join(re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE).split())
            ids = self.tokenizer.encode(text).ids
            if len(ids) > self.max_length:
                ids = ids[: self.head] + ids[len(ids) - (self.max_length - self.head) :]
            inputs = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
            rows.append(self.session.run(None, inputs)[0][0])
        return np.array(rows, dtype=float)


if __name__ == "__main__":
    classifier = OnnxClassifier()
    for row in classifier.probabilities(sys.argv[1:]):
        print(json.dumps(dict(zip(classifier.labels, row.round(4), strict=True)), ensure_ascii=False))
