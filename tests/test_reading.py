"""`tables.read_rows`: every row of a file comes back as it is, or one error names the file and what is wrong."""

import csv
import io
import json
import unicodedata

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.tables import ENDINGS, read_rows

few = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CURIOUS = [
    "", " ", "<br />", "\u200b\u200e", "null", "NaN", "None", "NA", "1e5", "-0.0", "01", "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f468\u200d\U0001f469", 'she said "no", twice', "one; two, three\tfour", "line\r\nbreak and\u2028more",
    "=1+1", "a\0b\x1b[2J", "x" * 3_000,
]  # fmt: skip
TEXTS = st.sampled_from(CURIOUS) | st.text(st.characters(exclude_categories=("Cc", "Cs", "Cf")), max_size=30)


def written(pairs: list[tuple], ending: str) -> bytes:
    """(text, label) pairs as a program writes them to a file of that ending."""
    frame = pd.DataFrame(pairs, columns=["text", "label"], dtype=object)
    if ending == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer)
        return buffer.getvalue()
    if ending.startswith(".json"):
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")).encode()
    return frame.to_csv(index=False, sep="\t" if ending == ".tsv" else ",", lineterminator="\n").encode()


@pytest.fixture
def read(tmp_path):
    """`read(content, ending)` gives the (text, label) pairs of a file `mine`."""

    def pairs(content: bytes, ending: str = ".csv") -> list[list]:
        (tmp_path / f"mine{ending}").write_bytes(content)
        return read_rows(tmp_path / f"mine{ending}", "text", "label").values.tolist()

    return pairs


