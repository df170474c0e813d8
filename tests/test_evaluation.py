from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from helpers import evaluation
from helpers.evaluation import (
    ClassificationMetrics,
    PairedComparison,
    accuracy_interval,
    class_scores,
    classification_metrics,
    crossed_interval,
    holm,
    mean_interval,
    most_wrong,
    paired_comparison,
    predict_logits,
)
from helpers.models import load_classifier, load_tokenizer

REFERENCES = np.array([1, 1, 1, 0, 0, 0, 0, 1])
PREDICTIONS = np.array([1, 1, 0, 0, 0, 0, 1, 1])  # 3 true, 1 false positive; 3 true, 1 false negative


def test_the_metric_is_an_evaluate_metric_and_needs_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    metric = ClassificationMetrics()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=PREDICTIONS[:5], references=REFERENCES[:5])
    metric.add_batch(predictions=PREDICTIONS[5:], references=REFERENCES[5:])
    assert metric.compute() == classification_metrics(PREDICTIONS, REFERENCES)


def test_scores_worked_out_by_hand():
    assert classification_metrics(PREDICTIONS, REFERENCES) == pytest.approx(
        {"accuracy": 0.75, "precision": 0.75, "recall": 0.75, "f1": 0.75, "weighted_f1": 0.75, "mcc": 0.5}
    )
    scores = classification_metrics(np.array([1, 1, 1, 1]), np.array([1, 0, 0, 0]))
    assert (scores["precision"], scores["recall"], scores["accuracy"]) == (0.25, 1.0, 0.25)
    assert scores["weighted_f1"] == pytest.approx(0.4 / 4)
    assert scores["mcc"] == 0


def test_three_classes_are_averaged():
    scores = classification_metrics(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))
    assert scores["precision"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert scores["recall"] == pytest.approx((1 + 0.5 + 1) / 3)


def test_the_interval_is_that_of_a_proportion():
    correct = np.r_[np.ones(800), np.zeros(200)].astype(int)
    low, high = accuracy_interval(correct, np.ones(1000, dtype=int))
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.003)
    assert high == pytest.approx(0.8 + half, abs=0.003)
    assert (low, high) == accuracy_interval(correct, np.ones(1000, dtype=int))


def test_the_interval_of_a_perfect_score_and_of_nothing():
    assert accuracy_interval(np.ones(5), np.ones(5)) == (1.0, 1.0)
    for predictions, references in ((np.ones(0), np.ones(0)), (np.ones(3), np.ones(4))):
        with pytest.raises(ValueError, match="equally many"):
            accuracy_interval(predictions, references)


def test_logits_come_in_the_order_of_the_texts(fp32, tiny_checkpoints, monkeypatch):
    monkeypatch.setitem(evaluation.TOKENS_PER_BATCH, "cpu", 12)
    model, tokenizer = load_classifier(tiny_checkpoints["bert"], fp32), load_tokenizer(tiny_checkpoints["bert"])
    texts = ["the movie was great great great", "bad", "the plot was awful", "great"]
    ids = tokenizer(texts)["input_ids"]
    together = predict_logits(model, tokenizer, ids, fp32)
    alone = np.concatenate([predict_logits(model, tokenizer, [row], fp32) for row in ids])
    assert together.shape == (4, 2)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert len(np.unique(together[:, 0])) == 4
    assert predict_logits(model, tokenizer, [], fp32).shape == (0, 2)


def test_batches_hold_like_lengths_and_are_filled_up_to_the_limit(fp32, tiny_checkpoints, monkeypatch):
    monkeypatch.setitem(evaluation.TOKENS_PER_BATCH, "cpu", 12)

    class Model:
        config, dtype, shapes = SimpleNamespace(num_labels=2), torch.float32, []

        def eval(self):
            pass

        def __call__(self, input_ids, **rest):
            self.shapes.append(tuple(input_ids.shape))
            return SimpleNamespace(logits=torch.zeros(len(input_ids), 2))

    model, tokenizer = Model(), load_tokenizer(tiny_checkpoints["bert"])
    ids = [[5] * length for length in (9, 2, 3, 40, 2, 3)]
    predict_logits(model, tokenizer, ids, fp32)
    assert model.shapes == [(4, 3), (1, 9), (1, 40)]  # a text longer than the limit is a batch of its own


