"""A trained adapter made fit for others: its report, its model card, the merged model, the hub."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import DatasetDict
from huggingface_hub import HfApi, get_token

from helpers.adapters import load_adapter
from helpers.base.texts import shortened
from helpers.base.writing import new_folder, write_json, write_text
from helpers.card import model_card
from helpers.evaluation import class_scores, most_wrong
from helpers.own_data import Findings
from helpers.plots import provenance, save_figure
from helpers.plots.runs import plot_class_confusion
from helpers.profiles import Execution
from helpers.report import Baseline, scores_table
from helpers.training import FineTuned

MOST_PLOTTED = 30  # classes that a confusion matrix shows in a figure
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
        return f"Not uploaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}). To upload: {command}"
    return f"Uploaded: {url}"
