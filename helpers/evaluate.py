"""A model's scores on another labelled file."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report

from helpers.data import text_hashes
from helpers.evaluation import accuracy_interval, classification_metrics, correct_rows
from helpers.files import read_rows
from helpers.inference import TRAINING_TEXTS, SentimentClassifier
from helpers.own_data import listed
from helpers.profiles import device_name
from helpers.results import StudyRecord
from helpers.start import command


def evaluate(
    model: str, file: Path, text_column: str = "text", label_column: str = "label", output: Path | None = None
) -> StudyRecord:
    """Scores a model on a labelled file: accuracy with its 95 % interval, and the scores of each class.

    Where the model's folder knows which texts it was trained on (or its epoch chosen on), they are counted, and the
    other rows scored alone. Rows without text or label are left out; a label that the model does not have is an error.
    """
    rows, classifier = read_rows(file, text_column, label_column), SentimentClassifier.from_pretrained(model)
    complete, labels, name = rows.dropna(), classifier.labels, Path(file).name
    unknown = [label for label in complete["label"].unique() if label not in labels]
    if unknown or complete.empty:
        lacks = f"labels that the model does not have: {listed(unknown)}" if unknown else "no row with text and label"
        raise ValueError(f"{name} has {lacks}; the model has {listed(labels)}.")
    references = complete["label"].map(labels.index).to_numpy()
    predictions = classifier.probabilities(complete["text"].tolist()).argmax(axis=1)
    options = {"labels": range(len(labels)), "output_dict": True, "zero_division": 0}
    table = pd.DataFrame(classification_report(references, predictions, **options)).T[: len(labels)].set_axis(labels)
    found = {"model": str(model), "file": name, "rows": len(rows), "scored": len(complete)}
    found |= classification_metrics(predictions, references)
    found["accuracy_ci95"] = accuracy_interval(predictions, references)
    said = "{:.1%} [{:.1%}, {:.1%}]".format(found["accuracy"], *found["accuracy_ci95"])
    print(f"{table.round(3).to_string()}\n\nAccuracy {said} on {len(complete):,} of {len(rows):,} rows of {name}")
    if (known := Path(model) / TRAINING_TEXTS).is_file():
        seen = np.isin(text_hashes(complete["text"]), np.load(known))
        found["seen_in_training"], unseen = int(seen.sum()), (predictions == references)[~seen]
        alone = f"; accuracy on the other {len(unseen):,}: {unseen.mean():.1%}" if len(unseen) else ""
        print(f"{seen.sum():,} of these texts were seen in training{alone}")
    found |= {"precision": classifier.precision, "correct": correct_rows(predictions, references)}
    classes = table.rename_axis("class").reset_index().to_dict("records")
    said = f"python -m helpers.evaluate {model} {name}"
    record = StudyRecord(output.stem if output else "evaluation", said, None, device_name(), found, classes)
    if output:
        record.save(output.parent)
    return record


main = command(evaluate)

if __name__ == "__main__":
    sys.exit(main())
