"""Scores: metrics without the hub, predictions, intervals, paired tests, and the baselines on the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn import metrics
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from transformers import AutoModel, EvalPrediction, PreTrainedTokenizerBase

from helpers.checkpoints import from_hub
from helpers.data import joined
from helpers.profiles import DTYPES, device
from helpers.tasks import TASKS, Tagger, best_threshold, decide, label_names, targets, task_of

# Larger batches of long texts fall out of a CPU's caches and are slower; a GPU wants them full.
TOKENS_PER_BATCH = {"cpu": 768, "cuda": 32_768}


def compute_metrics(output: EvalPrediction, task: str = "single") -> dict[str, float]:
    """The task's metrics, as Trainer asks for them; of several labels, at the best threshold."""
    probabilities, right = TASKS[task].probabilities(output.predictions), output.label_ids
    threshold = best_threshold(probabilities, right) if task == "multi" else 0.5
    return TASKS[task].metrics(decide(task, probabilities, threshold), right)


@torch.inference_mode()
def predict_logits(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ids: Sequence | Mapping, precision: str, read=None
) -> np.ndarray:
    """Logits of tokenized texts, shape (len(ids), n_labels), in their order; or what `read(output, batch)` returns.

    `ids` are lists of tokens, or what `data.encode` returns.
    (Trainer.predict would answer in another order where rows are grouped by length.)
    """
    model.eval()
    # A model that is stored in `precision` as a whole needs no autocast and its casts.
    casts = {weight.dtype for weight in model.parameters()} != {DTYPES[precision]}
    columns = ids if isinstance(ids, Mapping) else {"input_ids": ids}
    ids = columns["input_ids"]
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(lengths, kind="stable")
    batches = np.split(order, np.flatnonzero(np.diff(np.cumsum(lengths[order]) // TOKENS_PER_BATCH[device()])) + 1)
    found = []
    for rows in batches if len(ids) else []:
        batch = {name: [column[row] for row in rows] for name, column in columns.items()}
        batch = tokenizer.pad(batch, return_tensors="pt").to(device())
        with torch.autocast(device(), DTYPES[precision], enabled=casts and precision != "fp32"):
            output = model(**batch)
            found.append((read(output, batch) if read else output.logits).float().cpu().numpy())
    return np.concatenate(found)[np.argsort(order)] if found else np.empty((0, model.config.num_labels))


def fitted_temperature(logits: np.ndarray, references: np.ndarray) -> float:
    """The temperature, from 1 to 10, that gives these rows' labels the highest likelihood (Guo et al. 2017)."""

    def loss(log: float) -> float:
        return metrics.log_loss(references, softmax(logits / np.exp(log), axis=1), labels=range(logits.shape[1]))

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, np.log(10)), method="bounded").x))


def bag_of_words(train: Dataset, validation: Dataset, class_weights: str | None = None) -> Pipeline:
    """TF-IDF over words and word pairs with logistic regression (ridge regression for numbers), its strength chosen on
    `validation`: the baseline to beat. The texts of a pair are joined.

    With `class_weights="balanced"` each class counts the same, and balanced accuracy decides. Raises ValueError where
    no word is in two training texts.
    """
    most = 20_000_000 // len(label_names(train))  # the solver holds 200 bytes for each of these and each class
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=most)
    train, validation = ((joined(part), targets(part)) for part in (train, validation))
    return _fitted(words, train, validation, (0.1, 1.0, 10.0, 100.0), class_weights)


def frozen_encoder(
    train: tuple[np.ndarray, Sequence[int]], validation: tuple[np.ndarray, Sequence[int]], class_weights=None
) -> Pipeline:
    """The same model on standardized `mean_embeddings`, (rows, width), with labels; else as `bag_of_words`."""
    return _fitted(StandardScaler(), train, validation, (0.001, 0.01, 0.1, 1.0), class_weights)


def _fitted(features, train, validation, strengths, class_weights: str | None) -> Pipeline:
    """The best on `validation` of one model a C, by log loss where several are. (GridSearchCV would fit it on both.)"""
    rows, labels = features.fit_transform(train[0]), np.asarray(validation[1])
    scored_on, task = features.transform(validation[0]), TASKS[task_of(labels)]

    def quality(model) -> tuple[float, float]:
        if isinstance(model, Tagger):
            model.threshold = best_threshold(model.predict_proba(scored_on), labels)
        found = model.predict(scored_on)
        if task is not TASKS["single"]:
            return task.score(found, labels), 0.0
        loss = metrics.log_loss(labels, model.predict_proba(scored_on), labels=model.classes_)
        return (metrics.balanced_accuracy_score(labels, found) if class_weights else task.score(found, labels)), -loss

    models = [task.baseline(c, class_weights) for c in strengths]
    return make_pipeline(features, max((model.fit(rows, train[1]) for model in models), key=quality))


