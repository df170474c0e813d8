"""Predicts a file, single texts or lines: `python -m helpers.predict MODEL reviews.csv --text-column text -o out.csv`.

MODEL is an adapter's folder or a plain model's. FILE ends in .csv, .tsv, .jsonl or .parquet; `-` reads standard input,
one text a line. Every row comes back with all of its columns, `predicted` and `probability`. An output that ends in
.jsonl is JSON Lines, which also go to the terminal where no output is named; any other is CSV.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers.evaluation import TOKENS_PER_BATCH
from helpers.files import cells_of, new_file, read_frame
from helpers.inference import SentimentClassifier
from helpers.profiles import device
from helpers.start import exit_status, prepare_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Predicts from a terminal; returns the exit status, with bad input as one line on stderr."""
    prepare_process()
    parser = argparse.ArgumentParser(
        prog="python -m helpers.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("file", nargs="?", metavar="FILE")
    add("--text", action="append", default=[], metavar="TEXT", help="a text in place of FILE; repeatable")
    add("--text-column", default="text", metavar="NAME", help="default: text")
    add("--output", "-o", type=Path, metavar="FILE", help="appears, or is replaced, when all is predicted")
    add("--all", action="store_true", help="the probability of every label, a column each")
    options = parser.parse_args(arguments)
    if bool(options.file) == bool(options.text):
        parser.error("name a FILE (- for standard input), or texts with --text")
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """What the options ask for: the rows are predicted in parts, each written before the next is begun."""
    size = TOKENS_PER_BATCH[device()] // 2  # rows of a part: some batches even of short texts
    parts, total = read_parts(options, size)
    classifier = SentimentClassifier.from_pretrained(options.model)
    output, as_csv, missing = options.output, options.output and options.output.suffix.lower() != ".jsonl", 0
    with (
        new_file(output) if output else nullcontext() as path,
        path.open("w", encoding="utf-8", newline="") if path else nullcontext(sys.stdout) as stream,
        tqdm(total=total, unit=" rows", disable=None) as bar,  # drawn on a terminal alone
    ):
        for number, (rows, texts) in enumerate(parts):
            write(answers(classifier, rows, texts, options.all), stream, as_csv, header=number == 0)
            missing += texts.count(None)
            bar.update(len(rows))
    if missing:
        print(f"{missing:,} rows have no text, and no prediction.", file=sys.stderr)


def read_parts(options: argparse.Namespace, size: int) -> tuple[Iterator[tuple[pd.DataFrame, list]], int | None]:
    """(at most `size` rows with their texts at a time, how many rows there are in all, if that is known).

    Texts of a file are checked before the first is predicted. Raises as `files.read_frame` and `cells_of` do.
    """
    if options.file == "-":
        lines = iter(lambda: [line.rstrip("\n") for line in islice(sys.stdin, size)], [])
        frames, total = (pd.DataFrame({"text": part}, dtype=object) for part in lines), None
        return ((frame, cells_of(frame, "text", "standard input")) for frame in frames), total
    if options.text:
        frame, column, name = pd.DataFrame({"text": options.text}, dtype=object), "text", "--text"
    else:
        frame, column, name = read_frame(options.file), options.text_column, options.file
    texts = cells_of(frame, column, name)
    if taken := [one for one in frame.columns if re.fullmatch("predicted|probability( of .*)?", str(one))]:
        raise ValueError(f"{name} has a column {taken[0]!r} already; rename it.")
    starts = range(0, len(frame), size)
    return ((frame.iloc[start : start + size], texts[start : start + size]) for start in starts), len(frame)


def answers(
    classifier: SentimentClassifier, rows: pd.DataFrame, texts: list[str | None], every: bool = False
) -> pd.DataFrame:
    """`rows` with `predicted` and `probability`, and with `every` each label's; empty where there is no text.

    Of several labels a text the names are joined by "; ", and the probability is the highest; a number has none.
    """
    there = [index for index, text in enumerate(texts) if text is not None]
    values = classifier.probabilities([texts[index] for index in there])
    labels = np.array(classifier.labels, dtype=object)
    found = pd.DataFrame(values, columns=[f"probability of {label}" for label in labels])
    if classifier.task == "regression":
        found = pd.DataFrame({"predicted": values[:, 0]})
    else:
        found.insert(0, "predicted", ["; ".join(labels[row]) for row in chosen(values, classifier)])
        found.insert(1, "probability", values.max(axis=1, initial=0))
        found = found if every else found.iloc[:, :2]
    found = found.set_axis(rows.index[there]).reindex(rows.index)
    return pd.concat([rows, found], axis=1)


def chosen(probabilities: np.ndarray, classifier: SentimentClassifier) -> np.ndarray:
    """Which labels the task chooses, shape (n, n_labels): the most probable, or all from the threshold on."""
    if classifier.task == "multi":
        return probabilities >= classifier.threshold
    return np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]


def write(rows: pd.DataFrame, stream: TextIO, as_csv: bool, header: bool) -> None:
    """Appends `rows` to `stream` as CSV, or as JSON Lines."""
    if as_csv:
        rows.to_csv(stream, index=False, header=header, lineterminator="\n")
    else:
        rows.to_json(stream, orient="records", lines=True, force_ascii=False)
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
