"""What a label can be: one class a text ("single"), several labels ("multi"), or a number ("regression")."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.special import expit, softmax
from scipy.stats import spearmanr
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer

ROWS_PER_CLASS = 12  # so many leave a class at least one in each part, whatever the rounding; with 9 it can fail
FEW_NUMBERS = 10  # different ones at most that are always classes, such as stars
# An item of a list in a CSV, as Python or numpy prints it.
IN_LIST = re.compile(r"""'[^']*'|"[^"]*"|\d+(?=\s+\d|[\s,]*$|,)|[^,\s][^,]*""")
NUMPY_2 = re.compile(r"""np\.\w+\(('[^']*'|"[^"]*"|[^()]*)\)""")  # as it prints the items of a list


def classification_metrics(predictions: np.ndarray, references: np.ndarray, n_labels: int = 0) -> dict[str, float]:
    """Accuracy, balanced accuracy, precision, recall, F1, weighted F1 and MCC of integers, both of shape (n,).
    Precision, recall and F1 are those of class 1 for two classes, and macro averages for more (seen, or `n_labels`)."""
    average = "binary" if max(np.max(predictions), np.max(references), n_labels - 1) <= 1 else "macro"
    scores = metrics.precision_recall_fscore_support(references, predictions, average=average, zero_division=0)
    return {
        "accuracy": metrics.accuracy_score(references, predictions),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(references, predictions)),
        **{name: float(score) for name, score in zip(("precision", "recall", "f1"), scores, strict=False)},
        "weighted_f1": metrics.f1_score(references, predictions, average="weighted", zero_division=0),
        "mcc": float(metrics.matthews_corrcoef(references, predictions)),
    }


def micro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 over all labels of all texts, of 0 and 1. (scikit-learn's takes too long for a thousand resamples.)"""
    return float(2 * (predictions * references).sum() / max(1, predictions.sum() + references.sum()))


def multi_label_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Micro and macro F1, and the share of texts whose labels are all right, of 0 and 1, shape (n, n_labels)."""
    macro = metrics.f1_score(references, predictions, average="macro", zero_division=0)
    right = float((predictions == references).all(axis=1).mean())
    return {"micro_f1": micro_f1(predictions, references), "macro_f1": float(macro), "subset_accuracy": right}


def regression_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """R2, mean absolute error and Spearman's rank correlation (0 where it is not defined) of numbers, shape (n,)."""
    mae, rank = metrics.mean_absolute_error(references, predictions), spearmanr(references, predictions).statistic
    return {"r2": metrics.r2_score(references, predictions), "mae": mae, "spearman": float(np.nan_to_num(rank))}


def best_threshold(probabilities: np.ndarray, references: np.ndarray) -> float:
    """The one threshold with the best micro F1 on these rows, both of shape (n, n_labels)."""
    precision, recall, thresholds = metrics.precision_recall_curve(references.ravel(), probabilities.ravel())
    f1 = precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[f1[:-1].argmax()])


class Tagger(OneVsRestClassifier):
    """A logistic regression a label, and one threshold for all of them."""

    threshold = 0.5

    def predict(self, X) -> np.ndarray:
        """0 and 1, shape (n, n_labels)."""
        return (self.predict_proba(X) >= self.threshold).astype(int)


class Task(NamedTuple):
    """How a task is trained and judged: reports lead with `score(predictions, references)`, one of its `metrics` by the
    name of `headline`; `best` chooses the epoch; `baseline` is of scikit-learn, for a strength and class weights."""

    problem_type: str  # transformers' name, which decides the loss
    title: str
    headline: str
    best: str
    score: Callable[[np.ndarray, np.ndarray], float]
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    probabilities: Callable[[np.ndarray], np.ndarray]  # from logits, (n, n_labels)
    baseline: Callable
    form: str = "{:.1%}"


def _logistic(c: float, weights: str | None) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2_000, class_weight=weights)


TASKS = {
    "single": Task(
        "single_label_classification", "accuracy", "accuracy", "accuracy",
        lambda found, right: float(np.mean(found == right)),
        classification_metrics, partial(softmax, axis=1), _logistic,
    ),
    "multi": Task(
        "multi_label_classification", "micro F1", "micro_f1", "micro_f1", micro_f1,
        multi_label_metrics, expit, lambda c, _: Tagger(_logistic(c, None)),
    ),
    "regression": Task(
        "regression", "R2", "r2", "loss", lambda found, right: metrics.r2_score(right, found),
        regression_metrics, np.asarray, lambda c, _: Ridge(1 / c), "{:.3f}",
    ),
}  # fmt: skip


