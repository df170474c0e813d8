"""Your own labelled texts: read a file, say what is in it, split it."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import PreTrainedTokenizerBase

from helpers.data import clean, drop_duplicates, split_reviews, text_key, token_lengths

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
# So many rows leave a class at least one in each part, whatever the rounding: at most 3 of 12 are drawn to test, and of
# the 9 others at least one to validate. With 9 it can fail.
ROWS_PER_CLASS = 12
SHOWN = 5  # row numbers or classes that a message lists


def _table(separator: str) -> Callable[[bytes], pd.DataFrame]:
    # As strings, and only "" is missing: pandas would read the label "None" as missing and "01" as 1.
    options = {"sep": separator, "dtype": str, "keep_default_na": False, "na_values": [""], "index_col": False}
    return lambda content: pd.read_csv(io.StringIO(content.decode("utf-8-sig")), **options)


def _json_lines(content: bytes) -> pd.DataFrame:
    lines = content.decode("utf-8-sig").split("\n")
    return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)


READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".jsonl": _json_lines,
    ".parquet": lambda content: pd.read_parquet(io.BytesIO(content)),
}


def read_rows(path: str | Path, text_column: str, label_column: str) -> pd.DataFrame:
    """The rows of a CSV, TSV, JSON Lines or Parquet file: columns `text` (cleaned) and `label`, both str or None.

    The index, `row`, counts from 1 and leaves out a header. A label that is a whole number reads as one ("1", not
    "1.0"). Raises FileNotFoundError, and ValueError for an unknown file ending, a file that is empty, not UTF-8 or not
    what its ending says, and a column that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; it must be one of {', '.join(READERS)}.")
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path.name} is empty.")
    try:
        frame = READERS[path.suffix.lower()](content)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start:,}). Save it as UTF-8; "
            f"for a file from Windows: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error
    except (ValueError, OSError) as error:  # parser errors of pandas, json and pyarrow are ValueErrors
        raise ValueError(f"{path.name} is no {path.suffix} file that can be read: {str(error).strip()}") from error
    for column in (text_column, label_column):
        if column not in frame.columns:
            raise ValueError(f"{path.name} has no column {column!r}; it has {', '.join(map(repr, frame.columns))}.")
    if frame.empty:
        raise ValueError(f"{path.name} has columns but no rows.")
    rows = {
        "text": [clean(str(value)) or None if _given(value) else None for value in frame[text_column]],
        "label": [_label(value) or None if _given(value) else None for value in frame[label_column]],
    }
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(frame) + 1, name="row"), dtype=object)


def _given(value: object) -> bool:
    return not (value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)))


def _label(value: object) -> str:
    if (
        isinstance(value, (float, np.floating)) and float(value).is_integer()
    ):  # pandas has floats for a column of whole numbers with gaps
        value = int(value)
    return str(value).strip()


@dataclass(frozen=True)
class Findings:
    """What is in a file, before anything is dropped. Row numbers count from 1.

    `duplicates` are rows that repeat an earlier text under the same label, compared as `data.text_key` does;
    `conflicts` are all rows of texts that carry more than one label. `classes` counts the rows that are left for each
    label. `lengths` are their tokens before truncation, shape (sum of classes,).
    """

    rows: int
    missing_texts: list[int]
    missing_labels: list[int]
    duplicates: list[int]
    conflicts: list[int]
    classes: dict[str, int]
    lengths: np.ndarray
    max_length: int

    def table(self) -> pd.DataFrame:
        """The findings, one a row, with the first rows that each concerns."""
        longer = int((self.lengths > self.max_length).sum())
        left = max(sum(self.classes.values()), 1)
        found = [("rows", self.rows, "")]
        for name in ("missing_texts", "missing_labels", "duplicates", "conflicts"):
            numbers = getattr(self, name)
            found.append((name.replace("_", " "), len(numbers), f"rows {_first(numbers)}" if numbers else ""))
        found += [(f"class {label}", count, f"{count / left:.0%}") for label, count in self.classes.items()]
        if len(self.lengths):
            found.append(("tokens, median", int(np.median(self.lengths)), f"longest {self.lengths.max():,}"))
            found.append(
                (f"longer than {self.max_length} tokens", longer, f"{longer / left:.0%}, will be cut" if longer else "")
            )
        return pd.DataFrame(found, columns=["finding", "count", "which"]).set_index("finding")


def examine(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Findings:
    """What is in `rows` (see `read_rows`), its lengths measured against a limit of `max_length` tokens."""
    duplicates, conflicts = _repeated(rows)
    left = rows.dropna().drop(index=[*duplicates, *conflicts])
    counts = left["label"].value_counts()
    return Findings(
        rows=len(rows),
        missing_texts=list(rows.index[rows["text"].isna()]),
        missing_labels=list(rows.index[rows["label"].isna()]),
        duplicates=duplicates,
        conflicts=conflicts,
        classes={label: int(counts[label]) for label in _in_order(counts.index)},
        lengths=token_lengths(left, tokenizer) if len(left) else np.array([], dtype=int),
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
    counts = np.bincount(dataset["label"], minlength=len(names))
    if small := [f"{name!r} ({count})" for name, count in zip(names, counts, strict=True) if count < ROWS_PER_CLASS]:
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
    """Labels sorted, by value where all are numbers."""
    try:
        return sorted(labels, key=float)
    except ValueError:
        return sorted(labels)


def _first(items: list) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")
