import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from datasets import DatasetDict

from helpers import full, plan, runs
from helpers.data import split_reviews, tokenize
from helpers.models import build_model, load_tokenizer
from helpers.profiles import EMBEDDED_BERT
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.runs import Run, drawn, row_of
from helpers.training import class_probabilities, fit

WHERE = {"base_model": EMBEDDED_BERT, "n_validation": 1_000, "n_test": 2_000}


@pytest.fixture
def tiny(tiny_checkpoints, toy_reviews, tmp_path, monkeypatch):
    """A run on a tiny checkpoint and toy reviews, and an empty `Data/full`."""
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr(runs, "_splits", lambda *key: split_reviews(toy_reviews, None, 32, 64))
    runs._tokens.cache_clear()
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(),
        learning_rate=2e-2, max_length=16, n_train=48, num_train_epochs=1, min_updates=None,
    )  # fmt: skip
    yield Run("toy", (("r", 8),), recipe, tiny_checkpoints["bert"], 32, 64, seed=0)
    runs._tokens.cache_clear()


def test_what_a_run_gives_is_what_its_version_gave(tiny_checkpoints, toy_reviews, fp32):
    """Fails where a change of the code changes what a training gives: then raise `runs.VERSION` and these numbers."""
    recipe = replace(
        RECIPES["lora_bert_sst2"], learning_rate=1e-2, num_train_epochs=12, max_length=16, per_device_train_batch_size=5
    )
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    rows = tokenize(split_reviews(toy_reviews, None, 32, 64)["train"].select(drawn(104, 48, 3)), tokenizer, 16)
    model = build_model(recipe, tiny_checkpoints["bert"], fp32, seed=3)
    fit(model, tokenizer, recipe, rows, None, fp32, seed=3)
    probabilities = class_probabilities(model, tokenizer, rows.select(range(4)), fp32)[:, 1]
    assert runs.VERSION == 1
    np.testing.assert_allclose(probabilities, [0.66402, 0.66420, 0.67117, 0.66573], atol=1e-3)


@pytest.mark.parametrize(
    ("dataset", "sizes", "expected"),
    [("rotten_tomatoes", plan.SENTENCES, "539d3078c9e79575"), ("imdb", plan.REVIEWS, "6eb3a973684d86f8")],
)
def test_the_rows_are_those_of_this_version(dataset, sizes, expected):
    splits = runs._splits(dataset, *sizes.values())
    found = sha256(json.dumps([splits[name]["text"][:] for name in splits]).encode()).hexdigest()[:16]
    assert found == expected, "other rows: raise runs.VERSION"
