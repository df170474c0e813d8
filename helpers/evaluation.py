"""Scores: metrics without the hub, predictions, intervals, paired tests, and the baselines on the same rows."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import evaluate
import numpy as np
import torch
from datasets import Dataset, Features, Value
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from transformers import AutoModel, BatchEncoding, EvalPrediction, PreTrainedTokenizerBase

from helpers.checkpoints import from_hub
from helpers.profiles import DTYPES, device

# Larger batches of long texts fall out of a CPU's caches and are slower; a GPU wants them full.
TOKENS_PER_BATCH = {"cpu": 768, "cuda": 32_768}
Key = TypeVar("Key", bound=Hashable)


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, balanced accuracy, precision, recall, F1, weighted F1, MCC of integers; `evaluate.load` needs the hub.

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
            "balanced_accuracy": float(balanced_accuracy_score(references, predictions)),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "weighted_f1": float(f1_score(references, predictions, average="weighted", zero_division=0)),
            "mcc": float(matthews_corrcoef(references, predictions)),
        }


def classification_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """`ClassificationMetrics` of two integer arrays of shape (n,)."""
    return ClassificationMetrics().compute(predictions=predictions, references=references)


def compute_metrics(output: EvalPrediction) -> dict[str, float]:
    """`classification_metrics`, as Trainer asks for them."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    return classification_metrics(logits.argmax(axis=-1), output.label_ids)


def predict_logits(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]], precision: str
) -> np.ndarray:
    """Logits of tokenized texts, shape (len(ids), n_labels), in their order."""
    return predict_in_batches(model, lambda batch: model(**batch).logits, tokenizer, ids, precision)


