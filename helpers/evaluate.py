"""A model's scores on another labelled file."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report
from sklearn.preprocessing import MultiLabelBinarizer

from helpers.data import joined, text_hashes
from helpers.evaluation import correct_rows, resampled
from helpers.inference import TRAINING_TEXTS, SentimentClassifier
from helpers.own_data import listed
from helpers.profiles import device_name
from helpers.results import StudyRecord
from helpers.start import command
from helpers.tables import read_rows
from helpers.tasks import TASKS, decide, read_labels


def evaluate(
    model: str,
    file: Path,
    text_column: str | None = None,
    label_column: str | None = None,
    text_pair_column: str | None = None,
    label_separator: str | None = None,
    output: Path | None = None,
) -> None:
    """Scores a model on a labelled file: accuracy (micro F1, R2) with its 95 % interval, and the scores of each class.

    Where the model's folder knows which texts it was trained on (or its epoch chosen on), they are counted, and the
    other rows scored alone. Rows without text or label are left out; a label that the model does not have is an error.
    """
    if output and output.suffix != ".json":
        raise ValueError(f"--output {output} is a record; name a file that ends in .json.")
    rows, name = read_rows(file, text_column, label_column, text_pair_column), Path(file).name
    classifier = SentimentClassifier.from_pretrained(model)
    labels, task = classifier.labels, TASKS[classifier.task]
    complete = read_labels(rows, classifier.task, label_separator)[0].dropna()
    references = _references(complete["label"], classifier, name)
    texts = [list(complete[column]) for column in ("text", "pair") if column in complete]
    predictions = decide(classifier.task, classifier.probabilities(*texts), classifier.threshold)

    def score(rows=slice(None)) -> float:
        return task.score(predictions[rows], references[rows])

    low, high, _ = resampled(score, len(references))
    table = pd.DataFrame(index=["number"])
    if classifier.task != "regression":
        options = {"labels": range(len(labels)), "output_dict": True, "zero_division": 0}
        scores = classification_report(references, predictions, **options)
        table = pd.DataFrame(scores).T[: len(labels)].set_axis(labels)
        print(f"{table.round(3).to_string()}\n")
    sizes = {"n_labels": len(labels)} if classifier.task == "single" else {}
    found = {"model": str(model), "file": name, "task": classifier.task, "rows": len(rows), "scored": len(complete)}
    found |= task.metrics(predictions, references, **sizes) | {f"{task.headline}_ci95": [low, high]}
    said = f"{task.form} [{task.form}, {task.form}]".format(score(), low, high)
    print(f"{task.title[0].upper()}{task.title[1:]} {said} on {len(complete):,} of {len(rows):,} rows of {name}")
    if (known := Path(model) / TRAINING_TEXTS).is_file():
        seen = np.isin(text_hashes(joined(complete)), np.load(known))
        found["seen_in_training"], unseen = int(seen.sum()), (~seen).sum()
        alone = f"; {task.title} on the other {unseen:,}: {task.form.format(score(~seen))}" if unseen > 1 else ""
        print(f"{seen.sum():,} of these texts were seen in training{alone}")
    correct = "" if classifier.task == "regression" else correct_rows(predictions, references)
    found |= {"precision": classifier.precision, "correct": correct}
    rows = table.rename_axis("class").reset_index().to_dict("records")
    if output:
        command_line = f"python -m helpers.evaluate {model} {name}"
        StudyRecord(output.stem, command_line, None, device_name(), found, rows).save(output.parent)


def _references(labels: pd.Series, classifier: SentimentClassifier, name: str) -> np.ndarray:
    """Labels as `tasks.decide` gives predictions. Raises ValueError for one that the model does not have."""
    if classifier.task == "regression":
        return labels.to_numpy(float)
    unknown = [label for label in labels.explode().dropna().unique() if label not in classifier.labels]
    if unknown or labels.empty:
        lacks = f"labels that the model does not have: {listed(unknown)}" if unknown else "no row with text and label"
        raise ValueError(f"{name} has {lacks}; the model has {listed(classifier.labels)}.")
    if classifier.task == "multi":
        return MultiLabelBinarizer(classes=classifier.labels).fit_transform(labels)
    return labels.map(classifier.labels.index).to_numpy()


main = command(evaluate)
