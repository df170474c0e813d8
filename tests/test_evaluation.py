import numpy as np
import pytest
import torch
from transformers import AutoModel, EvalPrediction

from helpers import evaluation
from helpers.models import load_tokenizer
from helpers.tasks import classification_metrics
from lab.compare import crossed_interval
from lab.studies import calibration

REFERENCES = np.array([1, 1, 1, 0, 0, 0, 0, 1])
PREDICTIONS = np.array([1, 1, 0, 0, 0, 0, 1, 1])  # 3 true, 1 false positive; 3 true, 1 false negative


def test_scores_worked_out_by_hand():
    scores = dict.fromkeys(("accuracy", "balanced_accuracy", "precision", "recall", "f1", "weighted_f1"), 0.75)
    assert classification_metrics(PREDICTIONS, REFERENCES) == pytest.approx({**scores, "mcc": 0.5})
    assert classification_metrics(np.array([1, 0, 0]), np.array([1, 1, 0]), 3)["precision"] == pytest.approx(0.75)
    logits = np.eye(3)[[0, 1, 2, 2]]
    scores = evaluation.compute_metrics(EvalPrediction(logits, np.array([0, 1, 1, 2])))  # three classes are averaged
    assert scores["precision"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert scores["recall"] == scores["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)


def test_a_temperature_calibrates_overconfident_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    labels = (
        np.exp(logits).cumsum(axis=1) / np.exp(logits).sum(axis=1, keepdims=True) > rng.random((20_000, 1))
    ).argmax(axis=1)
    assert evaluation.fitted_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    sure, calibrated = calibration(3 * logits, labels), calibration(3 * logits, labels, 3.0)
    assert calibrated["ece"] < 0.02 < 0.2 < sure["ece"] and calibrated["nll"] < sure["nll"]
    by_hand = calibration(np.log([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]]), np.array([0, 1, 1]))
    assert by_hand["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.7)) / 3)
    assert by_hand["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.7]).mean())


def test_the_interval_is_that_of_a_proportion():
    correct = np.r_[np.ones(800), np.zeros(200)].astype(int)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    low, high, p_value = evaluation.resampled(lambda rows: correct[rows].mean(), 1000, 5_000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.003) and p_value == 2 / 5_001
    assert evaluation.resampled(lambda rows: 1.0, 1)[:2] == (1.0, 1.0)
    assert evaluation.correct_rows(PREDICTIONS, REFERENCES) == "11011101"


def test_an_interval_over_seeds_and_rows_is_wider_than_one_over_rows_and_of_one_seed_the_same():
    rng = np.random.default_rng(0)
    values = 0.8 + rng.normal(0, 0.03, (4, 1)) + rng.normal(0, 0.2, (4, 300))
    low, high, _ = crossed_interval(values)
    low_of_rows, high_of_rows, _ = evaluation.resampled(lambda rows: values[:, rows].mean(), 300)
    assert low < low_of_rows < values.mean() < high_of_rows < high
    correct = np.r_[np.ones(800), np.zeros(200)]
    low, high, p_value = crossed_interval(correct[None, :])
    of_rows = evaluation.resampled(lambda rows: correct[rows].mean(), 1000, 5_000)
    assert of_rows == pytest.approx((low, high, p_value), abs=0.004)
    assert crossed_interval(np.zeros((3, 5))) == (0.0, 0.0, 1.0)


def test_paired_comparison_is_the_exact_mcnemar_test():
    # Of 12 rows on which the two differ, A is right on 10: two-sided binomial p = 2 * (1 + 12 + 66) / 2**12.
    result = evaluation.paired_comparison("1" * 60 + "0" * 40, "1" * 50 + "0" * 10 + "1" * 2 + "0" * 38)
    assert (result.difference, result.p_value) == pytest.approx((0.08, 2 * 79 / 4096))
    with pytest.raises(ValueError, match="same rows"):
        evaluation.paired_comparison("101", "10")


def test_an_embedding_is_the_mean_over_the_tokens_of_the_text(tiny_checkpoints):
    texts = ["the movie was great great great", "bad", "the plot was awful"]
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    found = evaluation.mean_embeddings(tiny_checkpoints["bert"], tokenizer, tokenizer(texts)["input_ids"], "fp32")
    model = AutoModel.from_pretrained(tiny_checkpoints["bert"]).eval()
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, alone, atol=1e-5)
