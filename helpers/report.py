"""What a trained adapter scores on the rows of the user beside the baselines: table, advice, report, model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import DatasetDict
from huggingface_hub import ModelCardData
from sklearn.metrics import balanced_accuracy_score, classification_report
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
from helpers.inference import NOT_UPLOADED
from helpers.models import load_tokenizer
from helpers.own_data import Findings
from helpers.plots import draw_confusion, provenance, save_figure, set_theme
from helpers.training import FineTuned

MOST_PLOTTED = 30  # classes that a confusion matrix shows in a figure
REPORT, MERGED = NOT_UPLOADED


class Baseline(NamedTuple):
    """What a baseline scores on the test rows of a run, and how much more often the run is right than it."""

    name: str
    accuracy: float
    balanced_accuracy: float
    gain: PairedComparison


def compare_with_baselines(result: FineTuned, splits: DatasetDict) -> list[Baseline]:
    """The bag of words and the frozen encoder, each trained on the run's own rows and weighting classes as it does.

    The p-values are corrected for their number (Holm 1979). There is no bag of words where the training texts share no
    words, as in languages that are written without spaces.
    """
    record, weights = result.record, result.record.settings.get("class_weights")
    labels = {name: np.array(part["label"]) for name, part in splits.items()}
    predicted = {}
    try:
        predicted["bag of words"] = bag_of_words(splits["train"], splits["validation"], weights).predict(
            list(splits["test"]["text"])
        )
    except ValueError as error:
        if "vocabulary" not in str(error) and "no terms" not in str(error).lower():  # scikit-learn's two ways to say it
            raise
    tokenizer = load_tokenizer(record.base_model)
    tokens = tokenize(splits, tokenizer, record.max_length, record.settings["truncation"])
    vectors = {
        name: mean_embeddings(record.base_model, tokenizer, list(part["input_ids"]), record.precision)
        for name, part in tokens.items()
    }
    fitted_on = ((vectors[name], labels[name]) for name in ("train", "validation"))
    predicted["frozen encoder"] = frozen_encoder(*fitted_on, weights).predict(vectors["test"])
    right = labels["test"]
    gains = corrected(
        {name: paired_comparison(record.correct, correct_rows(found, right)) for name, found in predicted.items()}
    )
    return [
        Baseline(name, float((found == right).mean()), float(balanced_accuracy_score(right, found)), gains[name])
        for name, found in predicted.items()
    ]


def scores_table(result: FineTuned, baselines: Sequence[Baseline], skewed: bool) -> pd.DataFrame:
    """The run's accuracy (balanced where `skewed`) above the baselines', and what it gains over each, in points."""
    column = "balanced accuracy" if skewed else "accuracy"
    rows = {"this model": (f"{_score(result, skewed):.1%}", "", "")}
    for name, accuracy, balanced, gain in baselines:
        rows[name] = f"{balanced if skewed else accuracy:.1%}", gain.points, f"{gain.p_value:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index", columns=[column, "gain in accuracy [95 %]", "p, corrected"])


def _score(result: FineTuned, skewed: bool) -> float:
    return result.record.metrics["balanced_accuracy" if skewed else "accuracy"]


def advice(result: FineTuned, baselines: Sequence[Baseline], skewed: bool) -> str:
    """One line on whether this model is worth having on these rows, beside `baselines`."""
    scores = {one.name: one.balanced_accuracy if skewed else one.accuracy for one in baselines}
    best = max(baselines, key=lambda one: scores[one.name])
    if scores[best.name] > _score(result, skewed):
        return f"The {best.name} is ahead of this model: take it (helpers.evaluation), or label more rows."
    if not skewed and not best.gain.significant:
        return f"On these test rows this model is not significantly better than the {best.name}."
    return f"This model is ahead of the {best.name}, the better of the baselines."


def class_scores(predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """Precision, recall with its 95 % Wilson interval (1927), F1 and rows of each class; integers of shape (n,)."""
    predictions, references = np.asarray(predictions), np.asarray(references)
    report = classification_report(
        references, predictions, labels=range(len(labels)), target_names=labels, output_dict=True, zero_division=0
    )
    table = pd.DataFrame({label: report[label] for label in labels}).T
    found = [int(((predictions == index) & (references == index)).sum()) for index in range(len(labels))]
    low, high = proportion_confint(found, table["support"], method="wilson")
    table = table.assign(recall_low=low, recall_high=high, rows=table["support"].astype(int), f1=table["f1-score"])
    return table[["precision", "recall", "recall_low", "recall_high", "f1", "rows"]]


def most_wrong(result: FineTuned, splits: DatasetDict, n: int = 20) -> pd.DataFrame:
    """The (at most) `n` test rows that are wrong with the highest probability, by their row in the file.

    Labels that look wrong themselves are worth correcting there.
    """
    test = splits["test"].to_pandas().set_index("row")
    names = np.array(splits["test"].features["label"].names)
    test = test.assign(
        label=names[test["label"]], predicted=names[result.predictions], probability=result.probabilities.max(axis=1)
    )
    return test[test["label"] != test["predicted"]].sort_values("probability", ascending=False, kind="stable").head(n)


def write_report(result: FineTuned, splits: DatasetDict, findings: Findings, baselines: Sequence[Baseline]) -> Path:
    """Writes model card and report into the adapter's folder, and returns the card's path.

    `README.md` is the card; `report/` holds scores and confusion matrix (a table where the classes are more than
    `MOST_PLOTTED`), the most confidently wrong test rows and the run's record. A merged model gets its card too.
    """
    labels = splits["test"].features["label"].names
    folder = result.adapter / REPORT
    scores = class_scores(result.predictions, np.array(splits["test"]["label"]), labels)
    write_text(folder / "class_scores.csv", scores.to_csv(index_label="class"))
    write_text(folder / "most_wrong.csv", most_wrong(result, splits).to_csv())
    write_text(folder / "baselines.csv", scores_table(result, baselines, findings.skewed).to_csv())
    write_json(folder / "record.json", vars(result.record))
    matrix = pd.DataFrame(result.record.confusion_matrix, index=labels, columns=labels)
    write_text(folder / "confusion.csv", matrix.to_csv(index_label="true class / predicted class"))
    if len(labels) <= MOST_PLOTTED:
        set_theme()
        with plt.rc_context({"text.parse_math": False}):  # "$5 to $10" is a label and no formula
            figure, axes = plt.subplots(figsize=(len(labels) + 3, len(labels) + 2), layout="constrained")
            draw_confusion(axes, result.record, [label[:30] for label in labels])
            save_figure(figure, folder / "confusion.png", provenance(result.record))
        plt.close(figure)  # a notebook would show it a second time
    for place in filter(Path.is_dir, (result.adapter, result.adapter / MERGED)):
        card = model_card(result, splits, findings, scores, baselines, merged=place.name == MERGED)
        write_text(place / "README.md", card)
    return result.adapter / "README.md"


def model_card(
    result: FineTuned,
    splits: DatasetDict,
    findings: Findings,
    scores: pd.DataFrame,
    baselines: Sequence[Baseline],
    merged: bool = False,
) -> str:
    """The README.md of an adapter's folder, or of the `merged` model's: data, scores, base model, how to load it.

    Names the data file and a local base without their folders. `scores` are `class_scores` of the test rows.
    """
    record = result.record
    local = record.base_model in EMBEDDED or Path(record.base_model).is_dir()
    base = Path(record.base_model).name
    method = "QLoRA" if record.settings["quantization"] else "LoRA"
    metadata = ModelCardData(
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-classification",
        base_model=None if local else record.base_model,
        tags=[method.lower(), "text-classification"],
    )
    sizes = pd.DataFrame({name: np.bincount(part["label"], minlength=len(scores)) for name, part in splits.items()})
    sizes.index = scores.index
    percents = scores.drop(columns="rows").map("{:.1%}".format).assign(rows=scores["rows"])
    settings = ("r", "lora_alpha", "target_modules", "learning_rate", "num_train_epochs", "class_weights")
    left_out = ", ".join(
        f"{len(getattr(findings, name)):,} {name.replace('_', ' ')}"
        for name in ("missing_texts", "missing_labels", "duplicates", "conflicts")
    )
    load = (
        'from transformers import pipeline\n\npipeline("text-classification", model="FOLDER")("...", truncation=True)'
        if merged
        else "from helpers.inference import SentimentClassifier  # of bert-peft-notebooks\n\n"
        'SentimentClassifier.from_pretrained("FOLDER").predict(["..."])'
    )
    travels = (
        f"The base checkpoint, {base}, is not on the Hugging Face Hub: this adapter loads where that is, the merged "
        "model anywhere."
        if local and not merged
        else ""
    )
    return f"""---
{metadata.to_yaml()}
---

