"""What people really have, drawn by hypothesis: each input gives a right answer or one clear error of ours."""

import csv
import io
import json
import math
import re
from dataclasses import asdict, fields, replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from helpers.base.tables import READERS, read_rows
from helpers.base.texts import clean, is_blank, text_key, text_problem
from helpers.data import LABELS, drop_duplicates, truncate
from helpers.inference import SentimentClassifier
from helpers.models import load_tokenizer
from helpers.own_data import LENGTH_SAMPLE, examine, split_rows
from helpers.profiles import PROFILES, Profile
from helpers.recipe import TRUNCATIONS, Recipe
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord

few = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

CURIOUS = [
    "", " ", "\t\n ", "<br />", "\u200b\u200e", "\x1b[2J", "a\x07b", "null", "NaN", "None", "1e5", "-0.0",
    "\U0001f600\U0001f468\u200d\U0001f469", "\u05e9\u05dc\u05d5\u05dd \u202eabc", "<script>alert(1)</script><p>good",
    "\ufeffmark", 'she said "no", twice', "one; two, three\tfour", "line\r\nbreak\rand\u2028more", "=1+1", "x" * 3_000,
    "the movie " * 900,
]  # fmt: skip
TEXTS = st.sampled_from(CURIOUS) | st.text(max_size=30)
HALVES = st.sampled_from(["\ud83d", "good \udc00 film", "\ude00\ud83d"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | HALVES
ANYTHING = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


def wanted(text: str) -> str | None:
    return None if is_blank(text) else clean(text) or None


def has_control(text: str) -> bool:
    return any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text.strip())


def written(pairs: list[tuple], ending: str) -> bytes:
    """(text, label) pairs as a file of that ending has them."""
    if ending == ".parquet":
        texts, labels = (pa.array(values, pa.string()) for values in zip(*pairs, strict=True))
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": texts, "label": labels}), buffer)
        return buffer.getvalue()
    if ending == ".jsonl":
        return "\n".join(json.dumps({"text": text, "label": label}) for text, label in pairs).encode()
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t" if ending == ".tsv" else ",").writerows([("text", "label"), *pairs])
    return buffer.getvalue().encode()


def read(folder, content: bytes, ending: str) -> pd.DataFrame:
    path = folder / f"mine{ending}"
    path.write_bytes(content)
    return read_rows(path, "text", "label")


@few
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), st.sampled_from(list(READERS)))
def test_every_row_of_a_file_comes_back_or_is_named(tmp_path, pairs, ending):
    if any("\0" in value for pair in pairs for value in pair) and ending in (".csv", ".tsv"):
        with pytest.raises(ValueError, match=r"mine.*line [\d,]+ has a NUL character"):
            read(tmp_path, written(pairs, ending), ending)
        return
    bad = [row for row, (_, label) in enumerate(pairs, start=1) if has_control(label)]
    if bad:
        with pytest.raises(ValueError, match=rf"^mine\{ending}, row {bad[0]}, column 'label': .* control character"):
            read(tmp_path, written(pairs, ending), ending)
        return
    rows = read(tmp_path, written(pairs, ending), ending)
    assert list(rows.index) == list(range(1, len(pairs) + 1))
    assert rows["text"].tolist() == [wanted(text) for text, _ in pairs]
    assert rows["label"].tolist() == [label.strip() or None for _, label in pairs]


@few
@given(st.lists(st.tuples(ANYTHING, ANYTHING), min_size=1, max_size=5))
def test_mixed_types_are_read_or_named(tmp_path, pairs):
    def wrong(value, label):
        if isinstance(value, str):
            return text_problem(value) is not None or (label and has_control(value))
        return isinstance(value, (list, dict))

    places = [(row, "text") for row, (text, _) in enumerate(pairs, start=1) if wrong(text, False)]
    places += [(row, "label") for row, (_, label) in enumerate(pairs, start=1) if wrong(label, True)]
    if places:
        row, column = places[0]
        with pytest.raises(ValueError, match=rf"^mine\.jsonl, row {row}, column '{column}': the value "):
            read(tmp_path, written(pairs, ".jsonl"), ".jsonl")
        return
    rows = read(tmp_path, written(pairs, ".jsonl"), ".jsonl")
    assert len(rows) == len(pairs)
    for (_, label), found in zip(pairs, rows["label"], strict=True):
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        missing = label is None or label != label or not str(label).strip()
        assert found == (None if missing else str(label).strip())


