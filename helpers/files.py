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

    errno = errno.ENOSPC


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `path` is as it was. Raises DiskFull where the disk is full.
    """
    temporary = Path(path).with_name(f".{Path(path).name}-{uuid4().hex[:8]}")
    earlier = temporary.with_name(f"{temporary.name}-earlier")
    with clear_disk_errors(path):
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if Path(path).is_dir():  # which nothing replaces in one step
                os.replace(path, earlier)
            os.replace(temporary, path)
        finally:
            if earlier.exists() and not Path(path).exists():
                os.replace(earlier, path)
            for left in (temporary, earlier):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends without an error (see `new_file`)."""
    with new_file(folder) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns whatever a library raises on a full disk into DiskFull, which names `path`."""
    try:
        yield
    except Exception as error:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors and tokenizers put it
        in_torch = re.search(r"inline_container\.cc|basic_ios::clear", str(error))  # which does not say why
        code = int(in_rust[1]) if in_rust else errno.ENOSPC if in_torch else getattr(error, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or isinstance(error, DiskFull):
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

    The index, `row`, counts from 1 without a header. Text files are UTF-8, or UTF-16 with its mark. Raises
    FileNotFoundError, and ValueError for what cannot be read, a missing or doubled column, and a value that is no text.
    """
    frame = read_frame(path)
    if text_column == label_column:
        raise ValueError(f"{Path(path).name} has no rows of a text and a label.")
    cells = {name: cells_of(frame, column, path) for name, column in (("text", text_column), ("label", label_column))}
    return pd.DataFrame(cells, index=pd.RangeIndex(1, len(frame) + 1, name="row"), dtype=object)


def read_frame(path: str | Path) -> pd.DataFrame:
    """Every column of a file as it is there. Raises as `read_rows` does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; it must be one of {', '.join(ENDINGS)}.")
    try:
        frame = _read_frame(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte {error.start:,}). Save it as UTF-8; for a file from Windows: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error
    except (ValueError, TypeError, RecursionError, OSError) as error:  # pandas', json's and pyarrow's
        raise ValueError(f"{path.name} is no {path.suffix} file that can be read: {error}") from error
    if frame.empty:
        raise ValueError(f"{path.name} has no rows.")
    return frame


def cells_of(frame: pd.DataFrame, column: str, path: str | Path) -> list[str | None]:
    """The values of one column of a file's frame as text, None where there is none. Raises as `read_rows` does."""
    columns, name = list(frame.columns), Path(path).name
    if columns.count(column) != 1:
        there = ", ".join(map(repr, columns[:20]))
        raise ValueError(f"{name} has {columns.count(column) or 'no'} column {column!r}; it has {there}.")
    return [_cell(f"{name}, row {row:,}, column {column!r}", value) for row, value in enumerate(frame[column], 1)]


def _read_frame(path: Path) -> pd.DataFrame:
    ending = path.suffix.lower()
    if ending == ".parquet":
        table = pyarrow.parquet.read_table(path)
        columns = [column.to_pylist() for column in table.columns]  # pandas would make floats of numbers with gaps
        return pd.DataFrame(list(zip(*columns, strict=True)), columns=table.column_names, dtype=object)
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    if ending == ".jsonl":
        return pd.DataFrame([dict(json.loads(line)) for line in lines], dtype=object)
    options = {"sep": "\t" if ending == ".tsv" else ",", "header": None, "dtype": str, "keep_default_na": False}
    # TSV as many tools write it quotes nothing: there, a quote that runs over its line is part of a text.
    even = len({line.count("\t") for line in lines}) == 1
    if ending == ".tsv" and even and any(line.count('"') % 2 for line in lines):
        options["quoting"] = csv.QUOTE_NONE
    frame = pd.read_csv(io.StringIO(text), **options)  # raises for a row with more fields than the header
    return frame[1:].set_axis(frame.iloc[0].tolist(), axis=1)


def _cell(where: str, value: object) -> str | None:
    """One value as text; None where there is none, or nothing of it to be seen. Raises ValueError."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0, of numbers with gaps
    if not isinstance(value, (str, int, float)) or re.search("[\ud800-\udfff]", str(value)):
        raise ValueError(f"{where}: {ascii(value)[:60]} is no text, or has half a character.")
    blank = all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in str(value))
    return None if blank else str(value).strip()