# {"A text classifier" if merged else f"A {method} adapter"}: {", ".join(map(str, scores.index[:20]))}

{base}, fine-tuned with {method} to sort a text into one of {len(scores)} classes.

## Scores

Accuracy on {record.n_test:,} test rows: **{record.score}** (95 % bootstrap interval); balanced accuracy \
{record.metrics["balanced_accuracy"]:.1%}{" (the classes are skewed: read this one)" if findings.skewed else ""}. \
They were scored once, after the epoch had been chosen on validation rows. The scores hold for texts from where these \
came from, and for no others.

{markdown(scores_table(result, baselines, findings.skewed), "")}

{markdown(percents, "class")}

## Load it

```python
{load}
```

{travels} Texts longer than {record.max_length} tokens are cut ({record.settings["truncation"]}; plain transformers \
keeps the first tokens).

## Data

`{record.dataset}`, {findings.rows:,} rows. Left out: {left_out}.

{markdown(sizes, "rows")}

## Training

Recipe `{record.recipe}`: {", ".join(f"{name} {record.settings[name]}" for name in settings)}. {record.device}, \
{record.precision}, seed {record.seed}, {record.created_at[:10]}. \
{", ".join(f"{name} {version}" for name, version in record.versions.items())}.
"""


def markdown(table: pd.DataFrame, corner: str) -> str:
    """`table` as Markdown, its index first under `corner`."""
    rows = [[corner, *table.columns], ["---"] + ["---:"] * table.shape[1]]
    rows += [
        [str(name).replace("|", "\\|"), *map(str, row)] for name, row in zip(table.index, table.values, strict=True)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
