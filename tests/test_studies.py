from dataclasses import replace

import pytest

from helpers.data import split_reviews
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.studies.compare import compare_runs, summarize
from helpers.studies.trials import run_study


@pytest.fixture
def recipe(tiny_checkpoints):
    return replace(
        RECIPES["lora_bert_sst2"].improved(),
        base_model=tiny_checkpoints["bert"],
        modules_to_save=("pooler",),
        learning_rate=1e-2,
        num_train_epochs=4,
        min_updates=None,
        per_device_train_batch_size=32,
        weight_decay=0.01,
        max_length=16,
        n_train=None,
    )


def test_a_study_has_a_row_for_each_run_and_seed(recipe, toy_reviews, tiny_profile, fp32):
    splits = split_reviews(toy_reviews, 96, 32, 64)
    runs = [({"r": 1}, replace(recipe, r=1)), ({"r": 8}, recipe)]
    study = run_study("ranks", runs, splits, tiny_profile, fp32, command="python x", seeds=(0, 1))
    assert [(row["r"], row["seed"], row["n_train"]) for row in study.rows] == [
        (1, 0, 96),
        (1, 1, 96),
        (8, 0, 96),
        (8, 1, 96),
    ]
    assert study.rows[0]["trainable_params"] < study.rows[2]["trainable_params"]
    assert all(len(row["correct"]) == 32 for row in study.rows)
    assert study.rows[0]["accuracy"] == study.rows[0]["correct"].count("1") / 32
    assert study.rows[0]["correct"] != study.rows[1]["correct"], "seeds make no difference"
    assert StudyRecord.load(tiny_profile.results / "studies" / "ranks.json") == study
    again = run_study("again", runs[:1], splits, tiny_profile, fp32, command="python x", seeds=(0,))
    assert again.rows[0]["correct"] == study.rows[0]["correct"], "a seed does not fix a run"


def test_recipes_that_would_not_share_their_tokens_are_refused(recipe, toy_reviews, tiny_profile, fp32):
    runs = [({}, recipe), ({}, replace(recipe, truncation="tail"))]
    with pytest.raises(ValueError, match="truncation"):
        run_study("x", runs, split_reviews(toy_reviews, 96, 32, 64), tiny_profile, fp32, command="python x")


def _run(correct: str, seed: int = 0, **labels) -> dict:
    accuracy = correct.count("1") / len(correct)
    return {**labels, "seed": seed, "correct": correct, "accuracy": accuracy, "trainable_params": 9, "n_train": 5}


def test_a_summary_has_a_point_for_each_label_over_its_seeds():
    rows = [_run("1" * 60 + "0" * 40, 0, r=1), _run("1" * 80 + "0" * 20, 1, r=1), _run("1" * 100, 0, r=2)]
    one, two = summarize(rows, ("r",))
    assert (one["r"], one["accuracies"], one["accuracy"]) == (1, [0.6, 0.8], pytest.approx(0.7))
    # Rows: right in 2, 1 or 0 of 2 seeds (60, 20, 20 of 100), a standard error of 0.04. Seeds: 0.6 and 0.8, one of 0.1.
    assert one["low"] == pytest.approx(0.7 - 1.96 * 0.107, abs=0.03), "the interval leaves the seeds out"
    assert one["high"] == pytest.approx(0.7 + 1.96 * 0.107, abs=0.03)
    assert (two["r"], two["accuracy"], two["low"], two["high"]) == (2, 1.0, 1.0, 1.0)


def test_a_difference_holds_for_other_seeds_and_other_rows():
    good, bad = "1" * 90 + "0" * 10, "1" * 60 + "0" * 40
    seeds = range(4)
    clear = compare_runs({"x": ([_run(good, s) for s in seeds], [_run(bad, s) for s in reversed(seeds)])})["x"]
    assert clear.difference == pytest.approx(0.3) and clear.low > 0.2 and clear.p_value < 1e-3
    # The same gain on average, but half of the seeds gain nothing: not seen, though the rows alone would show it.
    mixed = [_run(good if s < 2 else bad, s) for s in seeds]
    once = compare_runs({"x": (mixed, [_run(bad, s) for s in seeds])})["x"]
    assert once.difference == pytest.approx(0.15) and once.low < 0.02 and once.p_value > 0.02
    same = compare_runs({"x": (mixed, mixed)})["x"]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_only_seeds_of_both_sides_are_compared():
    good, bad = "1" * 90 + "0" * 10, "1" * 60 + "0" * 40
    pair = [_run(good, 0), _run(bad, 1)], [_run(bad, 0), _run(bad, 2)]
    assert compare_runs({"x": pair})["x"].difference == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"x: no seed is on both sides, \[0\] and \[1\]"):
        compare_runs({"x": ([_run("10", 0)], [_run("10", 1)])})


def test_many_comparisons_raise_the_bar():
    pair = [_run("1" * 56 + "0" * 44)], [_run("1" * 50 + "0" * 50)]
    one = compare_runs({"x": pair})["x"]
    many = compare_runs({f"x{i}": pair for i in range(6)})["x3"]
    assert 0 < one.p_value < 0.05 and many.p_value == pytest.approx(6 * one.p_value)
