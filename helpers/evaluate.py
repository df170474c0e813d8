"""Scores a model on another labelled file: `python -m helpers.evaluate MODEL reviews.csv --label-column label`.

MODEL is an adapter's folder or a plain model's. Printed are the accuracy with its interval, the scores of each class,
and how many of the texts the model was trained on, where its folder knows that; `--output` also writes a record.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.metrics import confusion_matrix

from helpers.data import text_hashes
from helpers.evaluation import accuracy_interval, classification_metrics, correct_rows
from helpers.files import read_rows, write_json
from helpers.inference import TRAINING_TEXTS, SentimentClassifier
from helpers.models import count_parameters, weight_bytes
from helpers.profiles import current_profile, device_name
from helpers.report import class_scores
from helpers.results import RunRecord
from helpers.start import exit_status, prepare_process
from helpers.training import FineTuned


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores from a terminal; returns the exit status, with bad input as one line on stderr."""
    prepare_process()
    parser = argparse.ArgumentParser(
        prog="python -m helpers.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="default: text")
    parser.add_argument("--label-column", default="label", metavar="NAME", help="default: label")
    parser.add_argument("--output", type=Path, metavar="RECORD.json", help="what was scored, and how it scored")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """What the options ask for."""
    rows = read_rows(options.file, options.text_column, options.label_column)
    complete = rows.dropna()
    if len(complete) < len(rows):
        print(f"{len(rows) - len(complete):,} of {len(rows):,} rows have no text or no label, and are left out.")
    result, splits = score(options.model, complete, options.file.name)
    record = result.record
    print(f"{class_scores(result, splits).round(3).to_string()}\n")
    print(f"Accuracy {record.score} on {record.n_test:,} rows; balanced {record.metrics['balanced_accuracy']:.1%}")
    if "accuracy_unseen" in record.metrics:
        seen, rest = record.settings["seen_in_training"], record.metrics["accuracy_unseen"]
        print(f"{seen:,} of them have texts of its training or validation rows; on the others {rest:.1%}")
    elif "seen_in_training" in record.settings:
        print(f"{record.settings['seen_in_training']:,} of them have texts of its training or validation rows")
    if options.output:
        print(f"Record: {write_json(options.output, vars(record))}")


def score(model: str | Path, rows: pd.DataFrame, name: str) -> tuple[FineTuned, DatasetDict]:
    """The classifier in `model` scored on `rows` of file `name`, complete ones (see `files.read_rows`), its record with
    it; and the rows as the "test" split. Raises ValueError for a label that the model does not have."""
    classifier = SentimentClassifier.from_pretrained(model)
    labels, counts = classifier.labels, rows["label"].value_counts()
    if unknown := [f"{label!r} ({count:,})" for label, count in counts.items() if label not in labels]:
        has = ", ".join(map(repr, labels[:20]))
        raise ValueError(f"{name} has labels that the model does not have: {', '.join(unknown[:5])}; it has {has}.")
    if rows.empty:
        raise ValueError(f"{name} has no row with a text and a label.")
    references = rows["label"].map(labels.index).to_numpy()
    probabilities = classifier.probabilities(rows["text"].tolist())
    predictions = probabilities.argmax(axis=1)
    metrics, settings = classification_metrics(predictions, references), {"truncation": classifier.truncation}
    known = np.load(path) if (path := Path(model) / TRAINING_TEXTS).is_file() else np.array([])
    if len(known):
        seen = np.isin(text_hashes(rows["text"]), known)
        settings["seen_in_training"] = int(seen.sum())
        if 0 < seen.sum() < len(seen):
            metrics["accuracy_unseen"] = float((predictions == references)[~seen].mean())
    record = RunRecord(
        recipe="evaluate",
        variant=Path(model).name,
        profile=current_profile().name,
        base_model=str(model),
        dataset=name,
        n_train=len(known),
        n_validation=0,
        n_test=len(rows),
        max_length=classifier.max_length,
        seed=0,
        device=device_name(),
        precision=classifier.precision,
        trainable_params=0,
        total_params=count_parameters(classifier.model)[1],
        weights_bytes=sum(weight_bytes(classifier.model).values()),
        metrics=metrics,
        accuracy_ci95=list(accuracy_interval(predictions, references)),
        confusion_matrix=confusion_matrix(references, predictions, labels=range(len(labels))).tolist(),
        correct=correct_rows(predictions, references),
        settings=settings,
    )
    features = Features({"text": Value("string"), "label": ClassLabel(names=labels), "row": Value("int64")})
    frame = pd.DataFrame({"text": rows["text"], "label": references, "row": rows.index})
    splits = DatasetDict(test=Dataset.from_pandas(frame, features, preserve_index=False))
    return FineTuned(classifier.model, classifier.tokenizer, record, probabilities), splits


if __name__ == "__main__":
    sys.exit(main())
