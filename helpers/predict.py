"""A model's answers to a file, to single texts or to lines."""

import csv
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import pandas as pd
from tqdm import tqdm
from typer import Argument

from helpers.evaluation import TOKENS_PER_BATCH
from helpers.files import new_file
from helpers.inference import SentimentClassifier
from helpers.profiles import device
from helpers.start import command
from helpers.tables import cells_of, choose_columns, read_frame
from helpers.tasks import decide, in_words

# pandas would write numbers of milliseconds, and 10 digits.
AS_READ = {"date_format": "iso", "date_unit": "ns", "double_precision": 15}


def predict(
    model: str,
    file: Annotated[str | None, Argument()] = None,
    text: list[str] | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    output: Path | None = None,
    all: bool = False,
) -> None:
    """Predicts FILE (.csv, .tsv, .jsonl, .parquet; - is standard input, one text a line), or each --text.

    Every row comes back in its place with all of its columns, `predicted` and `probability`, which are empty where it
    has no text. An output that ends in .jsonl is JSON Lines, as is what goes to the terminal without one; any other is
    CSV. It appears when all is predicted.
    """
    if bool(file) == bool(text):
        raise ValueError("Name a FILE (- is standard input), or texts with --text.")
    if output and (output.is_dir() or output.suffix.lower() not in (".csv", ".jsonl", "")):
        raise ValueError(f"--output {output} must be a file that ends in .csv or .jsonl.")
    if file and file != "-":
        frame, name = read_frame(file), Path(file).name
    else:
        if hasattr(sys.stdin, "reconfigure"):  # on Windows a pipe is read in another encoding than files have
            sys.stdin.reconfigure(encoding="utf-8-sig")
        lines = text or [line.rstrip("\n") for line in sys.stdin]
        frame, name = pd.DataFrame({"text": lines}, dtype=object), "the input"
    columns = choose_columns(frame, name, text=text_column, pair=text_pair_column)
    cells = pd.DataFrame({role: cells_of(frame[column], name) for role, column in columns.items()}, dtype=object)
    if taken := [one for one in frame.columns if re.fullmatch("predicted|probability( of .*)?", str(one))]:
        raise ValueError(f"{name} has a column {taken[0]!r} already; rename it.")
    classifier, size = SentimentClassifier.from_pretrained(model), TOKENS_PER_BATCH[device()]
    with (
        new_file(output) if output else nullcontext() as path,
        path.open("w", encoding="utf-8", newline="") if path else nullcontext(sys.stdout) as stream,
        tqdm(total=len(frame), unit=" rows", disable=None) as bar,  # drawn on a terminal alone
    ):
        escaped = (stream.encoding or "").lower() not in ("utf-8", "utf8")  # what a terminal may not show
        for start in range(0, len(frame), size):  # so many fill batches even of short texts
            rows = frame.iloc[start : start + size].reset_index(drop=True)
            rows = rows.join(answers(classifier, cells[start : start + size], all))
            if output and Path(output).suffix.lower() != ".jsonl":
                torn = any("\r" in cell for cell in rows.to_numpy(dtype=object).flat if isinstance(cell, str))
                quoting = csv.QUOTE_ALL if torn else csv.QUOTE_MINIMAL  # Python quotes "\r" itself from 3.13 on
                rows.to_csv(stream, index=False, header=start == 0, lineterminator="\n", quoting=quoting)
            else:
                rows.to_json(stream, orient="records", lines=True, force_ascii=escaped, **AS_READ)
            bar.update(len(rows))
    if missing := cells.isna().any(axis=1).sum():
        print(f"{missing:,} of {len(cells):,} rows have no text, and no prediction.", file=sys.stderr)


def answers(classifier: SentimentClassifier, cells: pd.DataFrame, all: bool = False) -> pd.DataFrame:
    """`predicted` (see `tasks.in_words`) and `probability`, the highest (numbers have none), of each row, or None; with
    `all` each label's, too."""
    cells = cells.reset_index(drop=True)
    there = cells.dropna()
    values, labels = classifier.probabilities(*(list(there[role]) for role in there)), classifier.labels
    decided = decide(classifier.task, values, classifier.threshold)
    found = pd.DataFrame({"predicted": in_words(decided, labels, classifier.task)}, index=there.index)
    if classifier.task != "regression":
        found["probability"] = values.max(axis=1, initial=0)
        if all:
            found[[f"probability of {label}" for label in labels]] = values
    return found.reindex(cells.index)


main = command(predict)
