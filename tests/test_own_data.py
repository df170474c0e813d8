"""A file of one's own: reading, findings, split. Training on it is in test_train.py."""

from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.base.tables import read_rows
from helpers.base.texts import text_key
from helpers.models import load_tokenizer
from helpers.own_data import (
    FEW_ROWS_RATE,
    OWN_DATA_RECIPE,
    ROWS_PER_CLASS,
    Findings,
    examine,
    own_recipe,
    split_rows,
)
from helpers.profiles import PROFILES
from helpers.recipes import RECIPES


def rows_of(*pairs) -> pd.DataFrame:
    """What `read_rows` returns, from (text, label) pairs."""
    return pd.DataFrame(pairs, columns=["text", "label"], index=pd.RangeIndex(1, len(pairs) + 1, name="row"))


def plenty(**counts: int) -> list[tuple[str, str]]:
    return [(f"{label} text {index}", label) for label, count in counts.items() for index in range(count)]


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"Comment here": ["Good,\n <br />good", "b\tc", "d"], "stars": [3, 1, 10]})


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_every_format_gives_the_same_rows(frame, tmp_path, ending):
    path = tmp_path / f"my reviews{ending}"
    if ending == ".parquet":
        frame.to_parquet(path)
    elif ending == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    rows = read_rows(path, "Comment here", "stars")
    assert rows.values.tolist() == [["Good, good", "3"], ["b c", "1"], ["d", "10"]]
    assert list(rows.index) == [1, 2, 3]


def test_labels_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufefftext,label\na,None\nb, NA \nc,01\nd,\n,1\n".encode())  # with the mark that Excel writes
    assert read_rows(path, "text", "label").values.tolist() == [
        ["a", "None"], ["b", "NA"], ["c", "01"], ["d", None], [None, "1"],
    ]  # fmt: skip


def test_numbers_in_a_column_with_gaps_stay_whole(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"t": "a", "l": 1}\n{"t": "b", "l": null}\n{"t": null, "l": 2}\n{"t": 7, "l": 2.5}\n{"t": " "}\n')
    assert read_rows(path, "t", "l").values.tolist() == [
        ["a", "1"],
        ["b", None],
        [None, "2"],
        ["7", "2.5"],
        [None, None],
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"x", r"ends in '.xlsx'; it must be one of .csv, .tsv, .jsonl, .parquet"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b" \n\n", "a.csv is empty"),
        ("a.csv", b"text,label\n", "has columns but no rows"),
        ("a.csv", "text,label\ncaf\xe9,1\n".encode("latin-1"), r"not UTF-8 \(byte 0xe9 at 14\).*iconv"),
        ("a.jsonl", '{"text": "caf\xe9"}'.encode("latin-1"), "not UTF-8"),
        ("a.csv", b"comment,stars\na,1\n", "no column 'text'; it has 'comment', 'stars'"),
        ("a.csv", b"text,stars\na,1\n", "no column 'label'; it has 'text', 'stars'"),
        ("a.csv", b"text;label\na;1\n", "no column 'text'; it has 'text;label'. They seem to be separated by ';'"),
        ("a.csv", b'text,label\n"a,1\n', "no .csv file that can be read: row 1 .*unexpected end of data"),
        ("a.csv", b'text,label\nx,1\n"a,1\nb,2\n"c,3\n', r"row 2 .*up to line 5: .* own quotes are doubled"),
        ("a.csv", b"text,label\nHello, world,1\n", "row 1 has 3 fields, and the header has 2. Put a text with a ','"),
        ("a.csv", b"text,label\na,1\nHello, world,1\n", "row 2 has 3 fields"),
        ("a.csv", b"text,label,text\na,1,b\n", "has 2 columns 'text'; rename all but one"),
        ("a.csv", b"text,label\na,1\nb\0c,2\n", "line 3 has a NUL character"),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "line 1 has a NUL character.*save the file as UTF-8"),
        ("a.csv", "text,label\na,1\n".encode("utf-16")[:-1], "holds text that cannot be decoded: 'utf-16"),
        ("a.csv", b"text,label\nfine,1\ncaf\xe9,1\n", "in line 3"),
        ("a.csv", b'text,label\na,"1\n2"\n', r"row 1, column 'label': the value '1\\n2' has the control character"),
        ("a.csv", b"\xef\xbb\xbf", "a.csv is empty"),
        ("a.jsonl", b'{"text": "a", "label": 1}\nnot json\n', r"can be read: row 2 \(line 2\): Expecting value"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n\n[1]\n', r"row 2 \(line 3\) is a list; each line must be an object"),
        ("a.jsonl", b'{"text": "a", "text": "b", "label": 1}\n', "row 1 .*names a column twice, of 'text', 'text'"),
        ("a.jsonl", b'{"text": "a", "label": {"b": 1}}', r"row 1, column 'label': the value is \{'b': 1\} \(dict\)"),
        ("a.jsonl", b'{"text": "a\\ud83d", "label": 1}', "row 1, column 'text': the value has half a character"),
        ("a.parquet", b"PAR1 not really", "no .parquet file that can be read"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name, "text", "label")


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["1"])], names=["text", "text", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"^a\.parquet has 2 columns 'text'; rename all but one"):
        read_rows(tmp_path / "a.parquet", "text", "label")


