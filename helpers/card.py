"""The model card of an adapter, or of the merged model: data, scores beside what costs nothing, how to load it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict
from huggingface_hub import ModelCardData

from helpers.base.texts import shortened
from helpers.evaluation import balanced_accuracy
from helpers.own_data import SHOWN_CLASSES, SKEW, Findings
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT
from helpers.report import Baseline
from helpers.results import RunRecord

DESCRIBED = {
    "bag of words": "TF-IDF with logistic regression",
    "frozen encoder": "Logistic regression on the frozen encoder's mean embedding",
}


def model_card(
    record: RunRecord,
    splits: DatasetDict,
    findings: Findings,
    scores: pd.DataFrame,
    baselines: Sequence[Baseline],
    merged: bool = False,
    chosen: str = "",
) -> str:
    """The README.md of an adapter's folder, or of the `merged` model's: data, scores, base model, how to load it.

    Names the data file without its folder. `scores` are `evaluation.class_scores` of the test rows, `baselines` is what
    `compare_with_baselines` gives; `chosen` says from which runs this one was chosen, if it was.
    """
    embedded = record.base_model in (EMBEDDED_BERT, EMBEDDED_DISTILBERT)
    local = Path(record.base_model).is_dir()
    base = Path(record.base_model).name if local else record.base_model
    method = "QLoRA" if record.settings["quantization"] else "LoRA"
    metadata = ModelCardData(
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-classification",
        base_model=None if embedded or local else base,
        tags=[method.lower(), "text-classification"],
    )
    compared = [
        f"{DESCRIBED[name]} reaches {accuracy:.1%} on the same rows; the difference is {gain.points}, "
        f"p = {gain.p_value:.2g}."
        for name, accuracy, _, gain in baselines
    ]
    if compared:
        compared.append("(p by exact McNemar tests, corrected for their number.)")
    names = [shortened(label) for label in scores.index]
    titles = ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
    sizes = pd.DataFrame({name: np.bincount(rows["label"], minlength=len(scores)) for name, rows in splits.items()})
    sizes.index = scores.index
    shown = scores.drop(columns=["recall_low", "recall_high"]).map("{:.1%}".format)
    shown["rows"] = scores["rows"]
    shown["recall"] = [f"{row.recall:.1%} [{row.recall_low:.1%}, {row.recall_high:.1%}]" for row in scores.itertuples()]
    settings = ["r", "lora_alpha", "target_modules", "learning_rate", "per_device_train_batch_size", "num_train_epochs"]
    settings += ["class_weights"] if record.settings.get("class_weights") else []
    low, high = record.accuracy_ci95
    scored = (
        f"Accuracy on {record.n_test:,} test rows: **{record.metrics['accuracy']:.1%}**, 95 % interval [{low:.1%}, "
        f"{high:.1%}] (bootstrap over the test rows). They were scored once, after the epoch had been chosen on "
        f"validation rows. {' '.join([*compared, chosen]).strip()}"
    )
    parts = [scored, f"{_markdown(shown, 'class')}\n\nRecall has its 95 % Wilson interval."]
    if findings.skewed:
        value, low, high = balanced_accuracy(record.confusion_matrix)
        lead = (
            f"Balanced accuracy, the mean of the classes' recall: **{value:.1%}**, 95 % interval [{low:.1%}, "
            f"{high:.1%}] (bootstrap within each class). It leads as the classes are skewed: the largest has more than "
            f"{SKEW} times the rows of the smallest. Always naming the largest would have an accuracy of "
            f"{scores['rows'].max() / record.n_test:.1%} and a balanced one of {1 / len(scores):.1%}."
        )
        parts = [lead, *reversed(parts)]
    scored = "\n\n".join(parts)
    return f"""---
{metadata.to_yaml()}
---

# {"A text classifier" if merged else f"A {method} adapter for text classification"}: {titles}

{base}, fine-tuned with {method} to sort a text into one of {len(scores)} classes.

## Data

`{record.dataset}`, {findings.rows:,} rows. Left out: {len(findings.missing_texts):,} without text, \
{len(findings.missing_labels):,} without label, {len(findings.duplicates):,} duplicates, {len(findings.conflicts):,} \
whose text carries more than one label. No text is in two of the parts.

{_markdown(sizes, "rows")}

## Scores

{scored} The scores hold for texts from where these came from, and for no others.

## Load it

{_loading(record, base, embedded, local, merged)}

## Training

Recipe `{record.recipe}` ({record.variant}): {", ".join(f"{name} {record.settings[name]}" for name in settings)}. \
{record.device}, {record.precision}, seed {record.seed}, {record.created_at[:10]}. Versions: \
{", ".join(f"{name} {version}" for name, version in record.versions.items())}.
"""


def _loading(record: RunRecord, base: str, embedded: bool, local: bool, merged: bool) -> str:
    cut = (
        f"Texts longer than {record.max_length} tokens are cut ({record.settings['truncation']}"
        f"{', where plain transformers keeps the first tokens' if record.settings['truncation'] != 'head' else ''})."
    )
    if merged:
        weights = "weights, unpacked from 4 bits to fp32" if record.settings["quantization"] else "weights"
        return (
            f"The adapter is merged into the {weights}, so plain transformers loads this folder:\n\n```python\n"
            'from transformers import pipeline\n\nclassify = pipeline("text-classification", model="this/folder")\n'
            f'classify("...", truncation=True)\n```\n\n{cut}'
        )
    if embedded:
        travel = (
            f"The base checkpoint, {base}, is laid out by the bert-peft-notebooks package from weights that pip "
            "installs. This adapter does not travel without that package; the merged folder does."
        )
    elif local:
        travel = (
            f"The base checkpoint, {base}, is a folder of the machine that trained; without it, use the merged folder."
        )
    else:
        travel = f"The base checkpoint, {base}, comes from the Hugging Face Hub."
    return (
        "With the bert-peft-notebooks package:\n\n```python\nfrom helpers.inference import SentimentClassifier\n"
        "from helpers.publish import merge_adapter\n\n"
        'SentimentClassifier.from_pretrained("this/folder").predict(["..."])\n'
        'merge_adapter("this/folder", "merged/folder")  # a plain model folder, for transformers alone\n```\n\n'
        f"{travel} `pipeline` on this folder would take the names of the classes from the base checkpoint; with plain "
        "transformers and peft, load it with `AutoModelForSequenceClassification.from_pretrained(folder, id2label=..., "
        f"label2id=...)`, or take the merged folder, which has the right ones. {cut}"
    )


def _markdown(table: pd.DataFrame, corner: str) -> str:
    rows = [[corner, *table.columns], ["---"] + ["---:"] * table.shape[1]]
    rows += [
        [str(name).replace("|", "\\|"), *map(str, values)]
        for name, values in zip(table.index, table.values, strict=True)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
