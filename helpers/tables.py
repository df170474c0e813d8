"""Files of labelled texts, as people's tools write them: read as they are, or refused with one clear error."""

import csv
import io
import json
import re
import sys
import unicodedata
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
USUAL_NAMES = {  # of columns
    "text": ["text", "sentence", "review", "content", "body", "comment", "tweet", "message"],
    "label": ["label", "labels", "sentiment", "category", "class", "target", "rating", "score"],
}
_nfc = partial(unicodedata.normalize, "NFC")
LONG, REPEATED = 20, 10  # where columns have other names: characters of an average text, rows to an average label


def read_rows(
    path: str | Path, text_column: str | None = None, label_column: str | None = None, pair_column: str | None = None
) -> pd.DataFrame:
    """The rows of a file, or of a folder that datasets wrote: columns `text` and `label`, str or None where missing,
    and `pair`, the second texts, with a `pair_column`. A list of labels is a sorted tuple.

    The index, `row`, counts from 1 without a header. Text files are UTF-8, or UTF-16 with its mark. A column without a
    name is guessed, and one printed line says so. Names and labels are put in Unicode's form NFC. Raises
    FileNotFoundError, and ValueError for what cannot be read, a missing, doubled or ambiguous column, and a value that
    is no text.
    """
    frame, name = read_frame(path), Path(path).name
    columns = choose_columns(frame, path, text=text_column, label=label_column, pair=pair_column)
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"{name} has no rows of a text and a label.")
    cells = {role: cells_of(frame[column], name, role == "label") for role, column in columns.items()}
    return pd.DataFrame(cells, index=pd.RangeIndex(1, len(frame) + 1, name="row"), dtype=object)


