"""Labelled texts from a file: CSV, JSON lines, Parquet; one clear error for what cannot be read."""

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from numbers import Number
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.base.texts import clean, is_blank, shortened, text_problem

SHOWN = 5  # row numbers, columns or classes that a message lists

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
        raise ValueError(f"it names a column twice, of {shown_list([repr(name) for name, _ in pairs])}")
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
            f"{path.name} has no column {column!r}; it has "
            f"{shown_list([shortened(repr(name)) for name in columns])}.{hint}"
        )


def _cell(path: Path, row: int, column: str, value: object, read: Callable[[str], str]) -> str | None:
    """What `read` makes of one value as a string; None where there is none."""
    if value is None or value is pd.NA or (isinstance(value, Number) and value != value):
        return None
    if isinstance(value, (float, Decimal)) and read is _label and value == value // 1:  # 1.0, of numbers with gaps
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


def shown_list(items: list) -> str:
    """The first of `items`, as a message lists them."""
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")
