"""Files: what is written appears whole or not at all, and labelled texts are read with one clear error."""

import csv
import errno
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pyarrow.parquet

from helpers.profiles import ROOT

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


class DiskFull(OSError):
    """There was no room to write something; what was there before is as it was."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `path` is as it was. Raises DiskFull where the disk is full.
    """
    temporary = Path(path).with_name(f".{Path(path).name}-{uuid4().hex[:8]}")
    with clear_disk_errors(path):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends without an error; else as `new_file`.

    An earlier folder of that name keeps it until the new one is whole.
    """
    temporary = Path(folder).with_name(f".{Path(folder).name}-{uuid4().hex[:8]}")
    earlier = temporary.with_name(f"{temporary.name}-earlier")
    with clear_disk_errors(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if Path(folder).exists():
                os.replace(folder, earlier)
            os.replace(temporary, folder)
        finally:
            if earlier.exists() and not Path(folder).exists():
                os.replace(earlier, folder)
            for left in (temporary, earlier):
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns whatever a library raises on a full disk into DiskFull, which names `path`."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors and tokenizers put it
        in_torch = re.search(r"inline_container\.cc|basic_ios::clear", str(error))  # which does not say why
        code = int(in_rust[1]) if in_rust else errno.ENOSPC if in_torch else getattr(error, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(
            f"There is no room to write {shown(path)} ({os.strerror(code)}). What was there before is as it was. "
            "Free some space, or let DATA_DIR name a folder on another disk."
        ) from error


def write_text(path: Path, text: str) -> Path:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: Path, data: dict) -> Path:
    """Writes `data` to `path` as JSON, whole or not at all."""
    return write_text(path, json.dumps(data, indent=1) + "\n")


def shown(path: Path) -> str:
    """`path` as a message names it: from the repository's root where it lies inside, else whole."""
    path = Path(path)
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def read_rows(path: str | Path, text_column: str, label_column: str) -> pd.DataFrame:
    """The rows of a CSV, TSV, JSON Lines or Parquet file: columns `text` and `label`, both str or None where missing.

    The index, `row`, counts from 1 and leaves out a header. White space around a value goes; a whole number reads as a
    label without its point ("1", not "1.0"). Text files are UTF-8, or UTF-16 with its mark.

    Raises FileNotFoundError, and ValueError for an unknown file ending, a file that is empty or not what its ending
    says, a column that is not there or there twice, and a value that is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; it must be one of {', '.join(ENDINGS)}.")
    if text_column == label_column:
        raise ValueError(f"Texts and labels cannot both be in column {text_column!r}.")
    try:
        frame = _read_frame(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte {error.start:,}). Save it as UTF-8; for a file from Windows: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error
    except (ValueError, OSError) as error:  # parser errors of pandas, json and pyarrow are ValueErrors
        said = " ".join(str(error).split())
        raise ValueError(f"{path.name} is no {path.suffix} file that can be read: {said}") from error
    columns = list(frame.columns)
    for column in (text_column, label_column):
        if columns.count(column) != 1:
            found = f"{columns.count(column)} columns" if column in columns else "no column"
            raise ValueError(
                f"{path.name} has {found} {column!r}; it has {', '.join(map(repr, columns[:20]))}. Commas make a .csv, "
                "tabs a .tsv."
            )
    if frame.empty:
        raise ValueError(f"{path.name} has columns but no rows.")
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="row")
    texts, labels = (
        pd.Series({row: _cell(path, row, column, value) for row, value in frame[column].items()}, dtype=object)
        for column in (text_column, label_column)
    )
    return pd.DataFrame({"text": texts, "label": labels}).rename_axis("row")


def _read_frame(path: Path) -> pd.DataFrame:
    ending = path.suffix.lower()
    if ending == ".parquet":
        table = pyarrow.parquet.read_table(path)
        columns = [column.to_pylist() for column in table.columns]  # pandas would make floats of numbers with gaps
        return pd.DataFrame(list(zip(*columns, strict=True)), columns=table.column_names, dtype=object)
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    if ending == ".jsonl":
        records = [json.loads(line) for line in text.split("\n") if line.strip()]
        if wrong := next((row for row, record in enumerate(records, 1) if not isinstance(record, dict)), None):
            raise ValueError(f'row {wrong:,} is no object, {{"name": value}}')
        return pd.DataFrame(records, dtype=object)
    separator = "\t" if ending == ".tsv" else ","
    options = {"sep": separator, "header": None, "dtype": str, "keep_default_na": False}
    # TSV as many tools write it quotes nothing: there, a quote that runs over its line is part of a text.
    unquoted = ending == ".tsv" and len({line.count("\t") for line in lines}) == 1
    if unquoted and any(line.count('"') % 2 for line in lines):
        options["quoting"] = csv.QUOTE_NONE
    frame = pd.read_csv(io.StringIO(text), **options)  # of rows with more fields than the header it raises
    return frame[1:].set_axis(frame.iloc[0].tolist(), axis=1)


def _cell(path: Path, row: int, column: str, value: object) -> str | None:
    """One value as text; None where there is none, or nothing of it to be seen."""
    if isinstance(value, float) and value.is_integer():  # 1.0, of numbers with gaps
        value = int(value)
    if value is None or (isinstance(value, float) and value != value):
        return None
    text = value if isinstance(value, str) else str(value)
    problem = None
    if not isinstance(value, (str, int, float)):
        problem = f"is a {type(value).__name__}, not a text"
    elif re.search("[\ud800-\udfff]", text):
        problem = "has half a character, a lone surrogate"
    if problem:
        raise ValueError(f"{path.name}, row {row:,}, column {column!r}: the value {problem}: {text[:60]!r}")
    blank = all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)
    return None if blank else text.strip()
