"""What a trained adapter scores on the rows of the user beside the baselines: table, advice, report, model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import DatasetDict
from huggingface_hub import ModelCard, ModelCardData
from sklearn.metrics import precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint

from helpers import evaluation
from helpers.checkpoints import EMBEDDED
from helpers.data import joined, model_inputs, tokenize
from helpers.files import write_json, write_text
from helpers.inference import MERGED, REPORT
from helpers.own_data import Findings
from helpers.plots import draw_confusion, provenance, save_figure
from helpers.tasks import in_words, label_names, targets, task_of
from helpers.training import FineTuned


class Baseline(NamedTuple):
    """What a baseline scores on the test rows of a run, and how much more the run scores: for single classes
    how much more often it is right, else what leads for the task."""

    name: str
    metrics: dict[str, float]
    gain: evaluation.PairedComparison


def compare_with_baselines(result: FineTuned, splits: DatasetDict) -> list[Baseline]:
    """The bag of words and the frozen encoder, each trained on the run's own rows and weighting classes as it does.

    The p-values are corrected (Holm 1979). Languages that are written without spaces have no bag of words.
    """
    record, weights = result.record, result.record.settings.get("class_weights")
    tokens = tokenize(splits, result.tokenizer, record.max_length, record.settings["truncation"])
    vectors = {
        name: evaluation.mean_embeddings(record.base_model, result.tokenizer, model_inputs(part), record.precision)
        for name, part in tokens.items()
    }
    fitted_on = ((vectors[name], targets(splits[name])) for name in ("train", "validation"))
    predicted = {"frozen encoder": evaluation.frozen_encoder(*fitted_on, weights).predict(vectors["test"])}
    try:
        bag = evaluation.bag_of_words(splits["train"], splits["validation"], weights)
        predicted["bag of words"] = bag.predict(joined(splits["test"]))
    except ValueError as error:
        if "vocabulary" not in str(error) and "no terms" not in str(error).lower():  # scikit-learn's, without words
            raise
    right = targets(splits["test"])

    def compare(found: np.ndarray) -> evaluation.PairedComparison:
        if task_of(right) == "single":
            return evaluation.paired_comparison(record.correct, evaluation.correct_rows(found, right))
        return evaluation.compare_scores(record.task.score, result.predictions, found, right)

    gains = evaluation.corrected({name: compare(found) for name, found in predicted.items()})
    return [Baseline(name, record.task.metrics(predicted[name], right), gain) for name, gain in gains.items()]


def scores_table(result: FineTuned, baselines: Sequence[Baseline], skewed: bool) -> pd.DataFrame:
    """The run's accuracy (balanced where `skewed`), or what leads for the task, above the baselines', and its gains."""
    task = result.record.task
    column = "balanced_accuracy" if skewed else task.headline
    rows = {"this model": (task.form.format(result.record.metrics[column]), "", "")}
    for one in baselines:
        gain = one.gain.points if "%" in task.form else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one.gain[:3])
        rows[one.name] = task.form.format(one.metrics[column]), gain, f"{one.gain.p_value:.2g}"
    columns = ["balanced accuracy" if skewed else task.title, f"gain in {task.title} [95 %]", "p, corrected"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def advice(result: FineTuned, baselines: Sequence[Baseline], skewed: bool) -> str:
    """One line on whether this model is worth having on these rows, beside `baselines`."""
    column = "balanced_accuracy" if skewed else result.record.task.headline
    best = max(baselines, key=lambda one: one.metrics[column])
    if best.metrics[column] > result.record.metrics[column]:
        return f"The {best.name} is ahead of this model: take it (helpers.evaluation), or label more rows."
    tie = best.metrics[column] == result.record.metrics[column]
    if tie or (not skewed and best.gain.verdict.startswith("not")):
        return f"On these test rows this model is not significantly better than the {best.name}."
    return f"This model is ahead of the {best.name}, the better of the baselines."


def class_scores(result: FineTuned, splits: DatasetDict) -> pd.DataFrame:
    """Precision, recall with its 95 % Wilson interval (1927), F1 and rows of each class; of numbers the metrics."""
    labels, references = label_names(splits["test"]), targets(splits["test"])
    if task_of(references) == "regression":
        return pd.DataFrame(result.record.metrics, index=labels)
    options = {"labels": range(len(labels)), "zero_division": 0}
    precision, recall, f1, rows = precision_recall_fscore_support(references, result.predictions, **options)
    low, high = proportion_confint(np.rint(recall * rows), rows, method="wilson")
    columns = {"precision": precision, "recall": recall, "recall_low": low, "recall_high": high, "f1": f1, "rows": rows}
    return pd.DataFrame(columns, index=labels)


def most_wrong(result: FineTuned, splits: DatasetDict, n: int = 20) -> pd.DataFrame:
    """The (at most) `n` test rows that are wrong with the highest probability, by their row in the file; of several
    labels by the one that is furthest off, of numbers by their error."""
    test, names = splits["test"].to_pandas().set_index("row"), label_names(splits["test"])
    right, scores = targets(splits["test"]), result.probabilities
    task = task_of(right)
    label, predicted = (in_words(one, names, task) for one in (right, result.predictions))
    sure = scores.max(axis=1) if task == "single" else np.abs(scores - right.reshape(scores.shape)).max(axis=1)
    test = test.assign(label=label, predicted=predicted, **{"probability" if task == "single" else "error": sure})
    return test.query("label != predicted").sort_values(test.columns[-1], ascending=False, kind="stable").head(n)


def write_report(result: FineTuned, splits: DatasetDict, findings: Findings, baselines: Sequence[Baseline]) -> Path:
    """Writes model card and report into the adapter's folder, and returns the card's path.

    `README.md` is the card, a merged model's too; `report/` holds the scores of each class, the confusion matrix (a
    figure up to 30 classes), the most confidently wrong test rows and the run's record.
    """
    labels, folder = label_names(splits["test"]), result.adapter / REPORT
    write_text(folder / "class_scores.csv", class_scores(result, splits).to_csv(index_label="class"))
    if result.record.confusion_matrix:
        matrix = pd.DataFrame(result.record.confusion_matrix, index=labels, columns=labels)
        write_text(folder / "confusion.csv", matrix.to_csv(index_label="true class / predicted class"))
    write_text(folder / "most_wrong.csv", most_wrong(result, splits).to_csv())
    write_json(folder / "record.json", vars(result.record))
    if result.record.confusion_matrix and len(labels) <= 30:
        with plt.rc_context({"text.parse_math": False}):  # "$5 to $10" is a label and no formula
            figure, axes = plt.subplots(figsize=(len(labels) + 3, len(labels) + 2), layout="constrained")
            draw_confusion(axes, result.record, [label[:30] for label in labels])
            save_figure(figure, folder / "confusion.png", provenance(result.record))
        plt.close(figure)  # a notebook would show it a second time
    for place in filter(Path.is_dir, (result.adapter, result.adapter / MERGED)):
        card = model_card(result, splits, findings, baselines, merged=place.name == MERGED)
        write_text(place / "README.md", card)
    return result.adapter / "README.md"


def model_card(
    result: FineTuned, splits: DatasetDict, findings: Findings, baselines: Sequence[Baseline], merged: bool = False
) -> str:
    """card.md filled in, for an adapter's folder or the `merged` model's, without folders of this machine."""
    record, scores = result.record, class_scores(result, splits)
    local = record.base_model in EMBEDDED or Path(record.base_model).is_dir()
    method = "QLoRA" if record.settings["quantization"] else "LoRA"
    metadata = ModelCardData(
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-classification",
        base_model=None if local else record.base_model,
        tags=[method.lower()],
    )
    labels = {name: pd.Series(part["label"][:]).explode() for name, part in splits.items()}
    sizes = {name: one.value_counts().reindex(range(len(scores))) for name, one in labels.items()}
    card = ModelCard.from_template(
        metadata,
        template_path=str(Path(__file__).with_name("card.md")),
        record=record,
        merged=merged,
        pairs="pair" in splits["test"].column_names,
        method=method,
        local=local,
        base=Path(record.base_model).name,
        findings=findings,
        baselines=scores_table(result, baselines, findings.skewed),
        scores=scores,
        sizes=pd.DataFrame(sizes).fillna(0).astype(int).set_axis(scores.index),
    )
    return str(card)