def mean_embeddings(
    base_model: str, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]], precision: str
) -> np.ndarray:
    """The mean over its tokens of each text's last hidden states, shape (len(ids), width): how sentence encoders are
    read (Reimers & Gurevych 2019, arXiv 1908.10084). Nothing is trained."""

    def mean(output, batch) -> torch.Tensor:
        hidden, mask = output.last_hidden_state.float(), batch["attention_mask"].unsqueeze(-1)
        mask = mask if hidden.shape[1] == mask.shape[1] else torch.ones_like(hidden[..., :1])  # Funnel pools tokens
        return (hidden * mask).sum(1) / mask.sum(1)

    model = from_hub(AutoModel.from_pretrained, base_model, dtype=torch.float32, use_safetensors=True).to(device())
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    try:
        return predict_logits(model, tokenizer, ids, precision, mean)
    except RuntimeError:  # X-MOD's layers do not go under autocast
        return predict_logits(model, tokenizer, ids, "fp32", mean)


def correct_rows(predictions: np.ndarray, references: np.ndarray) -> str:
    """One character a row: "1" where prediction and reference agree, else "0"; (n,), or (n, n_labels) all of a row."""
    equal = np.equal(predictions, references).reshape(len(references), -1).all(axis=1)
    return "".join(map(str, equal.astype(int)))


def resampled(statistic, n: int, draws: int = 1_000) -> tuple[float, float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of `statistic(rows)`, from `draws` resamples of `n` row numbers,
    and the p-value of zero."""
    rng = np.random.default_rng(0)
    return interval_of(np.array([statistic(rng.integers(n, size=n)) for _ in range(draws)]))


def interval_of(drawn: np.ndarray) -> tuple[float, float, float]:
    """The ends of the middle 95 % of `drawn`, and how probable zero is among them."""
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high), min(1.0, 2 * float(beyond + 1) / (len(drawn) + 1))


def compare_scores(score, a: np.ndarray, b: np.ndarray, references: np.ndarray) -> "PairedComparison":
    """A and B by `score(predictions, references)`, on the same resamples of the rows."""

    def gain(rows=slice(None)) -> float:
        return score(a[rows], references[rows]) - score(b[rows], references[rows])

    return PairedComparison(gain(), *resampled(gain, len(references)))


class PairedComparison(NamedTuple):
    """How much more often A is right than B on the same rows: a difference of accuracies, its 95 % interval, p."""

    difference: float
    low: float
    high: float
    p_value: float

    @property
    def points(self) -> str:
        """The difference with its interval, such as `+1.4 points [+0.2, +2.6]`."""
        return f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    @property
    def verdict(self) -> str:
        """A against B: "better", "worse", "not significant"; "not settled" where 0 is outside the interval, but p,
        corrected for many comparisons, is not below 0.05."""
        if self.p_value < 0.05:
            return "better" if self.difference > 0 else "worse"
        return "not significant" if self.low <= 0 <= self.high else "not settled"


def paired_comparison(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> PairedComparison:
    """Compares two classifiers on the same rows: exact McNemar test (1947) and paired bootstrap interval of A - B.

    Both have shape (n,), true where the prediction is right, or are `RunRecord.correct`. Raises ValueError where they
    differ in length.
    """
    a, b = (np.array([int(value) for value in correct], dtype=bool) for correct in (correct_a, correct_b))
    if a.shape != b.shape:
        raise ValueError(f"Need the same rows for both, not {len(a)} and {len(b)}.")
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    gain = a.astype(float) - b.astype(float)
    low, high, _ = resampled(lambda rows: gain[rows].mean(), len(gain), 5_000)
    return PairedComparison(float(gain.mean()), low, high, float(mcnemar(table, exact=True).pvalue))


def corrected(tests: Mapping[Any, PairedComparison]) -> dict[Any, PairedComparison]:
    """`tests` with their p-values corrected for their number (Holm 1979)."""
    p_values = multipletests([test.p_value for test in tests.values()], method="holm")[1]
    return {name: test._replace(p_value=float(p)) for (name, test), p in zip(tests.items(), p_values, strict=True)}