@few
@given(st.binary(max_size=60), st.sampled_from(list(READERS)), st.booleans())
@example(b"\xff\xfet\x00e", ".csv", False)
@example(b"[" * 100_000, ".jsonl", False)
@example(b'{"text": "a", "text": "b", "label": 1}', ".jsonl", False)
@example(b'{"\\ud800": 1, "text": 2, "label": 3}', ".jsonl", False)
@example(b"\xef\xbb\xbf", ".tsv", False)
def test_any_bytes_are_rows_or_one_error_that_names_the_file(tmp_path, content, ending, after_a_good_row):
    if after_a_good_row:
        good = written([("fine", "1"), ("bad", "2")], ending)
        content = good[: len(good) // 2] + content + good[len(good) // 2 :]
    try:
        assert len(read(tmp_path, content, ending))
    except ValueError as error:
        assert str(error).startswith("mine") and not isinstance(error, UnicodeError)


BASE = [(f"the {word} {index}", label) for label, word in (("no", "bad"), ("yes", "good")) for index in range(15)]


@few
@given(st.lists(st.tuples(st.none() | TEXTS, st.sampled_from(["no", "yes", None, "  "])), max_size=20))
def test_no_row_is_lost_uncounted(tiny_checkpoints, tmp_path, pairs):
    rows = read(tmp_path, written(BASE + pairs, ".parquet"), ".parquet")
    findings = examine(rows, load_tokenizer(tiny_checkpoints["bert"]), 16)
    incomplete = set(findings.missing_texts) | set(findings.missing_labels)
    left = sum(findings.classes.values())
    assert len(incomplete) + len(findings.duplicates) + len(findings.conflicts) + left == len(BASE) + len(pairs)
    assert len(findings.lengths) == left and findings.table().loc["rows", "count"] == len(rows)
    splits = split_rows(rows, drop_incomplete=True)
    kept = [row for part in splits.values() for row in part["row"]]
    assert len(kept) == len(set(kept)) == left
    assert not set(kept) & {*incomplete, *findings.duplicates, *findings.conflicts}
    if incomplete:
        with pytest.raises(ValueError, match=rf"^{len(incomplete)} of {len(rows)} rows are incomplete"):
            split_rows(rows)


@few
@given(TEXTS | HALVES)
def test_cleaning_and_keys_take_any_text(text):
    assert clean(clean(text)) == clean(text) and "\n" not in clean(text)
    assert text_key(f" {text.upper()}\n") == text_key(text.upper())
    assert (text_problem(text) is None) == all(not 0xD800 <= ord(character) < 0xE000 for character in text)
    assert is_blank("\u200b" + text) == is_blank(text)


@pytest.mark.parametrize("value", [None, math.nan, 3, b"bytes", ["text"]])
def test_what_is_no_string_is_named_with_its_type(value):
    assert f"({type(value).__name__}), not a string" in text_problem(value)


@few
@given(st.integers(0, 40), st.integers(-2, 50), st.sampled_from([*TRUNCATIONS, "middle", None]))
def test_truncation_keeps_both_ends_and_order(body, max_length, truncation):
    ids = [101, *range(body), 102]
    if max_length < 2 or truncation not in TRUNCATIONS:
        with pytest.raises(ValueError, match=r"max_length=|truncation="):
            truncate(ids, max_length, truncation)
        return
    cut = truncate(ids, max_length, truncation)
    assert len(cut) == min(len(ids), max_length) and (cut[0], cut[-1]) == (101, 102)
    assert cut[1:-1] == sorted(set(cut[1:-1]))


# -- settings and records --------------------------------------------------------------------------------------------

NAMES = [field.name for field in fields(Recipe) if field.name != "assumed"]


@settings(few, max_examples=60)
@given(st.sampled_from(NAMES), ANYTHING | st.just("../escape"))
@example("base_model", "x" * 5_000)
def test_a_recipe_is_made_or_names_the_field(name, value):
    try:
        recipe = replace(RECIPES["lora_bert_sst2"], **{name: value})
    except ValueError as error:
        assert str(error).startswith(("Recipe.", f"Recipe.{name} is ")[name != "base_model"]) and len(str(error)) < 600
    else:
        recipe.lora_config()
        json.dumps(asdict(recipe)).encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", "0.001"), ("learning_rate", math.nan), ("weight_decay", math.inf), ("lora_dropout", None),
        ("target_modules", "query"), ("modules_to_save", "pooler"), ("modules_to_save", (" ",)), ("r", True),
        ("name", "../escape"), ("name", "a\nb"), ("base_model", " "), ("base_model", None), ("dataset", "a\ud800.csv"),
        ("class_weights", "even"), ("use_rslora", 1), ("overrides", ("r",)), ("warmup_ratio", True),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_trained_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^Recipe\.{name} is "):
        replace(RECIPES["lora_bert_sst2"], **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "../up"), ("name", ""), ("name", " x"), ("embedded", "yes"), ("n_train", 0), ("n_test", "10"),
        ("n_validation", 2.0), ("max_length", 7), ("max_epochs", True), ("seed", -1), ("seed", 2**32), ("seed", None),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_run_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^Profile\.{name} is "):
        replace(PROFILES["quick"], **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "42"), ("seed", True), ("n_test", None), ("n_test", 3.5), ("metrics", []), ("correct", None),
        ("metrics", {"accuracy": "high"}), ("confusion_matrix", [[1.5]]), ("history", {"train": {}}), ("run", 3),
    ],
)  # fmt: skip
def test_a_record_with_a_field_of_another_type_is_refused(record, tmp_path, name, value):
    (tmp_path / "mine.json").write_text(json.dumps({**asdict(record), name: value}))
    with pytest.raises(ValueError, match=rf"^mine\.json: {name} is .*; it must be "):
        RunRecord.load(tmp_path / "mine.json")


