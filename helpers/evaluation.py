"""Scores: one metric that needs no hub, bootstrap intervals, and paired tests."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import evaluate
import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset, Features, Value
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from transformers import BatchEncoding, PreTrainedTokenizerBase

from helpers.profiles import Execution

# Larger batches of long texts fall out of a CPU's caches and are slower; a GPU wants them full.
TOKENS_PER_BATCH = {"cpu": 768, "cuda": 32_768}
Key = TypeVar("Key", bound=Hashable)


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, precision, recall, F1, weighted F1 and MCC of integer predictions, without the hub.

    Precision, recall and F1 are those of class 1 for two classes, and macro averages for more. A class that is never
    predicted has precision 0.
    """

    def __init__(self, **options):
        super().__init__(keep_in_memory=True, **options)

    def _info(self):
        return evaluate.MetricInfo(
            description="Scores of a classifier's integer predictions.",
            citation="",
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )

    def _compute(self, predictions, references):
        average = "binary" if max(*predictions, *references) <= 1 else "macro"
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average=average, zero_division=0
        )
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", zero_division=0)),
            "mcc": float(matthews_corrcoef(references, predictions)),
        }


def classification_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """`ClassificationMetrics` of two integer arrays of shape (n,)."""
    return ClassificationMetrics().compute(predictions=predictions, references=references)


def predict_logits(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    execution: Execution,
) -> np.ndarray:
    """Logits of tokenized texts, shape (len(ids), n_labels), in their order (see `predict_in_batches`)."""
    labels = model.config.num_labels
    return predict_in_batches(model, lambda batch: model(**batch).logits, labels, tokenizer, ids, execution)


@torch.inference_mode()
def predict_in_batches(
    model: torch.nn.Module,
    forward: Callable[[BatchEncoding], torch.Tensor],
    width: int,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    execution: Execution,
) -> np.ndarray:
    """What `forward` makes of batches of tokenized texts, shape (len(ids), width), in their order.

    Batches hold texts of similar length. One is filled up to the device's `TOKENS_PER_BATCH`, padding included, and
    holds one text at least; where memory runs out, half as many from there on.
    A model stored in the execution's compute dtype runs without autocast and its casts. Trainer.predict is no
    substitute: with `group_by_length` it shuffles the rows it evaluates too.
    """
    limit = TOKENS_PER_BATCH[execution.device]
    model.eval()
    outputs = np.empty((len(ids), width), dtype=np.float32)
    order = np.argsort([len(row) for row in ids], kind="stable")
    mixed = model.dtype != execution.compute_dtype
    start = 0
    while start < len(ids):
        end = start + 1
        while end < len(ids) and (end + 1 - start) * len(ids[order[end]]) <= limit:
            end += 1
        rows = order[start:end]
        try:
            with torch.autocast(execution.device, execution.compute_dtype, enabled=mixed):
                batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
                outputs[rows] = forward(batch.to(execution.device)).float().cpu().numpy()
            start = end
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or len(rows) == 1:
                raise
            limit = len(rows) * len(ids[rows[-1]]) // 2
        if start < end:  # out here the exception is gone, and with it the frames that held what did not fit
            clear_device_cache(garbage_collection=True)
    return outputs


def correct_rows(predictions: np.ndarray, references: np.ndarray) -> str:
    """One character a row: "1" where prediction and reference agree, else "0"; both have shape (n,)."""
    return "".join("1" if right else "0" for right in np.asarray(predictions) == np.asarray(references))


def accuracy_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy (Efron 1979), from 5,000 resamples of the rows.

    Both arrays have shape (n,). Raises ValueError when they differ in length or n is 0.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape or not len(predictions):
        raise ValueError(f"Need equally many predictions and references, not {predictions.shape}, {references.shape}.")
    return mean_interval((predictions == references).astype(float))