def decide(task: str, probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Predictions of `probabilities`, (n, n_labels): classes (n,), 0 and 1 (n, n_labels), or numbers (n,)."""
    if task == "multi":
        return (probabilities >= threshold).astype(int)
    return probabilities.argmax(axis=1) if task == "single" else probabilities[:, 0]


def in_words(decided: np.ndarray, labels: Sequence[str], task: str) -> Sequence:
    """What `decide` gives, in the labels' names: of several in one text joined by "; ", numbers as they are."""
    if task == "multi":
        return ["; ".join(np.array(labels, dtype=object)[row == 1]) for row in decided]
    return [labels[index] for index in decided] if task == "single" else decided


def label_names(rows: Dataset) -> list[str]:
    """What the columns of the probabilities stand for."""
    feature = rows.features["label"]
    return getattr(getattr(feature, "feature", feature), "names", ["number"])


def targets(rows: Dataset) -> np.ndarray:
    """Labels as `decide` gives predictions."""
    labels = rows["label"][:]
    if hasattr(rows.features["label"], "feature"):
        return MultiLabelBinarizer(classes=range(len(label_names(rows)))).fit_transform(labels)
    return np.array(labels)


def task_of(labels: np.ndarray | pd.Series) -> str:
    """The task whose `targets` these are, or whose labels as `read_labels` gives them."""
    one = next(iter(labels), None)
    return "multi" if isinstance(one, (tuple, np.ndarray)) else "regression" if isinstance(one, float) else "single"


def _last_layer(model: torch.nn.Module) -> torch.nn.Linear:
    width = model.config.num_labels
    return [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == width][-1]


@torch.no_grad()
def reorder_head(model: torch.nn.Module, order: list[int]) -> None:
    """Puts the logits of `model` in another order."""
    for parameter in _last_layer(model).parameters():
        parameter.copy_(parameter[order])


def rescale_head(model: torch.nn.Module, mean: float, scale: float) -> None:
    """Multiplies what `model` answers by `scale` and adds `mean`, in its last layer, so that whatever loads it does."""
    last = _last_layer(model)
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(mean)


def read_labels(
    rows: pd.DataFrame, task: str | None = None, separator: str | None = None
) -> tuple[pd.DataFrame, str, str]:
    """`rows` (see `tables.read_rows`) with a str, a tuple of str or a float as label; the task, by what the labels look
    like where it is None; and why. Raises ValueError for a label that the task cannot have."""
    labels = rows["label"].dropna()
    words, several = labels.map(str), labels.map(lambda label: isinstance(label, tuple) and len(label) != 1)
    strings = words[labels.map(lambda label: isinstance(label, str))]
    decimal = words.str.contains(",").mean() > 0.5  # a comma; ids of several labels have fewer
    points = words.str.replace(r"^([+-]?\d+),(\d\d?)$", r"\1.\2", regex=True) if decimal else words
    numbers = pd.to_numeric(points, errors="coerce").replace([np.inf, -np.inf], np.nan)
    counts, numeric, wrong = words.value_counts(), numbers.notna().all(), words[numbers.isna()]
    whole = numeric and (numbers % 1 == 0).all()
    ids = numbers.min() in (0, 1) and numbers.max() - numbers.min() == len(counts) - 1  # as classes are numbered
    each = counts.mean() if ids else counts.min()
    listed = strings.str.contains(r"[,'\"]|\[\s*\]|\d\s+\d").any() or task == "multi"  # as CSV has lists
    listed = listed and strings.str.fullmatch(r"(?s)\[.*\]|\(.*\)|\{[^:]*\}").all()
    separator = separator or ("," if listed else _separator(strings, task == "multi"))
    if separator or several.any():
        looks, what = "multi", "are lists" if listed or several.any() else f"hold {separator!r}"
        why = f"labels {what}: several labels a text"
    elif numeric and len(counts) > FEW_NUMBERS and not (whole and each >= ROWS_PER_CLASS):
        looks, why = "regression", f"{len(counts):,} different numbers: a number to predict"
    else:
        looks, why = "single", f"{len(counts):,} different {'numbers' if numeric else 'labels'}: classes, one a text"
    task, why = task or looks, f"--task {task}" if task else why
    if task == "regression":
        if len(wrong):
            raise ValueError(
                f"The label of row {wrong.index[0]:,} is {wrong.iloc[0]!r}, no number, as --task {task} needs."
            )
        return rows.assign(label=numbers.astype(float)), task, why
    if task == "single":
        if several.any():
            raise ValueError(
                f"One class a text: row {several.idxmax():,} has {words[several.idxmax()]}; try --task multi."
            )
        one = labels.map(lambda label: label if isinstance(label, str) else label[0]).astype(object)
        one = one.str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)  # 1.0, of numbers with gaps
        return rows.assign(label=one), task, why

    rows = rows.assign(label=labels.map(partial(_several, separator=separator, listed=listed)))
    if set(rows["label"].explode().dropna()) in ({"0", "1"}, {"0.0", "1.0"}, {"False", "True"}):
        raise ValueError("Several labels a text: these lists hold 0 and 1; list the names of a text's labels instead.")
    return rows, task, f"{why}, {sum(label == () for label in rows['label']):,} texts with none"


def _several(label: str | tuple[str, ...], separator: str | None, listed: bool) -> tuple[str, ...]:
    """The labels of one text, sorted; those of a list that was `listed` as Python or numpy print it."""
    if isinstance(label, str):
        items = IN_LIST.findall(NUMPY_2.sub(r"\1", label)[1:-1]) if listed else label.split(separator or "\0")
        label = [one.strip("'\"") if listed else one for one in items]
    return tuple(sorted({part.strip() for part in label} - {"", "[]"}))


def _separator(words: pd.Series, several: bool) -> str | None:
    """What separates labels: where they are known to be `several`, what is in them, else only what is beyond doubt."""
    for mark in ";|,":
        parts = words.str.rstrip(f"{mark} ").str.split(mark, regex=False).explode().str.strip()
        clear = mark != "," and parts.all() and parts.nunique() < words.nunique()
        if len(parts) > len(words) and (several or clear):
            return mark
    return None
