"""Your own labelled texts: read a file, say what is in it, split it."""

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import PreTrainedTokenizerBase

from helpers.data import (
    clean,
    drop_duplicates,
    is_blank,
    shortened,
    split_reviews,
    text_key,
    text_problem,
    token_lengths,
)

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
# So many rows leave a class at least one in each part, whatever the rounding: at most 3 of 12 are drawn to test, and of
# the 9 others at least one to validate. With 9 it can fail.
ROWS_PER_CLASS = 12
SKEW = 3  # times the smallest class's rows; with more in the largest, a file's classes count as skewed
LENGTH_SAMPLE = 10_000  # rows that are tokenized to say how long the texts are
SHOWN = 5  # row numbers, columns or classes that a message lists
SHOWN_CLASSES = 20  # that a table of findings lists one by one
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _decoded(content: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, as Excel's "Unicode text" has it."""
    text = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")
    if "\0" in text:  # which Python 3.10's csv does not read, and which no text file has
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line:,} has a NUL character. Remove it; if this is UTF-16, save the file as UTF-8.")
    return text


def _table(separator: str) -> Callable[[bytes], pd.DataFrame]:
    # Not pandas, which leaves out what a row has beyond the header, takes a lone quote for the start of a text of many
    # rows, renames the second of two columns of one name, and reads the label "None" as missing and "01" as 1.
    def read(content: bytes) -> pd.DataFrame:
        csv.field_size_limit(2**31 - 1)  # bytes of one text; Python's own limit is 128 KiB
        lines = csv.reader(io.StringIO(_decoded(content), newline=""), delimiter=separator, strict=True)
        records: list[list[str]] = []
        try:
            for fields in lines:
                if len(fields) > 1 or "".join(fields).strip():  # a blank line is no row
                    records.append(fields)
        except csv.Error as error:
            raise ValueError(
                f"row {len(records):,} (0 is the header), up to line {lines.line_num:,}: {error}. A text with a "
                f"{separator!r}, a quote or a line break in it stands in quotes, and its own quotes are doubled."
            ) from error
        if not records:
            return pd.DataFrame()
        header, *rows = records
        for row, fields in enumerate(rows, start=1):
            if any(fields[len(header) :]):
                raise ValueError(
                    f"row {row:,} has {len(fields):,} fields, and the header has {len(header):,}. Put a text with a "
                    f"{separator!r} in it into quotes."
                )
            rows[row - 1] = fields[: len(header)] + [""] * (len(header) - len(fields))
        return pd.DataFrame(rows, columns=header, dtype=object)

    return read


def _json_lines(content: bytes) -> pd.DataFrame:
    records = []
    for number, line in enumerate(_decoded(content).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"row {len(records) + 1:,} (line {number:,})"
        try:
            record = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f'{where} is a {type(record).__name__}; each line must be an object, {{"name": value}}.')
        records.append(record)
    return pd.DataFrame(records, dtype=object)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"it names a column twice, of {_first([repr(name) for name, _ in pairs])}")
    return found


def _parquet(content: bytes) -> pd.DataFrame:
    table = pq.ParquetFile(pa.BufferReader(content)).read()
    columns = [column.to_pylist() for column in table.columns]  # pandas would make floats of whole numbers with gaps
    return pd.DataFrame(list(zip(*columns, strict=True)), columns=table.column_names, dtype=object)


READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def read_rows(path: str | Path, text_column: str, label_column: str) -> pd.DataFrame:
    """The rows of a CSV, TSV, JSON Lines or Parquet file: columns `text` (cleaned) and `label`, both str or None.

    The index, `row`, counts from 1 and leaves out a header. A number reads as text, a whole one as a label without its
    point ("1", not "1.0"); a text of which nothing is to be seen is None. UTF-8, or UTF-16 with its mark.

    Raises FileNotFoundError, and ValueError for an unknown file ending, a file that is empty, not UTF-8 or not what its
    ending says, a column that is not there or there twice, and a row with more fields than the header, with something
    else than a text, with half a character or with a control character in its label.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; it must be one of {', '.join(READERS)}.")
    if text_column == label_column:
        raise ValueError(f"Texts and labels cannot both be in column {text_column!r}.")
    content = path.read_bytes()
    try:
        frame = READERS[path.suffix.lower()](content) if content.strip() else pd.DataFrame()
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(path, content, error)) from error
    except (ValueError, OSError, pa.ArrowException) as error:  # parser errors of json are ValueErrors
        said = " ".join(str(error).split())
        raise ValueError(f"{path.name} is no {path.suffix} file that can be read: {said}") from error
    if not len(frame.columns):
        raise ValueError(f"{path.name} is empty.")
    for column in (text_column, label_column):
        _check_column(path, frame, column)
    if frame.empty:
        raise ValueError(f"{path.name} has columns but no rows.")
    rows = {
        name: [_cell(path, row, column, value, read) for row, value in enumerate(frame[column], start=1)]
        for name, column, read in (("text", text_column, _text), ("label", label_column, _label))
    }
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(frame) + 1, name="row"), dtype=object)


def _not_utf8(path: Path, content: bytes, error: UnicodeDecodeError) -> str:
    if content.startswith(UTF_16) or path.suffix.lower() == ".parquet":
        return f"{path.name} holds text that cannot be decoded: {error}."
    line = error.object.count(b"\n", 0, error.start) + 1
    return (
        f"{path.name} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start:,}), in line {line:,}. Save "
        f"it as UTF-8; for a file from Windows: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
    )


def _check_column(path: Path, frame: pd.DataFrame, column: str) -> None:
    columns = list(frame.columns)
    if columns.count(column) > 1:
        raise ValueError(f"{path.name} has {columns.count(column)} columns {column!r}; rename all but one.")
    if column not in columns:
        separators = [mark for mark in (";", "\t", "|", ",") if len(columns) == 1 and mark in str(columns[0])]
        hint = (
            f" They seem to be separated by {separators[0]!r}: commas make a .csv, tabs a .tsv." if separators else ""
        )
        raise ValueError(
            f"{path.name} has no column {column!r}; it has {_first([shortened(repr(name)) for name in columns])}.{hint}"
        )


def _cell(path: Path, row: int, column: str, value: object, read: Callable[[str], str]) -> str | None:
    """What `read` makes of one value as a string; None where there is none."""
    if value is None or value is pd.NA or (isinstance(value, Number) and value != value):
        return None
    if isinstance(value, float) and read is _label and value.is_integer():  # 1.0, of a column of numbers with gaps
        value = int(value)
    if isinstance(value, Number):
        value = str(value)
    try:
        if problem := text_problem(value):
            raise ValueError(problem)
        return read(value)
    except ValueError as error:
        raise ValueError(f"{path.name}, row {row:,}, column {column!r}: the value {error}") from error


def _text(value: str) -> str | None:
    return None if is_blank(value) else clean(value) or None


def _label(value: str) -> str | None:
    value = value.strip()
    if control := next((character for character in value if unicodedata.category(character) == "Cc"), None):
        raise ValueError(f"{shortened(repr(value))} has the control character {control!r}, which no label can have.")
    return value or None


@dataclass(frozen=True)
class Findings:
    """What is in a file, before anything is dropped. Row numbers count from 1.

    `duplicates` are rows that repeat an earlier text under the same label, compared as `data.text_key` does;
    `conflicts` are all rows of texts that carry more than one label. `classes` counts the rows that are left for each
    label. `lengths` are their tokens before truncation, shape (sum of classes,) or, of a larger file,
    (`LENGTH_SAMPLE`,): of rows drawn at random.
    """

    rows: int
    missing_texts: list[int]
    missing_labels: list[int]
    duplicates: list[int]
    conflicts: list[int]
    classes: dict[str, int]
    lengths: np.ndarray
    max_length: int

    @property
    def skewed(self) -> bool:
        """Whether the largest class has more than `SKEW` times the rows of the smallest.

        Accuracy then hides what becomes of the small ones: all reports lead with balanced accuracy and class scores.
        """
        return bool(self.classes) and max(self.classes.values()) > SKEW * min(self.classes.values())

    def table(self) -> pd.DataFrame:
        """The findings, one a row, with the first rows that each concerns; of many classes the first."""
        left = max(sum(self.classes.values()), 1)
        found = [("rows", self.rows, "")]
        for name in ("missing_texts", "missing_labels", "duplicates", "conflicts"):
            numbers = getattr(self, name)
            found.append((name.replace("_", " "), len(numbers), f"rows {_first(numbers)}" if numbers else ""))
        listed = len(self.classes) if len(self.classes) <= SHOWN_CLASSES else SHOWN_CLASSES - 1
        counts = list(self.classes.items())
        found += [(f"class {shortened(label)}", count, f"{count / left:.0%}") for label, count in counts[:listed]]
        if rest := [count for _, count in counts[listed:]]:
            found.append((f"{len(rest):,} more classes", sum(rest), f"{min(rest):,} to {max(rest):,} rows each"))
        if self.skewed:
            times = max(self.classes.values()) // min(self.classes.values())
            found.append(("largest class over smallest", times, "times: skewed; --class-weights balanced counters it"))
        if len(self.lengths):
            share = float((self.lengths > self.max_length).mean())
            drawn = f", by {len(self.lengths):,} rows drawn" if len(self.lengths) < left else ""
            cut = f"{share:.0%}, will be cut" if share else ""
            found.append(("tokens, median", int(np.median(self.lengths)), f"longest {self.lengths.max():,}{drawn}"))
            found.append((f"longer than {self.max_length} tokens", round(share * left), cut + (drawn if cut else "")))
        return pd.DataFrame(found, columns=["finding", "count", "which"]).set_index("finding")


def examine(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Findings:
    """What is in `rows` (see `read_rows`), its lengths measured against a limit of `max_length` tokens."""
    duplicates, conflicts = _repeated(rows)
    left = rows.dropna().drop(index=[*duplicates, *conflicts])
    counts = left["label"].value_counts()
    measured = left.sample(LENGTH_SAMPLE, random_state=0) if len(left) > LENGTH_SAMPLE else left
    return Findings(
        rows=len(rows),
        missing_texts=list(rows.index[rows["text"].isna()]),
        missing_labels=list(rows.index[rows["label"].isna()]),
        duplicates=duplicates,
        conflicts=conflicts,
        classes={label: int(counts[label]) for label in _in_order(counts.index)},
        lengths=token_lengths(measured, tokenizer) if len(left) else np.array([], dtype=int),
        max_length=max_length,
    )


def split_rows(rows: pd.DataFrame, seed: int = 42, drop_incomplete: bool = False) -> DatasetDict:
    """Stratified train, validation and test rows (70, 10 and 20 %) that share no text; columns `text, label, row`.

    Texts with more than one label are dropped whole, and of duplicates the first is kept. The labels are in
    alphabetical order, numbers in numeric order. Raises ValueError for rows without text or label (`drop_incomplete`
    drops them instead), for a single class, and for a class with fewer than `ROWS_PER_CLASS` rows.
    """
    incomplete = list(rows.index[rows.isna().any(axis=1)])
    if incomplete and not drop_incomplete:
        texts, labels = int(rows["text"].isna().sum()), int(rows["label"].isna().sum())
        raise ValueError(
            f"{len(incomplete):,} of {len(rows):,} rows are incomplete ({texts:,} without text, {labels:,} without "
            f"label): rows {_first(incomplete)}, counted from 1. Complete them, or leave them out with drop_incomplete."
        )
    _, conflicts = _repeated(rows)
    left = rows.dropna().drop(index=conflicts)
    names = _in_order(left["label"].unique())
    if len(names) < 2:
        raise ValueError(f"A classifier needs two classes or more; the labels are {names or 'all missing'}.")
    features = Features({"text": Value("string"), "label": ClassLabel(names=names), "row": Value("int64")})
    dataset = drop_duplicates(Dataset.from_pandas(left.reset_index(), preserve_index=False).cast(features))
    counts = np.bincount(dataset["label"][:], minlength=len(names))
    if small := [
        f"{shortened(repr(name))} ({count})"
        for name, count in zip(names, counts, strict=True)
        if count < ROWS_PER_CLASS
    ]:
        raise ValueError(
            f"{len(small):,} of {len(names):,} classes have fewer than the {ROWS_PER_CLASS} different texts that the "
            f"split needs: {_first(small)}. Add rows, or merge or remove these classes."
        )
    n_test, n_validation = (int(np.ceil(share * len(dataset))) for share in (TEST_SHARE, VALIDATION_SHARE))
    return split_reviews(dataset, None, n_validation, n_test, seed)


def _repeated(rows: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Row numbers of duplicates (all but the first) and of texts under more than one label."""
    complete = rows.dropna()
    keys = complete["text"].map(text_key)
    conflicting = complete["label"].groupby(keys).transform("nunique") > 1
    return list(complete.index[keys.duplicated() & ~conflicting]), list(complete.index[conflicting])


def _in_order(labels) -> list[str]:
    """Labels sorted, by value where all are numbers ("nan" is none)."""
    try:
        numbers = {label: float(label) for label in sorted(labels)}
    except ValueError:
        return sorted(labels)
    return sorted(labels) if any(np.isnan(list(numbers.values()))) else sorted(numbers, key=numbers.get)


def _first(items: list) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")