@torch.inference_mode()
def predict_in_batches(
    model: torch.nn.Module,
    forward: Callable[[BatchEncoding], torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    precision: str,
) -> np.ndarray:
    """What `forward` makes of batches of tokenized texts, shape (len(ids), width), in their order.

    Batches hold about `TOKENS_PER_BATCH` tokens of texts of similar length. A model stored in `precision` runs without
    autocast and its casts. (Trainer.predict would answer in another order where rows are grouped by length.)
    """
    model.eval()
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(lengths, kind="stable")
    batches = np.split(order, np.flatnonzero(np.diff(np.cumsum(lengths[order]) // TOKENS_PER_BATCH[device()])) + 1)
    outputs = []
    for rows in batches if len(ids) else []:
        with torch.autocast(device(), DTYPES[precision], enabled=model.dtype != DTYPES[precision]):
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            outputs.append(forward(batch.to(device())).float().cpu().numpy())
    return np.concatenate(outputs)[np.argsort(order)] if outputs else np.empty((0, model.config.num_labels))


def bag_of_words(train: Dataset, validation: Dataset, class_weights: str | None = None) -> Pipeline:
    """TF-IDF over words and word pairs with logistic regression, its C chosen on `validation`: the baseline to beat.

    With `class_weights="balanced"` each class counts the same, and balanced accuracy decides.
    `.predict(texts)` gives labels. Raises ValueError where no word is in two training texts.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    fitted_on = vectorizer.fit_transform(list(train["text"])), train["label"]
    scored_on = vectorizer.transform(list(validation["text"])), validation["label"]
    return make_pipeline(vectorizer, _logistic_regression(fitted_on, scored_on, (0.1, 1.0, 10.0, 100.0), class_weights))


def frozen_encoder(
    train: tuple[np.ndarray, Sequence[int]],
    validation: tuple[np.ndarray, Sequence[int]],
    class_weights: str | None = None,
) -> Pipeline:
    """Logistic regression on standardized `mean_embeddings`, (rows, width), with labels; else as `bag_of_words`."""
    scaler = StandardScaler()
    fitted_on = scaler.fit_transform(train[0]), train[1]
    scored_on = scaler.transform(validation[0]), validation[1]
    return make_pipeline(scaler, _logistic_regression(fitted_on, scored_on, (0.001, 0.01, 0.1, 1.0), class_weights))


def _logistic_regression(fitted_on, scored_on, strengths, class_weights: str | None) -> LogisticRegression:
    """The best on `scored_on` of one model a C, by log loss where several are. (GridSearchCV would fit it anew on both
    parts, and the embeddings' and the words' features would have to be stacked for it.)"""
    rows, labels = scored_on
    score = balanced_accuracy_score if class_weights else accuracy_score

    def quality(model: LogisticRegression) -> tuple[float, float]:
        loss = log_loss(labels, model.predict_proba(rows), labels=model.classes_)
        return score(labels, model.predict(rows)), -loss

    models = [LogisticRegression(C=c, max_iter=2_000, class_weight=class_weights).fit(*fitted_on) for c in strengths]
    return max(models, key=quality)


def mean_embeddings(
    base_model: str, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]], precision: str
) -> np.ndarray:
    """The mean over its tokens of each text's last hidden states, shape (len(ids), width): how sentence encoders are
    read (Reimers and Gurevych 2019, arXiv 1908.10084). Nothing is trained.
    """
    model = from_hub(AutoModel.from_pretrained, base_model, dtype=torch.float32, use_safetensors=True).to(device())

    def embed(batch) -> torch.Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        return (model(**batch).last_hidden_state.float() * mask).sum(1) / mask.sum(1)

    return predict_in_batches(model, embed, tokenizer, ids, precision)


def correct_rows(predictions: np.ndarray, references: np.ndarray) -> str:
    """One character a row: "1" where prediction and reference agree, else "0"; both have shape (n,)."""
    return "".join("1" if right else "0" for right in np.asarray(predictions) == np.asarray(references))


def accuracy_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the accuracy (Efron 1979), from 5,000 resamples of the rows, (n,)."""
    return mean_interval((np.asarray(predictions) == np.asarray(references)).astype(float))


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`, shape (n,), from 5,000 resamples."""
    if values.min() == values.max():  # nothing to resample
        return float(values[0]), float(values[0])
    result = bootstrap((values,), np.mean, n_resamples=5_000, batch=500, method="percentile", rng=seed)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


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
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(-(-draws // 500)):
        of_runs, of_rows = (rng.multinomial(count, np.full(count, 1 / count), size=500) for count in (runs, rows))
        drawn.append(((of_runs / runs @ values) * (of_rows / rows)).sum(axis=1))
    means = np.concatenate(drawn)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high), min(1.0, 2 * float(beyond + 1) / (len(means) + 1))


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
    def significant(self) -> bool:
        """Whether p is below 0.05."""
        return self.p_value < 0.05

    @property
    def verdict(self) -> str:
        """A against B: "better" or "worse" where the difference is significant, else "not significant".

        "not settled" where interval and p-value disagree, as they do where p is corrected for many comparisons.
        """
        if self.significant:
            return "better" if self.difference > 0 else "worse"
        return "not significant" if self.low <= 0 <= self.high else "not settled"


def paired_comparison(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> PairedComparison:
    """Compares two classifiers on the same rows: exact McNemar test (1947) and paired bootstrap interval of A - B.

    Both have shape (n,), true where the prediction is right; `RunRecord.correct` is accepted as it is. Raises
    ValueError when they differ in length or n is 0.
    """
    a, b = (np.array([str(int(value)) == "1" for value in correct]) for correct in (correct_a, correct_b))
    if a.shape != b.shape or not len(a):
        raise ValueError(f"Need the same rows for both, not {len(a)} and {len(b)}.")
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    gain = a.astype(float) - b.astype(float)
    p_value = float(mcnemar(table, exact=True).pvalue) if gain.any() else 1.0
    return PairedComparison(float(gain.mean()), *mean_interval(gain), p_value)


def corrected(tests: Mapping[Key, PairedComparison]) -> dict[Key, PairedComparison]:
    """`tests` with their p-values corrected for their number (Holm 1979)."""
    p_values = multipletests([test.p_value for test in tests.values()], method="holm")[1] if tests else []
    return {name: test._replace(p_value=float(p)) for (name, test), p in zip(tests.items(), p_values, strict=True)}