def read_frame(path: str | Path) -> pd.DataFrame:
    """Every column of a file as it is there. Raises as `read_rows` does."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix.lower() not in ENDINGS and not path.is_dir():
        raise ValueError(f"{path.name} ends in {path.suffix!r}; it must be one of {', '.join(ENDINGS)}, or a folder.")
    try:
        frame = _read_frame(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte {error.start:,}). Save it as UTF-8; for a file from Windows: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error
    except (ValueError, TypeError, LookupError, RecursionError, OSError) as error:  # pandas', json's and pyarrow's
        kind = "folder of a dataset" if path.is_dir() else f"{path.suffix} file"
        raise ValueError(f"{path.name} is no {kind} that can be read: {error}") from error
    if frame.empty:
        raise ValueError(f"{path.name} has no rows.")
    return frame.set_axis([_nfc(str(column)).strip() for column in frame], axis=1)


def choose_columns(frame: pd.DataFrame, path: str | Path, **wanted: str | None) -> dict[str, str]:
    """The columns of a file's frame for the roles `wanted`, such as "text"; one that is None is guessed, and said
    on stderr, but for a `pair`, which is none then. Raises as `read_rows` does."""
    columns = {role: column and _nfc(column) for role, column in wanted.items() if column or role != "pair"}
    columns = columns if all(columns.values()) else _guess(frame, columns, Path(path).name)
    for column in columns.values():
        if (count := list(frame).count(column)) != 1:
            there = ", ".join(map(repr, frame.columns[:20]))
            raise ValueError(f"{Path(path).name} has {count or 'no'} column {column!r}; it has {there}.")
    return columns


def cells_of(values: pd.Series, where: str, several: bool = False) -> list:
    """The values of a column as text, None where there is none; with `several` lists as tuples. Raises ValueError."""
    row = f"{where}, row {{:,}}, column {values.name!r}"
    return [_cell(row.format(number), value, several) for number, value in enumerate(values, 1)]


def _guess(frame: pd.DataFrame, columns: dict[str, str | None], file: str) -> dict[str, str]:
    """`columns` with each None replaced by the one column that has a usual name, else by the one that looks like it."""
    there = [name for name in frame if not re.fullmatch(r"(Unnamed: \d+|__index_level_\d+__)?", name)]
    found = dict(columns)
    for role in (role for role, column in columns.items() if column is None):
        free = [name for name in there if name not in columns.values()]
        fitting = [name for name in free if name.casefold() in USUAL_NAMES[role]]
        named = [
            name for name in free if len(there) > 1 and len(name) < 50 and name not in set(map(str, frame[name]))
        ]  # no first row
        fitting = fitting or [name for name in named if _looks_like(role, frame[name])]
        if len(fitting) != 1:
            raise ValueError(
                f"{file}: {f'{len(fitting)} columns' if fitting else 'no column'} may hold the {role}; name it with "
                f"--{role}-column, one of {', '.join(map(repr, there[:20]))} (what the first row holds)."
            )
        found[role] = fitting[0]
    guessed = {role: column for role, column in found.items() if columns[role] is None and role != column}
    if said := [f"the {role} is in column {column!r}" for role, column in guessed.items()]:
        print(f"{file}: {', '.join(said)}", file=sys.stderr, flush=True)
    return found


def _looks_like(role: str, values: pd.Series | pd.DataFrame) -> bool:
    """Whether a column holds long values that differ, as texts do, or the same few again and again, as labels."""
    words = [str(one) for one in values if isinstance(one, (str, int, float)) and str(one).strip()]
    kinds = len(set(words))
    if role == "label":
        return kinds > 1 and len(words) >= REPEATED * kinds
    return len(words) < REPEATED * kinds and sum(map(len, words)) >= LONG * len(words)


def _read_frame(path: Path) -> pd.DataFrame:
    ending = path.suffix.lower()
    if path.is_dir() or ending == ".parquet":
        table = _read_folder(path) if path.is_dir() else pyarrow.parquet.read_table(path)
        features = Features.from_arrow_schema(table.schema) if b"huggingface" in (table.schema.metadata or {}) else {}
        # By lists, as pandas would make floats of numbers with gaps.
        columns = [
            [_named(features.get(name), value) for value in column.to_pylist()]
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
        return pd.DataFrame(list(zip(*columns, strict=True)), columns=table.column_names, dtype=object)
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    if ending in (".jsonl", ".json"):
        rows = json.loads(text) if text.lstrip()[0] == "[" else map(json.loads, lines)
        return pd.DataFrame([dict(row) for row in rows], dtype=object)
    options = {"header": None, "dtype": str, "keep_default_na": False}
    if told := re.match(r'"?sep=(.)"?\r?\n', text):  # Excel's own
        text, separators = text[told.end() :], told[1]
    else:
        separators = "\t" if ending == ".tsv" else ";,\t|"  # a semicolon where Excel's decimals have a comma
    widths = {sep: pd.read_csv(io.StringIO(text), sep=sep, nrows=1, **options).shape[1] for sep in separators}
    options["sep"] = max(widths, key=widths.get)
    if widths[options["sep"]] == 1:  # there a blank line is a row without a text
        text, options["skip_blank_lines"] = text.strip("\r\n"), False
    # TSV as many tools write it quotes nothing: there, a quote that no other closes at a field's end is part of a text.
    if options["sep"] == "\t" and len({line.count("\t") for line in lines}) == 1:
        fields = re.findall(r'(?m)(?:^|(?<=\t))"[^\t\r\n]*', text)
        if not all(re.fullmatch(r'"([^"]|"")*"', field) for field in fields):
            options["quoting"] = csv.QUOTE_NONE
    elif re.search(r'\\"\w', text):  # as Spark and MySQL write a quote in a text
        text = re.sub(r'(?<!\\)\\"', '""', text)
    frame = pd.read_csv(io.StringIO(text), **options)  # raises for a row with more fields than the header
    if options["sep"] == "\t" and any(frame[column].str.contains(r"\t.*\n|\n.*\t").any() for column in frame):
        raise ValueError("a quote that opens a field is not closed in its row")
    return frame[1:].set_axis(frame.iloc[0].tolist(), axis=1)


def _read_folder(path: Path) -> pyarrow.Table:
    """A folder that `save_to_disk` wrote, or of Parquet files, all of one split."""
    files = sorted([*path.rglob("state.json")] or path.rglob("*.parquet"))
    names = [file.relative_to(path).as_posix() for file in files]
    splits = sorted({re.sub(r"\d[^/]*$", "", name) for name in names})  # less "00000-of-00002"
    if len(splits) != 1:
        raise ValueError(f"it holds {', '.join(splits) or 'no Parquet file'}, and not one split")
    if files[0].name == "state.json":
        return Dataset.load_from_disk(str(files[0].parent)).with_format("arrow")[:]
    return pyarrow.parquet.read_table(files)


def _named(feature: object, value: object) -> object:
    """A `ClassLabel`'s number, or each in a list, as its name; -1, with which datasets hide labels, as None."""
    if isinstance(value, list):
        return [_named(getattr(feature, "feature", None), one) for one in value]
    return dict(enumerate(feature.names)).get(value) if isinstance(feature, ClassLabel) else value


def _cell(where: str, value: object, several: bool = False) -> str | tuple[str, ...] | None:
    """One value as text; None where there is none, or nothing of it to be seen. Raises ValueError."""
    if several and isinstance(value, list):
        return tuple(sorted({_nfc(text) for text in (_cell(where, one) for one in value) if text}))
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0, of numbers with gaps
    if not isinstance(value, (str, int, float)) or re.search("[\ud800-\udfff]", str(value)):
        raise ValueError(f"{where}: {ascii(value)[:60]} is no text, or has half a character.")
    blank = all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in str(value))
    return None if blank else (_nfc if several else str)(str(value).strip())
