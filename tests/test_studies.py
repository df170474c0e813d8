from dataclasses import replace

import pytest

from helpers.data import split_reviews
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.studies import run_study, score_bag_of_words_on


@pytest.fixture
def recipe(tiny_checkpoints):
    base = RECIPES["lora_bert_sst2"].improved()
    return replace(base, base_model=tiny_checkpoints["bert"], learning_rate=2e-2, max_length=16, n_train=None)


def test_a_study_has_a_row_for_each_run_and_seed(recipe, toy_reviews, tiny_profile, fp32):
    splits = split_reviews(toy_reviews, 96, 32, 64)
    runs = [({"r": 1}, replace(recipe, r=1, n_train=48)), ({"r": 8}, replace(recipe, n_train=32))]
    study = run_study("ranks", runs, splits, tiny_profile, fp32, command="python x", seeds=(0, 1))
    assert [(row["r"], row["seed"], row["n_train"]) for row in study.rows] == [
        (1, 0, 48),
        (1, 1, 48),
        (8, 0, 32),
        (8, 1, 32),
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


def test_the_bag_of_words_is_scored_like_a_run(toy_reviews):
    splits = split_reviews(toy_reviews, 96, 32, 64)
    row = score_bag_of_words_on(splits["train"], splits["test"])
    assert row["accuracy"] > 0.9 and len(row["correct"]) == 64 and row["n_train"] == 96