def test_an_interval_over_seeds_and_rows_covers_what_it_says():
    """Of 150 made-up experiments with 4 seeds, about 95 % of the intervals hold the true mean; by rows alone fewer."""
    rng, covered, rows_alone = np.random.default_rng(0), 0, 0
    for experiment in range(150):
        seeds, rows = rng.normal(0, 0.03, (4, 1)), rng.normal(0, 0.5, (1, 300))
        values = 0.8 + seeds + rows + rng.normal(0, 0.2, (4, 300))
        low, high, _ = crossed_interval(values, draws=1_000, seed=experiment)
        covered += low <= 0.8 <= high
        low, high = mean_interval(values.mean(axis=0), experiment)
        rows_alone += low <= 0.8 <= high
    assert covered >= 0.88 * 150, covered
    seeds_only = [crossed_interval(rng.normal(0, 1, (4, 1)) + np.zeros((1, 50)), 1_000, n) for n in range(150)]
    assert sum(low <= 0 <= high for low, high, _ in seeds_only) >= 0.8 * 150
    assert rows_alone < covered


def test_one_seed_is_an_interval_over_rows():
    correct = np.r_[np.ones(800), np.zeros(200)]
    low, high, p_value = crossed_interval(correct[None, :])
    assert (low, high) == pytest.approx(mean_interval(correct), abs=0.004) and p_value == pytest.approx(2 / 5_001)
    assert crossed_interval(np.zeros((3, 5))) == (0.0, 0.0, 1.0)


def test_p_values_are_corrected_as_holm_does():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_paired_comparison_is_the_exact_mcnemar_test():
    # Of 12 rows on which the two differ, A is right on 10: two-sided binomial p = 2 * (1 + 12 + 66) / 2**12.
    a = "1" * 50 + "1" * 10 + "0" * 2 + "0" * 38
    b = "1" * 50 + "0" * 10 + "1" * 2 + "0" * 38
    result = paired_comparison(a, b)
    assert result.difference == pytest.approx(0.08)
    assert result.p_value == pytest.approx(2 * 79 / 4096)
    assert 0 < result.low < 0.08 < result.high < 0.16
    assert paired_comparison([True, False], [True, False]) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="same rows"):
        paired_comparison("101", "10")


def test_scores_of_each_class():
    table = class_scores(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0]), ["a", "b", "c"])
    assert table.loc["a", ["precision", "recall", "f1", "rows"]].tolist() == [0.5, 0.5, 0.5, 2]
    assert table.loc["c", "precision"] == pytest.approx(2 / 3) and table.loc["c", "recall"] == 1
    assert table.loc["b", ["recall_low", "recall_high"]].tolist() == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert table.loc["c", "recall_high"] == 1 and table.loc["c", "recall_low"] == pytest.approx(0.3424, abs=1e-4)


def test_the_most_confidently_wrong_rows_come_first():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"]), "row": Value("int64")})
    rows = {"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 0], "row": [11, 12, 13, 14]}
    probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    table = most_wrong(probabilities, Dataset.from_dict(rows, features=features), 2)
    assert list(table.index) == [13, 14]
    assert table.iloc[0].tolist() == ["c", "x", "y", 0.8]


def test_prediction_goes_on_in_smaller_batches_where_memory_runs_out(tiny_checkpoints, fp32, monkeypatch):
    monkeypatch.setitem(evaluation.TOKENS_PER_BATCH, "cpu", 160)
    model = load_classifier(tiny_checkpoints["bert"], fp32)
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(5, 18, length).tolist(), 3] for length in rng.integers(3, 12, 40)]
    expected, sizes = predict_logits(model, tokenizer, ids, fp32), []

    def refuse(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 5:
            torch.empty(2**60, dtype=torch.uint8)  # the CPU's allocator says so itself

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    logits = predict_logits(model, tokenizer, ids, fp32)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert sizes[0] > 10 and sum(size > 5 for size in sizes) < 5, "each batch had to fail anew"
    model.register_forward_pre_hook(lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        predict_logits(model, tokenizer, ids, fp32)


@pytest.mark.parametrize(
    ("difference", "low", "high", "p_value", "said"),
    [
        (0.02, 0.01, 0.03, 0.049, "better"),
        (-0.02, -0.03, -0.01, 0.001, "worse"),
        (0.02, -0.01, 0.05, 0.05, "no difference seen"),
        (0.02, 0.001, 0.04, 0.2, "not settled"),
    ],
)
def test_a_comparison_is_said_by_one_rule(difference, low, high, p_value, said):
    assert PairedComparison(difference, low, high, p_value).verdict == said