def test_texts_in_parquet_that_are_not_utf8_or_no_texts_are_refused(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea")]
    )
    for values, message in (
        (broken, "cannot be decoded"),
        (pa.array([b"a"]), "row 1, column 'text': the value is b'a'"),
    ):
        pq.write_table(pa.table({"text": values, "label": ["1"]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"^a\.parquet.*{message}") as error:
            read_rows(tmp_path / "a.parquet", "text", "label")
        assert not isinstance(error.value, UnicodeError)


def test_one_column_cannot_be_both(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    with pytest.raises(ValueError, match="cannot both be in column 'text'"):
        read_rows(tmp_path / "a.csv", "text", "text")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_breaks_quotes_and_marks_of_the_byte_order_are_read(tmp_path, encoding):
    content = 'text,label\r\n"one\r\ntwo, ""three""",caf\u00e9,\r\n\r\nplain,1\r\nshort\r\n'
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    rows = read_rows(tmp_path / "a.csv", "text", "label")
    assert rows.values.tolist() == [['one two, "three"', "caf\u00e9"], ["plain", "1"], ["short", None]]


def test_large_whole_numbers_with_gaps_keep_their_digits(tmp_path):
    labels = pa.array([2**53 + 1, None, 3])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet", "text", "label")["label"].tolist() == ["9007199254740993", None, "3"]
    labels = pa.array([Decimal("1.0"), None, Decimal("2.5")])
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet", "text", "label")["label"].tolist() == ["1", None, "2.5"]


def test_nan_is_a_word_among_labels_whatever_the_order_of_rows():
    for words in (("10", "nan", "9"), ("nan", "9", "10")):
        pairs = [(f"text {label} {index}", label) for label in words for index in range(12)]
        assert split_rows(rows_of(*pairs))["train"].features["label"].names == ["10", "9", "nan"]


@pytest.mark.parametrize(("counts", "skewed"), [((20, 60), False), ((20, 61), True), ((5,), False), ((), False)])
def test_classes_are_skewed_above_three_to_one(counts, skewed):
    classes = {str(index): count for index, count in enumerate(counts)}
    findings = Findings(100, [], [], [], [], classes, np.array([]), 16)
    assert findings.skewed is skewed
    assert ("largest class over smallest" in findings.table().index) is skewed


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_rows(tmp_path / "a.csv", "text", "label")


def test_findings_count_what_is_planted(tiny_checkpoints):
    rows = rows_of(
        ("the movie was good", "yes"),
        ("The  movie WAS good", "yes"),  # 2: duplicate
        ("the plot was bad", "no"),
        ("The plot was bad", "yes"),  # 4: conflict with 3
        ("the plot was bad", "no"),  # 5: and so this
        ("great", None),
        (None, "no"),
        (None, None),
        ("good actor " * 10, "no"),
    )
    findings = examine(rows, load_tokenizer(tiny_checkpoints["bert"]), 16)
    assert findings.rows == 9
    assert (findings.missing_texts, findings.missing_labels) == ([7, 8], [6, 8])
    assert (findings.duplicates, findings.conflicts) == ([2], [3, 4, 5])
    assert findings.classes == {"no": 1, "yes": 1}
    assert sorted(findings.lengths) == [6, 22]
    table = findings.table()
    assert table.loc["conflicts"].tolist() == [3, "rows 3, 4, 5"]
    assert table.loc["longer than 16 tokens"].tolist() == [1, "50%, will be cut"]


def test_findings_of_a_file_without_a_complete_row(tiny_checkpoints):
    findings = examine(rows_of(("a", None), (None, "b")), load_tokenizer(tiny_checkpoints["bert"]), 16)
    assert findings.classes == {} and len(findings.lengths) == 0
    assert findings.table().loc["rows", "count"] == 2


def test_the_split_shares_no_text_and_keeps_no_conflict():
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


def test_number_labels_are_in_numeric_order():
    pairs = [(f"text {label} {index}", label) for label in ("10", "2", "1") for index in range(12)]
    assert split_rows(rows_of(*pairs))["train"].features["label"].names == ["1", "2", "10"]


@pytest.mark.parametrize(
    "more", [[0], [1, 5], [488], [0] * 9, [347, 0, 112, 0, 12, 323, 1, 0, 0, 1, 13], [50, 1, 0, 0, 1, 0, 0, 0, 59, 0]]
)
def test_the_smallest_class_allowed_is_in_every_part(more):
    """`more` rows than the smallest allowed in the other classes; the last two fail where 7 or 9 are allowed."""
    counts = {f"class{index}": ROWS_PER_CLASS + count for index, count in enumerate([0, *more])}
    for part in split_rows(rows_of(*plenty(**counts))).values():
        assert set(part["label"]) == set(range(len(counts)))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*plenty(a=20, b=20), ("x", None), (None, "a"), (None, None)],
         r"3 of 43 rows are incomplete \(2 without text, 2 without label\): rows 41, 42, 43"),
        (plenty(a=50), r"two classes or more; the labels are \['a'\]"),
        (plenty(a=50, b=11), r"1 of 2 classes have fewer than the 12 .*'b' \(11\)"),
        ([*plenty(a=50, b=11), ("B text 0", "b")], r"'b' \(11\)"),  # duplicates do not count
        ([(f"text {index}", str(index)) for index in range(30)], r"30 of 30 classes .*'0' \(1\), .*\.\.\."),
        ([*plenty(a=50), ("torn", "b"), ("torn", "a")], r"two classes or more"),  # nothing of b is left
    ],
)  # fmt: skip
def test_rows_that_cannot_be_split_say_why(pairs, message):
    with pytest.raises(ValueError, match=message):
        split_rows(rows_of(*pairs))


def test_incomplete_rows_are_left_out_on_request():
    splits = split_rows(rows_of(("x", None), *plenty(a=20, b=20), (None, "a")), drop_incomplete=True)
    assert sorted(np.concatenate([part["row"] for part in splits.values()])) == list(range(2, 42))
    with pytest.raises(ValueError, match="all missing"):
        split_rows(rows_of(("x", None), (None, "a")), drop_incomplete=True)


@pytest.mark.parametrize(
    ("name", "n_rows", "rate"),
    [
        (OWN_DATA_RECIPE, 1_400, FEW_ROWS_RATE),  # 980 to train on
        (OWN_DATA_RECIPE, 1_450, RECIPES[OWN_DATA_RECIPE].improved().learning_rate),
        ("qlora_bert", 1_400, RECIPES["qlora_bert"].improved().learning_rate),
    ],
)
def test_few_rows_have_their_own_rate(tiny_encoders, name, n_rows, rate):
    recipe, _ = own_recipe(name, "quotes.csv", n_rows, PROFILES["quick"], tiny_encoders["bert"])
    assert recipe.learning_rate == rate