@few
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), st.sampled_from(ENDINGS))
@example([("a", "None"), ("b", "01"), ("c", "nan"), ("d", "NA"), ("e", "")], ".csv")
@example([("a", "None"), ("b", "01"), ("c", "nan"), ("d", "NA"), ("e", "")], ".jsonl")
@example([('"Quiet, ', "0"), ('and so it ends"', "1")], ".tsv")
def test_texts_and_labels_are_what_is_written(tmp_path, pairs, ending):
    path = tmp_path / f"mine{ending}"
    path.write_bytes(written(pairs, ending))
    invisible = "\u200b\u200e"
    wanted = [[value.strip() if value.strip(invisible).strip() else None for value in pair] for pair in pairs]
    wanted = [[text, label and unicodedata.normalize("NFC", label)] for text, label in wanted]
    rows = read_rows(path, "text", "label")
    assert rows.values.tolist() == wanted and list(rows.index) == list(range(1, len(pairs) + 1))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'"A start\t0\nmiddle\t1\nan end"\t1\n5" off\t0\n', ['"A start 0', "middle 1", 'an end" 1', '5" off 0']),
        (b'"Great" film\t1\nno\t0\n', ['"Great" film 1', "no 0"]),
        (b'"a ""good""\tone"\tyes\nb\tno\n', ['a "good"\tone yes', "b no"]),
    ],
    ids=["lone", "balanced", "around a field"],
)
def test_quotes_of_a_tsv_are_characters_unless_they_enclose_a_field(read, content, rows):
    assert read(b"text\tlabel\n" + content, ".tsv") == [row.rsplit(" ", 1) for row in rows]
    with pytest.raises(ValueError, match="a quote that opens a field is not closed"):
        read(b'text\tlabel\n"A start\t0\nmiddle\t1\nuneven\n"5\t1\n', ".tsv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_excel_saves_is_read(read, encoding):
    rows = [['one\ntwo, "three"', "caf\u00e9"], ["plain", "1"], ["short", ""]]
    for ending, separator in ((".csv", ","), (".tsv", "\t"), (".csv", ";"), (".txt", "\t"), (".csv", "sep=|")):
        buffer = io.StringIO(f"{separator}\r\n" if len(separator) > 1 else "", newline="")
        buffer.seek(0, io.SEEK_END)
        separator = separator[-1]
        csv.writer(buffer, delimiter=separator).writerows([["text", "label"], *rows])
        assert read(buffer.getvalue().encode(encoding), ending) == [*rows[:2], ["short", None]]
    as_spark_does = b'text|label\n"a \\"good\\" one"|yes\nb|no\n'
    assert read(as_spark_does, ".csv") == [['a "good" one', "yes"], ["b", "no"]]


def test_numbers_with_gaps_are_whole_labels(read):
    content = b'{"text": "a", "label": 1}\n{"text": "b", "label": null}\n{"text": 7, "label": 2.0}\n{"text": "d"}\n'
    assert read(content, ".jsonl") == [["a", "1"], ["b", None], ["7", "2"], ["d", None]]
    for values in ([2**53 + 1, None, 3], [1.0, None, 3.0]):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": ["a", "b", "c"], "label": pa.array(values)}), buffer)
        labels = [label for _, label in read(buffer.getvalue(), ".parquet")]
        assert labels == [str(int(values[0])), None, "3"]


def test_json_may_be_an_array(read):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert read(json.dumps(rows, indent=1).encode(), ".json") == [["a", "1"], ["b", "0"]]


def test_columns_and_labels_are_compared_in_one_unicode_form(tmp_path):
    composed, apart = (unicodedata.normalize(form, "\u00e9tiquette") for form in ("NFC", "NFD"))
    (tmp_path / "a.csv").write_text(f"text,{apart}\none,{composed}\ntwo,{apart}\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.csv", "text", composed).values.tolist() == [["one", composed], ["two", composed]]


def test_what_datasets_wrote_has_the_names_of_its_labels(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows).save_to_disk(tmp_path / "alone")
    for split in ("train", "test"):
        (tmp_path / "hub" / split).mkdir(parents=True)
        for shard in range(2):
            rows.to_parquet(tmp_path / "hub" / split / f"{split}-0000{shard}-of-00002.parquet")
    for name in ("rows.parquet", "saved/test", "alone", "hub/train"):
        wanted = [["a", "good"], ["b", "bad"], ["c", None]] * (2 if "hub" in name else 1)
        assert read_rows(tmp_path / name, "text", "label").values.tolist() == wanted, name
    (tmp_path / "none").mkdir()
    for name, held in (
        ("saved", "test/state.json, train/"),
        ("hub", "test/test-, train/train-"),
        ("none", "no Parquet"),
    ):
        with pytest.raises(ValueError, match=f"^{name} is no folder of a dataset that can be read: it holds {held}"):
            read_rows(tmp_path / name, "text", "label")


TEXT = [f"what somebody wrote, number {index}" for index in range(40)]
HALVES = ["yes", "no"] * 20


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"": range(40), "Review": TEXT, "Sentiment": HALVES, "year": HALVES}, ("Review", "Sentiment")),
        ({"Unnamed: 0": range(40), "what": TEXT, "verdict": HALVES, "id": range(40)}, ("what", "verdict")),
        (
            {"text": TEXT, "verdict": HALVES, "year": HALVES},
            "2 columns may hold the label; .*'text', 'verdict', 'year'",
        ),
        ({"text": TEXT, "label": HALVES, "comment": TEXT}, "2 columns may hold the text; name it with --text-column"),
        ({"text": TEXT, "id": range(40)}, "no column may hold the label"),
        ({"a first row and no header, " * 2: TEXT, "no": HALVES}, "no column may hold the text"),
    ],
)
def test_columns_without_a_name_are_guessed_and_said(tmp_path, capsys, columns, found):
    pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False)
    if isinstance(found, str):
        with pytest.raises(ValueError, match=rf"^a\.csv: {found}"):
            read_rows(tmp_path / "a.csv")
        return
    assert read_rows(tmp_path / "a.csv").values.tolist() == list(map(list, zip(TEXT, HALVES, strict=True)))
    said = f"a.csv: the text is in column {found[0]!r}, the label is in column {found[1]!r}\n"
    assert capsys.readouterr().err == said
    assert len(read_rows(tmp_path / "a.csv", label_column=found[1])) == 40


def test_parquet_with_a_doubled_column_or_values_that_are_no_texts_is_refused(tmp_path):
    path, texts, labels = tmp_path / "a.parquet", pa.array(["a"]), pa.array(["1"])
    halves = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")]
    )
    for columns in ((texts, texts, labels), (pa.array([b"a"]), labels), (halves, labels)):
        names = ["text"] * (len(columns) - 1) + ["label"]
        pq.write_table(pa.Table.from_arrays(list(columns), names=names), path)
        with pytest.raises(ValueError, match=r"^a\.parquet\b"):
            read_rows(path, "text", "label")


@few
@given(st.binary(max_size=60), st.sampled_from(ENDINGS), st.booleans())
@example(b"\xff\xfet\x00e", ".csv", False)
@example(b"[" * 2_000, ".jsonl", False)
@example(b'{"\\ud800": 1, "text": 2, "label": 3}', ".jsonl", False)
def test_any_bytes_are_rows_or_one_error_that_names_the_file(tmp_path, content, ending, after_a_good_row):
    if after_a_good_row:
        good = written([("fine", "1"), ("bad", "2")], ending)
        content = good[: len(good) // 2] + content + good[len(good) // 2 :]
    (tmp_path / f"mine{ending}").write_bytes(content)
    try:
        assert len(read_rows(tmp_path / f"mine{ending}", "text", "label"))
    except ValueError as error:
        assert str(error).startswith("mine") and not isinstance(error, UnicodeError)