@few
@given(st.sampled_from([field.name for field in fields(Profile)]), ANYTHING | st.integers(-3, 3))
def test_a_profile_is_made_or_names_the_field(name, value):
    try:
        profile = replace(PROFILES["quick"], **{name: value})
    except ValueError as error:
        assert str(error).startswith(f"Profile.{name} is ")
    else:
        assert profile.tokens(512) >= 8 and profile.epochs(3) >= 1


@settings(few, max_examples=60)
@given(st.data())
def test_a_record_loads_as_it_is_or_names_file_and_field(record, tmp_path, data):
    study = StudyRecord("rank", "python -m helpers.studies", "quick", "cpu", {}, [{"r": 8}])
    whole = data.draw(st.sampled_from([record, study]), label="record")
    content, path = asdict(whole), tmp_path / "mine.json"
    name = data.draw(st.sampled_from(list(content)), label="field")
    content[name] = data.draw(ANYTHING | st.just(content[name]), label="value")
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        loaded = type(whole).load(path)
    except ValueError as error:
        assert str(error).startswith(f"mine.json: {name} is ")
        assert content[name] != asdict(whole)[name]
    else:
        assert json.dumps(asdict(loaded)) == json.dumps(content)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'"text"', b"{", b"\xff\xfe{}", b"[" * 100_000, b"{}", b'{"extra": 1}']
)
@pytest.mark.parametrize("kind", [RunRecord, StudyRecord])
def test_a_file_that_is_no_record_says_so(tmp_path, kind, content):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^mine\.json") as error:
        kind.load(tmp_path / "mine.json")
    assert not isinstance(error.value, UnicodeError)


# -- predictions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tiny_checkpoints, fp32) -> SentimentClassifier:
    folder = tiny_checkpoints["bert"]
    id2label = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(folder, id2label=id2label)
    return SentimentClassifier(model, load_tokenizer(folder), fp32, max_length=16)


@few
@given(st.lists(TEXTS | TEXTS | HALVES | ANYTHING, max_size=5))
def test_every_text_is_answered_or_the_first_that_cannot_be_is_named(classifier, texts):
    bad = [index for index, text in enumerate(texts) if text_problem(text)]
    if not bad:
        answers = classifier.predict(texts)
        assert len(answers) == len(texts)
        assert all(answer.label in LABELS and 0.5 <= answer.score <= 1 for answer in answers)
        return
    kind = ValueError if isinstance(texts[bad[0]], str) else TypeError
    with pytest.raises(kind, match=rf"^texts must be strings, and text {bad[0]} (is|has) ") as error:
        classifier.predict(texts)
    assert not isinstance(error.value, UnicodeError)


@pytest.mark.parametrize("texts", [None, 3, b"good", {"good": 1}, pd.DataFrame({"text": ["good"]}), math.nan])
def test_what_is_no_list_of_texts_is_refused(classifier, texts):
    with pytest.raises(
        TypeError, match=rf"^texts must be a string or a list of strings, not {type(texts).__name__}\.$"
    ):
        classifier.predict(texts)


def test_a_megabyte_is_answered_as_what_is_kept_of_it(classifier):
    long = "the movie was good " * 55_000
    assert len(long) > 1_000_000
    assert classifier.predict([long, "x" * 1_000_000])[0] == classifier.predict(long[:400])[0]


# -- files that are large, or of many classes ------------------------------------------------------------------------


def test_a_file_of_200_000_rows_is_read_and_examined_by_a_sample(tiny_checkpoints, tmp_path):
    pairs = [(f"{index} the movie was good", "rare" if index % 1_000 == 0 else "common") for index in range(200_000)]
    rows = read(tmp_path, written(pairs, ".csv"), ".csv")
    findings = examine(rows, load_tokenizer(tiny_checkpoints["bert"]), 6)
    assert findings.classes == {"common": 199_800, "rare": 200} and findings.skewed
    assert len(findings.lengths) == LENGTH_SAMPLE
    table = findings.table()
    assert table.loc["longer than 6 tokens"].tolist() == [200_000, "100%, will be cut, by 10,000 rows drawn"]
    assert table.loc["largest class over smallest", "count"] == 999


def test_500_classes_are_split_and_listed_in_short(tiny_checkpoints):
    pairs = [(f"text {index} of {label}", f"class {label:03d}") for label in range(500) for index in range(12)]
    rows = pd.DataFrame(pairs, columns=["text", "label"], index=pd.RangeIndex(1, len(pairs) + 1, name="row"))
    table = examine(rows, load_tokenizer(tiny_checkpoints["bert"]), 16).table()
    assert len(table) == 27 and table.loc["481 more classes"].tolist() == [5_772, "12 to 12 rows each"]
    splits = split_rows(rows)
    assert all(len(set(part["label"])) == 500 for part in splits.values())
    assert len(drop_duplicates(splits["train"])) == len(splits["train"])
    with pytest.raises(ValueError) as error:
        split_rows(rows.iloc[5:].assign(label=rows["label"] + "x" * 1_000))
    assert len(str(error.value)) < 400 and re.search(r"1 of 500 classes .*'class 000x+\.\.\. \(7\)", str(error.value))
