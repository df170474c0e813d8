"""A file of one's own: findings, split, and the recipe for it. Reading is in test_reading, training in test_train."""

import unicodedata
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from helpers.data import dataset_name, dataset_revision, text_key
from helpers.models import load_tokenizer
from helpers.own_data import FEW_ROWS_RATE, OWN_DATA_RECIPE, ROWS_PER_CLASS, examine, own_recipe, split_rows
from helpers.profiles import PROFILES


def rows_of(*pairs) -> pd.DataFrame:
    """What `read_rows` returns, from (text, label) pairs."""
    index = pd.RangeIndex(1, len(pairs) + 1, name="row")
    return pd.DataFrame(pairs, columns=["text", "label"], index=index, dtype=object)


def plenty(**counts: int) -> list[tuple[str, str]]:
    return [(f"{label} text {index}", label) for label, count in counts.items() for index in range(count)]


@pytest.fixture
def tokenizer(tiny_checkpoints):
    return load_tokenizer(tiny_checkpoints["bert"])


def test_texts_in_two_unicode_forms_are_duplicates_or_conflicts(tokenizer):
    forms = [unicodedata.normalize(form, "le caf\u00e9 \u0130\u0345") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1] and text_key(forms[0]) == text_key(forms[1].upper())
    pairs = [(forms[0], "yes"), (forms[1], "yes"), (f"{forms[0]} 2", "yes"), (f"{forms[1]} 2", "no")]
    findings = examine(rows_of(*pairs), tokenizer)
    assert (findings.duplicates, findings.conflicts, findings.unknown) == ([2], [3, 4], 1.0)
    nothing = examine(rows_of(("a", None), (None, "b")), tokenizer)
    assert (nothing.usable, nothing.skewed, nothing.table(16).loc["rows", "count"]) == (0, False, 2)


def test_the_split_shares_no_text_and_keeps_no_conflict(tokenizer):
    pairs = plenty(b=60, a=40, c=20)
    pairs += [(text.upper(), label) for text, label in pairs]  # each again
    pairs += [("torn", "a"), ("Torn", "b")]
    splits = split_rows(rows_of(*pairs))
    keys = {name: {text_key(text) for text in part["text"]} for name, part in splits.items()}
    assert {name: len(part) for name, part in splits.items()} == {"train": 84, "validation": 12, "test": 24}
    assert sum(map(len, keys.values())) == len(set().union(*keys.values())) == 120
    assert "torn" not in set().union(*keys.values())
    assert splits["test"].features["label"].names == ["a", "b", "c"]
    assert Counter(splits["test"]["label"]) == {0: 8, 1: 12, 2: 4}
    for part in splits.values():
        assert all(pairs[row - 1][0] == text for row, text in zip(part["row"], part["text"], strict=True))
    assert split_rows(rows_of(*pairs))["train"]["row"] == splits["train"]["row"]
    assert split_rows(rows_of(*pairs), seed=7)["train"]["row"] != splits["train"]["row"]


def test_what_is_found_is_what_is_split(tokenizer):
    pairs = [*plenty(a=30, b=30), ("good<br />film", "a"), ("good film", "a"), ("so<br/>so", "a"), ("so so", "b")]
    pairs += [("<br />", "a"), ("<br /> <br />", "b"), (None, "a"), ("x", None)]
    findings, splits = examine(rows_of(*pairs), tokenizer), split_rows(rows_of(*pairs), drop_incomplete=True)
    texts = [text for part in splits.values() for text in part["text"]]
    assert findings.usable == len(texts) == 61
    assert "so so" not in texts and "" not in texts


def test_labels_are_in_order_numbers_by_value():
    for words, names in (
        (("10", "2", "1"), ["1", "2", "10"]),
        (("10", "nan", "9"), ["10", "9", "nan"]),
        (("b", "A"), ["A", "b"]),
    ):
        pairs = [(f"text {label} {index}", label) for label in words for index in range(12)]
        assert split_rows(rows_of(*pairs))["train"].features["label"].names == names


@pytest.mark.parametrize("more", [[0], [488], [347, 0, 112, 0, 12, 323, 1, 0, 0, 1, 13], [50, 1, 0, 0, 1, 0, 0, 59, 0]])
def test_the_smallest_class_allowed_is_in_every_part(more):
    counts = {f"class{index}": ROWS_PER_CLASS + count for index, count in enumerate([0, *more])}
    for part in split_rows(rows_of(*plenty(**counts))).values():
        assert set(part["label"]) == set(range(len(counts)))


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert"])
def test_a_recipe_follows_the_encoder(tiny_checkpoints, architecture):
    profile = replace(PROFILES["quick"], seed=7)
    recipe, own = own_recipe(OWN_DATA_RECIPE, "a/quotes.csv", 500, profile, tiny_checkpoints[architecture])
    assert recipe.target_modules == (("query", "value") if architecture in ("bert", "roberta") else ("all-linear",))
    assert (recipe.dataset, recipe.base_model) == ("quotes.csv", tiny_checkpoints[architecture])
    assert recipe.max_length == (62 if architecture == "roberta" else 64)  # its positions begin behind the padding's
    assert (recipe.n_train, own.n_train, own.max_epochs, own.seed) == (None, None, None, 7)


@pytest.mark.parametrize("name", ["imdb/", "my file (1).csv", "a--b..csv"])
def test_data_of_ones_own_are_not_the_hub_s_whatever_their_name(tiny_checkpoints, tmp_path, name):
    (tmp_path / "imdb").mkdir()
    recipe, own = own_recipe(OWN_DATA_RECIPE, str(tmp_path / name), 500, PROFILES["hub"], tiny_checkpoints["bert"])
    assert dataset_name(recipe.dataset, own) == name and dataset_revision(recipe.dataset, own) == {}


def test_the_rate_follows_from_the_rows_that_train(tiny_checkpoints):
    base, rates = tiny_checkpoints["bert"], []
    for usable in (1_428, 1_430):
        rates.append(own_recipe(OWN_DATA_RECIPE, "own.csv", usable, PROFILES["quick"], base)[0].learning_rate)
    assert rates[0] == FEW_ROWS_RATE != rates[1]
