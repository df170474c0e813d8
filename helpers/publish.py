"""A trained adapter made fit for others: its report, its model card, the merged model, the hub."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import DatasetDict
from huggingface_hub import HfApi, ModelCardData, get_token

from helpers.adapters import load_adapter
from helpers.base.texts import shortened
from helpers.base.writing import new_folder, write_json, write_text
from helpers.evaluation import balanced_accuracy, class_scores, most_wrong
from helpers.own_data import SHOWN_CLASSES, SKEW, Findings
from helpers.plots import provenance, save_figure
from helpers.plots.runs import plot_class_confusion
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT, Execution
from helpers.report import Baseline, scores_table
from helpers.results import RunRecord
from helpers.training import FineTuned

MOST_PLOTTED = 30  # classes that a confusion matrix shows in a figure
DESCRIBED = {
    "bag of words": "TF-IDF with logistic regression",
    "frozen encoder": "Logistic regression on the frozen encoder's mean embedding",
}
REPORT, MERGED = "report", "merged"  # folders inside an adapter's; the report quotes rows and stays off the hub


def write_report(result: FineTuned, splits: DatasetDict, findings: Findings, baselines: Sequence[Baseline]) -> Path:
    """Writes model card and report into the adapter's folder, and returns the card's path.

    `README.md` is the card; `report/` holds scores and confusion matrix (a table where the classes are more than
    `MOST_PLOTTED`), the most confidently wrong test rows and the run's record. Where the folder holds a merged model,
    that gets its card too.
    """
    labels = splits["test"].features["label"].names
    folder = result.adapter / REPORT
    folder.mkdir(exist_ok=True)
    scores = class_scores(result.predictions, np.array(splits["test"]["label"]), labels)
    write_text(folder / "class_scores.csv", scores.to_csv(index_label="class"))
    write_text(folder / "most_wrong.csv", most_wrong(result.probabilities, splits["test"]).to_csv())
    if len(labels) <= MOST_PLOTTED:
        with plt.rc_context({"text.parse_math": False}):  # "$5 to $10" is a label and no formula
            figure = plot_class_confusion(result.record, [shortened(label, 30) for label in labels])
            save_figure(figure, folder / "confusion.png", provenance(result.record))
        plt.close(figure)  # a notebook would show it a second time
    else:
        matrix = pd.DataFrame(result.record.confusion_matrix, index=labels, columns=labels)
        write_text(folder / "confusion.csv", matrix.to_csv(index_label="true class / predicted class"))
    write_json(folder / "record.json", vars(result.record))
    write_text(folder / "baselines.csv", scores_table(result.record, baselines, findings.skewed).to_csv())
    for place in filter(Path.is_dir, (result.adapter, result.adapter / MERGED)):
        card = model_card(result.record, splits, findings, scores, baselines, merged=place.name == MERGED)
        write_text(place / "README.md", card)
    return result.adapter / "README.md"


def model_card(
    record: RunRecord,
    splits: DatasetDict,
    findings: Findings,
    scores: pd.DataFrame,
    baselines: Sequence[Baseline],
    merged: bool = False,
) -> str:
    """The README.md of an adapter's folder, or of the `merged` model's: data, scores, base model, how to load it.

    Names the data file without its folder. `scores` are `evaluation.class_scores` of the test rows, `baselines` is what
    `compare_with_baselines` gives.
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
        f"{DESCRIBED[name]} reaches {accuracy:.1%} on the same rows; the difference is "
        f"{100 * gain.difference:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], p = {gain.p_value:.2g}."
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
        f"validation rows. {' '.join(compared)}"
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


def merge_adapter(adapter: str | Path, folder: str | Path) -> Path:
    """Merges a saved adapter into its base: a plain model folder that transformers loads alone, without this package.

    The weights are fp32. A 4-bit base is unpacked first, since the adapter was trained on top of the rounded weights
    and not of the checkpoint's own; the logits then agree with the 4-bit model's up to the precision it computes in.
    The tokenizer's limit is the one of training. Raises FileExistsError when `folder` holds something, and what
    `adapters.load_adapter` raises for `adapter`.
    """
    adapter, folder = Path(adapter), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another folder or delete it.")
    model, tokenizer, settings = load_adapter(adapter, Execution("cpu", "fp32", "eager"), dequantize=True)
    tokenizer.model_max_length = settings["max_length"]
    tokenizer.truncation_side = "left" if settings["truncation"] == "tail" else "right"
    with new_folder(folder) as temporary:
        model.merge_and_unload().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def push_to_hub(folder: str | Path, repo_id: str | None = None) -> str:
    """Uploads `folder`, less its report, to the private repository `repo_id`; returns one line that says where.

    Without a `repo_id` or a token (the variable `HF_TOKEN`, or `hf auth login`), or where the upload fails, the line
    says how to do it. The report stays here because it quotes rows of the data.
    """
    command = f"hf upload {repo_id or 'USER/NAME'} {folder} . --private --exclude '{REPORT}/*' '{MERGED}/*'"
    if repo_id is None or get_token() is None:
        return f"To upload: HF_TOKEN=... {command}"
    api = HfApi()
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        url = api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=[f"{REPORT}/*", f"{MERGED}/*"])
    except Exception as error:  # the model is safe on disk, whatever the network or the hub says
        return f"Not uploaded ({type(error).__name__}: {str(error).splitlines()[0]}). To upload: {command}"
    return f"Uploaded: {url}"
