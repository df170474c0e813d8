from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from helpers import data
from helpers.data import (
    clean,
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

QUICK = PROFILES["quick"]
IDS = [101, *range(1, 19), 102]


@pytest.fixture(scope="module")
def imdb() -> Dataset:
    return load_reviews("imdb", QUICK)["train"]


def test_clean_removes_breaks_and_folds_white_space():
    assert clean("  One.<br /><br />Two.<BR>\n\tThree  ") == "One. Two. Three"
    assert clean("a < b and b > c") == "a < b and b > c"


def test_the_embedded_reviews_are_whole_clean_and_labelled(imdb):
    assert len(imdb) == 25_000
    assert sum(imdb["label"]) == 12_500
    assert not any("<br" in text or "  " in text for text in imdb["text"])
    assert imdb.features["label"].names == ["NEGATIVE", "POSITIVE"]
    sentences = load_reviews("glue/sst2", QUICK)["train"]
    assert (len(sentences), sum(sentences["label"])) == (8_530, 4_265)


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
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    for rows in splits.values():
        assert abs(sum(rows["label"]) / len(rows) - 0.5) < 0.005


def test_a_seed_fixes_the_split_and_the_test_rows_do_not_depend_on_the_training_rows(toy_reviews):
    first = split_reviews(toy_reviews, 40, 20, 20, seed=1)
    assert first["train"]["text"] == split_reviews(toy_reviews, 40, 20, 20, seed=1)["train"]["text"]
    assert first["train"]["text"] != split_reviews(toy_reviews, 40, 20, 20, seed=2)["train"]["text"]
    rest = split_reviews(toy_reviews, None, 20, 20, seed=1)
    assert len(rest["train"]) == 160
    assert rest["test"]["text"] == first["test"]["text"]


def test_too_few_rows_for_a_split_are_an_error(toy_reviews):
    with pytest.raises(ValueError, match="200 reviews are too few"):
        split_reviews(toy_reviews, 150, 50, 50)


def test_full_takes_every_review(imdb):
    splits = load_splits(RECIPES["qlora_bert"], PROFILES["full"])
    assert sum(len(rows) for rows in splits.values()) == len(drop_duplicates(imdb))


def test_an_unknown_embedded_dataset_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=r"'yelp'.*imdb.*glue/sst2"):
        load_reviews("yelp", QUICK)


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


def test_an_unknown_truncation_is_refused_even_for_a_short_text():
    with pytest.raises(ValueError, match="'middle' is not one of head, tail, head\\+tail"):
        truncate(IDS[:3], 10, "middle")


def test_tokenize_cuts_but_does_not_pad(imdb):
    tokenizer = load_tokenizer(EMBEDDED_BERT)
    rows = Dataset.from_dict({"text": ["Fine.", imdb[0]["text"]], "label": [1, imdb[0]["label"]]})
    tokens = tokenize(rows, tokenizer, 32, "tail")
    assert list(tokens["length"]) == [4, 32] == [len(ids) for ids in tokens["input_ids"]]
    assert list(token_lengths(rows, tokenizer)) == [4, len(tokenizer(imdb[0]["text"])["input_ids"])]
    assert tokenizer.decode(tokens[0]["input_ids"]) == "[CLS] fine. [SEP]"


@pytest.fixture
def fake_hub(monkeypatch):
    """Stands for the hub: `hub[(path, config)]` holds what load_dataset returns."""
    hub = {}
    monkeypatch.setattr(data, "load_dataset", lambda path, config: hub[path, config])
    return hub


def _rows(texts, labels, text="text", label="label"):
    return Dataset.from_dict({text: texts, label: labels})


def test_the_hub_s_own_test_split_is_kept_and_never_trained_on(fake_hub):
    train = [f"Review {index}<br />" for index in range(40)]
    fake_hub["stanfordnlp/imdb", None] = DatasetDict(
        train=_rows([*train, "SEEN before"], [index % 2 for index in range(41)]),
        test=_rows(["seen  before", "new"], [0, 1]),
        unsupervised=_rows(["x"], [-1]),
    )
    recipe = replace(RECIPES["lora_distilbert_qv"], n_validation=4)
    splits = load_splits(recipe, PROFILES["hub"])
    assert splits["test"]["text"] == ["seen before", "new"]
    assert (len(splits["train"]), len(splits["validation"])) == (36, 4)
    assert "SEEN before" not in [*splits["train"]["text"], *splits["validation"]["text"]]


def test_sst2_is_tested_on_its_validation_rows_as_its_test_labels_are_hidden(fake_hub):
    label = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    make = lambda texts, labels: Dataset.from_dict({"sentence": texts, "label": labels}).cast(label)  # noqa: E731
    fake_hub["nyu-mll/glue", "sst2"] = DatasetDict(
        train=make([f"sentence {index}" for index in range(60)], [index % 2 for index in range(60)]),
        validation=make(["held", "out"], [0, 1]),
        test=make(["hidden"], [-1]),
    )
    splits = load_splits(replace(RECIPES["lora_bert_sst2"], n_train=20, n_validation=10), PROFILES["hub"])
    assert splits["test"]["text"] == ["held", "out"]
    assert (len(splits["train"]), len(splits["validation"])) == (20, 10)


def test_word_labels_and_other_column_names_are_read(fake_hub):
    rows = _rows([f"r{i}" for i in range(50)], ["positive", "Negative "] * 25, "review", "sentiment")
    fake_hub["dipanjanS/imdb_sentiment_finetune_dataset20k", None] = DatasetDict(train=rows)
    loaded = load_reviews("dipanjanS/imdb_sentiment_finetune_dataset20k", PROFILES["hub"])
    assert loaded["train"]["label"][:2] == [1, 0]
    splits = load_splits(RECIPES["qlora_bert"], PROFILES["hub"])  # a tenth each for validation and test
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 40, "validation": 5, "test": 5}


def test_an_unreachable_hub_is_one_error_that_names_the_way_out(monkeypatch):
    def refuse(path, config):
        raise OSError("no route to host")

    monkeypatch.setattr(data, "load_dataset", refuse)
    with pytest.raises(ConnectionError, match=r"stanfordnlp/imdb.*PROFILE=quick"):
        load_reviews("imdb", PROFILES["hub"])
