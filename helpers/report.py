"""What a trained adapter scores on the rows of the user beside the baselines: table, advice, report, model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import DatasetDict
from huggingface_hub import ModelCard, ModelCardData
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support
from statsmodels.stats.proportion import proportion_confint

from helpers.checkpoints import EMBEDDED
from helpers.data import tokenize
from helpers.evaluation import (
    PairedComparison,
    bag_of_words,
    correct_rows,
    corrected,
    frozen_encoder,
    mean_embeddings,
    paired_comparison,
)
from helpers.files import write_json, write_text
from helpers.inference import MERGED, REPORT
from helpers.own_data import Findings
from helpers.plots import draw_confusion, provenance, save_figure
from helpers.training import FineTuned


class Baseline(NamedTuple):
    """What a baseline scores on the test rows of a run, and how much more often the run is right than it."""

    name: str
    accuracy: float
    balanced_accuracy: float
    gain: PairedComparison


def compare_with_baselines(result: FineTuned, splits: DatasetDict) -> list[Baseline]:
    """The bag of words and the frozen encoder, each trained on the run's own rows and weighting classes as it does.

    The p-values are corrected (Holm 1979). Languages that are written without spaces have no bag of words.
    """
    record, weights = result.record, result.record.settings.get("class_weights")
    tokens = tokenize(splits, result.tokenizer, record.max_length, record.settings["truncation"])
    vectors = {
        name: mean_embeddings(record.base_model, result.tokenizer, list(part["input_ids"]), record.precision)
        for name, part in tokens.items()
    }
    fitted_on = ((vectors[name], np.array(splits[name]["label"])) for name in ("train", "validation"))
    predicted = {"frozen encoder": frozen_encoder(*fitted_on, weights).predict(vectors["test"])}
    try:
        bag = bag_of_words(splits["train"], splits["validation"], weights)
        predicted["bag of words"] = bag.predict(list(splits["test"]["text"]))
    except ValueError as error:
        if "vocabulary" not in str(error) and "no terms" not in str(error).lower():  # scikit-learn's, without words
            raise
    right = np.array(splits["test"]["label"])
    gains = {name: paired_comparison(record.correct, correct_rows(found, right)) for name, found in predicted.items()}
    return [
        Baseline(name, accuracy_score(right, predicted[name]), balanced_accuracy_score(right, predicted[name]), gain)
        for name, gain in corrected(gains).items()
    ]


def scores_table(result: FineTuned, baselines: Sequence[Baseline], skewed: bool) -> pd.DataFrame:
    """The run's accuracy (balanced where `skewed`) above the baselines', and what it gains over each, in points."""
    column = "balanced_accuracy" if skewed else "accuracy"
    rows = {"this model": (f"{result.record.metrics[column]:.1%}", "", "")}
    for one in baselines:
        rows[one.name] = f"{getattr(one, column):.1%}", one.gain.points, f"{one.gain.p_value:.2g}"
    columns = [column.replace("_", " "), "gain in accuracy [95 %]", "p, corrected"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def advice(result: FineTuned, baselines: Sequence[Baseline], skewed: bool) -> str:
    """One line on whether this model is worth having on these rows, beside `baselines`."""
    column = "balanced_accuracy" if skewed else "accuracy"
    best = max(baselines, key=lambda one: getattr(one, column))
    if getattr(best, column) > result.record.metrics[column]:
        return f"The {best.name} is ahead of this model: take it (helpers.evaluation), or label more rows."
    if not skewed and not best.gain.significant:
        return f"On these test rows this model is not significantly better than the {best.name}."
    return f"This model is ahead of the {best.name}, the better of the baselines."


def class_scores(result: FineTuned, splits: DatasetDict) -> pd.DataFrame:
    """Precision, recall with its 95 % Wilson interval (1927), F1 and test rows of each class."""
    labels, references = splits["test"].features["label"].names, np.array(splits["test"]["label"])
    options = {"labels": range(len(labels)), "zero_division": 0}
    precision, recall, f1, rows = precision_recall_fscore_support(references, result.predictions, **options)
    low, high = proportion_confint(np.diag(result.record.confusion_matrix), rows, method="wilson")
    columns = {"precision": precision, "recall": recall, "recall_low": low, "recall_high": high, "f1": f1, "rows": rows}
    return pd.DataFrame(columns, index=labels)


def most_wrong(result: FineTuned, splits: DatasetDict, n: int = 20) -> pd.DataFrame:
    """The (at most) `n` test rows that are wrong with the highest probability, by their row in the file."""
    test, names = splits["test"].to_pandas().set_index("row"), np.array(splits["test"].features["label"].names)
    guessed = {"predicted": names[result.predictions], "probability": result.probabilities.max(axis=1)}
    test = test.assign(label=names[test["label"]], **guessed).query("label != predicted")
    return test.sort_values("probability", ascending=False, kind="stable").head(n)


def write_report(result: FineTuned, splits: DatasetDict, findings: Findings, baselines: Sequence[Baseline]) -> Path:
    """Writes model card and report into the adapter's folder, and returns the card's path.

    `README.md` is the card, a merged model's too; `report/` holds the scores of each class, the confusion matrix (a
    figure up to 30 classes), the most confidently wrong test rows and the run's record.
    """
    labels = splits["test"].features["label"].names
    folder = result.adapter / REPORT
    matrix = pd.DataFrame(result.record.confusion_matrix, index=labels, columns=labels)
    write_text(folder / "class_scores.csv", class_scores(result, splits).to_csv(index_label="class"))
    write_text(folder / "confusion.csv", matrix.to_csv(index_label="true class / predicted class"))
    write_text(folder / "most_wrong.csv", most_wrong(result, splits).to_csv())
    write_json(folder / "record.json", vars(result.record))
    if len(labels) <= 30:
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
    sizes = {name: np.bincount(part["label"], minlength=len(scores)) for name, part in splits.items()}
    card = ModelCard.from_template(
        metadata,
        template_path=str(Path(__file__).with_name("card.md")),
        record=record,
        merged=merged,
        method=method,
        local=local,
        base=Path(record.base_model).name,
        findings=findings,
        baselines=scores_table(result, baselines, findings.skewed),
        scores=scores,
        sizes=pd.DataFrame(sizes, index=scores.index),
    )
    return str(card)