def balanced_accuracy(matrix: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """The mean of the classes' recall (scikit-learn's) and its 95 % percentile bootstrap interval, from 5,000 resamples
    within each class. `matrix` is a confusion matrix, shape (n_labels, n_labels), with true classes as rows.
    """
    counts = np.asarray(matrix)
    true, predicted = np.indices(counts.shape).reshape(2, -1)
    value = balanced_accuracy_score(true, predicted, sample_weight=counts.ravel())
    rows = counts.sum(axis=1)
    found = counts.diagonal()[rows > 0] / rows[rows > 0]
    recalls = np.random.default_rng(0).binomial(rows[rows > 0], found, size=(5_000, len(found))) / rows[rows > 0]
    low, high = np.percentile(recalls.mean(axis=1), (2.5, 97.5))
    return float(value), float(low), float(high)


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`, shape (n,), from 5,000 resamples."""
    if values.min() == values.max():  # nothing to resample
        return float(values[0]), float(values[0])
    result = bootstrap((values,), np.mean, n_resamples=5_000, batch=500, method="percentile", rng=seed)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


@lru_cache(maxsize=4)
def _resamples(runs: int, rows: int, chunks: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How often each run and each row is drawn, in `chunks` of 500 resamples: drawing takes longer than their use."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(chunks):
        drawn = (rng.multinomial(count, np.full(count, 1 / count), size=500) for count in (runs, rows))
        found.append(tuple(counts.astype(np.uint8 if counts.max() < 256 else int) for counts in drawn))
    return found


def crossed_interval(values: np.ndarray, draws: int = 5_000, seed: int = 0) -> tuple[float, float, float]:
    """95 % bootstrap interval of the mean of `values`, (seeds, rows), over both, and the p-value of a mean of zero.

    Seeds and rows are resampled independently, as both are drawn from many (Owen 2007, arXiv 0712.1111). A few seeds,
    resampled, scatter too little by (seeds - 1) / seeds, so their means are drawn apart by the root of its inverse
    first. One seed: over the rows alone. The p-value is two-sided, 2 / (draws + 1) at least.
    """
    runs, rows = values.shape
    means = values.mean(axis=1, keepdims=True)
    if runs > 1:
        values = values + (means - means.mean()) * (np.sqrt(runs / (runs - 1)) - 1)
    drawn = np.concatenate(
        [
            ((of_runs / runs @ values) * (of_rows / rows)).sum(axis=1)
            for of_runs, of_rows in _resamples(runs, rows, -(-draws // 500), seed)
        ]
    )
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high), min(1.0, 2 * float(beyond + 1) / (len(drawn) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order."""
    order = np.argsort(p_values)
    scaled = [min(1.0, (len(p_values) - place) * p_values[index]) for place, index in enumerate(order)]
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(scaled) if scaled else []
    return corrected.tolist()


class PairedComparison(NamedTuple):
    """How much more often A is right than B on the same rows: a difference of accuracies, its 95 % interval, and p."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def points(self) -> str:
        """The difference with its interval, such as `+1.4 points [+0.2, +2.6]`."""
        return f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    @property
    def seen(self) -> bool:
        """Whether the rows show a difference at all, at the 5 % level."""
        return self.p_value < 0.05

    @property
    def verdict(self) -> str:
        """A against B in words: "better" or "worse" where a difference is seen, else "no difference seen".

        "not settled" where interval and p-value disagree, as they do where p is corrected for many comparisons.
        """
        if self.seen:
            return "better" if self.difference > 0 else "worse"
        return "no difference seen" if self.low <= 0 <= self.high else "not settled"


def paired_comparison(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> PairedComparison:
    """Compares two classifiers on the same rows: exact McNemar test (1947) and paired bootstrap interval of A - B.

    Both have shape (n,), true where the prediction is right; `RunRecord.correct` is accepted as it is. Raises
    ValueError when they differ in length or n is 0.
    """
    a, b = (np.array([str(int(value)) == "1" for value in correct]) for correct in (correct_a, correct_b))
    if a.shape != b.shape or not len(a):
        raise ValueError(f"Need the same rows for both, not {len(a)} and {len(b)}.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return PairedComparison(0.0, 0.0, 0.0, 1.0)
    gain = a.astype(float) - b.astype(float)
    p_value = float(binomtest(only_a, only_a + only_b).pvalue)
    return PairedComparison(float(gain.mean()), *mean_interval(gain), p_value)


def corrected(tests: Mapping[Key, PairedComparison]) -> dict[Key, PairedComparison]:
    """`tests` with their p-values corrected for their number (Holm 1979)."""
    p_values = holm([test.p_value for test in tests.values()])
    return {name: test._replace(p_value=p) for (name, test), p in zip(tests.items(), p_values, strict=True)}


def class_scores(predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """Precision, recall with its 95 % Wilson interval (1927), F1 and rows of each class; integers of shape (n,)."""
    predictions, references = np.asarray(predictions), np.asarray(references)
    report = classification_report(
        references, predictions, labels=range(len(labels)), target_names=labels, output_dict=True, zero_division=0
    )
    table = pd.DataFrame({label: report[label] for label in labels}).T.astype({"support": int})
    found = [int((predictions[references == index] == index).sum()) for index in range(len(labels))]
    intervals = [binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(found, table["support"], strict=True)]
    table.insert(2, "recall_low", [interval.low for interval in intervals])
    table.insert(3, "recall_high", [interval.high for interval in intervals])
    return table.rename(columns={"f1-score": "f1", "support": "rows"})


def most_wrong(probabilities: np.ndarray, rows: Dataset, n: int = 20) -> pd.DataFrame:
    """The (at most) `n` rows that are wrong with the highest probability, highest first.

    `probabilities` has shape (len(rows), n_labels). Columns `text, label, predicted, probability`; the index is the
    column `row` of `rows`. Labels that look wrong themselves are worth correcting in the file.
    """
    names = rows.features["label"].names
    references, predictions = np.array(rows["label"]), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predictions != references)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:n]
    table = {
        "text": [rows["text"][int(index)] for index in worst],
        "label": [names[references[index]] for index in worst],
        "predicted": [names[predictions[index]] for index in worst],
        "probability": probabilities[worst].max(axis=1),
    }
    return pd.DataFrame(table, index=pd.Index([rows["row"][int(index)] for index in worst], name="row"))
