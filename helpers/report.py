"""What a trained adapter scores on the rows of the user beside what costs nothing: table and advice."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import DatasetDict
from sklearn.metrics import balanced_accuracy_score

from helpers.baselines import bag_of_words, frozen_encoder, mean_embeddings
from helpers.data import tokenize
from helpers.evaluation import PairedComparison, balanced_accuracy, correct_rows, corrected, paired_comparison
from helpers.models import load_tokenizer
from helpers.profiles import Execution
from helpers.results import RunRecord


class Baseline(NamedTuple):
    """What a baseline scores on the test rows of a run, and how much more often the run is right than it."""

    name: str
    accuracy: float
    balanced_accuracy: float
    gain: PairedComparison


def compare_with_baselines(record: RunRecord, splits: DatasetDict, execution: Execution) -> list[Baseline]:
    """The bag of words and the frozen encoder, each trained on the run's own rows and weighting classes as it does.

    The p-values are corrected for their number (Holm 1979). There is no bag of words where the training texts share no
    words, as in languages that are written without spaces.
    """
    class_weights, labels = record.settings.get("class_weights"), {n: rows["label"] for n, rows in splits.items()}
    models, inputs = {}, {}
    with suppress(ValueError):
        models["bag of words"] = bag_of_words(splits["train"], splits["validation"], class_weights)
        inputs["bag of words"] = list(splits["test"]["text"])
    tokenizer = load_tokenizer(record.base_model)
    of_record = record.max_length, record.settings["truncation"]
    ids = [rows["input_ids"] for rows in tokenize(splits, tokenizer, *of_record).values()]
    vectors = mean_embeddings(record.base_model, tokenizer, [row for part in ids for row in part], execution)
    parts = dict(zip(splits, np.split(vectors, np.cumsum([len(part) for part in ids])[:-1]), strict=True))
    fitted_on = ((parts[name], labels[name]) for name in ("train", "validation"))
    models["frozen encoder"], inputs["frozen encoder"] = frozen_encoder(*fitted_on, class_weights), parts["test"]
    found = []
    for name, model in models.items():
        predictions, right = model.predict(inputs[name]), np.array(labels["test"])
        gain = paired_comparison(record.correct, correct_rows(predictions, right))
        found.append(Baseline(name, (predictions == right).mean(), balanced_accuracy_score(right, predictions), gain))
    gains = corrected({one.name: one.gain for one in found})
    return [one._replace(gain=gains[one.name]) for one in found]


def scores_table(record: RunRecord, baselines: Sequence[Baseline], skewed: bool) -> pd.DataFrame:
    """The run's accuracy (balanced where `skewed`) above the baselines', and what it gains over each, in points."""
    column = "balanced accuracy" if skewed else "accuracy"
    run = balanced_accuracy(record.confusion_matrix)[0] if skewed else record.metrics["accuracy"]
    rows = {"this model": (f"{run:.1%}", "", "")}
    for name, accuracy, balanced, gain in baselines:
        interval = f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        rows[name] = f"{balanced if skewed else accuracy:.1%}", interval, f"{gain.p_value:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index", columns=[column, "gain in accuracy [95 %]", "p, corrected"])


def advice(record: RunRecord, baselines: Sequence[Baseline], skewed: bool) -> str:
    """One line on whether this model is worth having on these rows, beside `baselines`."""
    run = balanced_accuracy(record.confusion_matrix)[0] if skewed else record.metrics["accuracy"]
    score = {one.name: one.balanced_accuracy if skewed else one.accuracy for one in baselines}
    best = max(baselines, key=lambda one: score[one.name])
    if score[best.name] > run:
        return f"The {best.name} is ahead of this model (helpers.baselines): take it, or more rows."
    if not skewed and not best.gain.seen:
        return (
            f"These test rows do not show that this model is better than the {best.name}, which needs no fine-tuning."
        )
    return f"This model is ahead of the {best.name}, the better of what needs no fine-tuning."
