"""The best adapters of `make full` on many reviews, with their cards: `Data/full/adapters/lora` and `.../qlora`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict

from helpers.adapters import ADAPTER_CONFIG
from helpers.base.writing import new_folder, write_json, write_text
from helpers.card import model_card
from helpers.data import load_reviews
from helpers.evaluation import class_scores, corrected, paired_comparison
from helpers.models import load_tokenizer
from helpers.own_data import Findings, examine
from helpers.report import Baseline
from helpers.results import RunRecord
from helpers.studies.runs import FULL, Run, record_of, splits_of

RECORD = "record.json"
MANY = 10_000  # training reviews
BASELINES = {("bag_of_words", "whole"): "bag of words", ("frozen_encoder", "cut"): "frozen encoder"}


def published() -> Path:
    """`Data/full/adapters`."""
    return FULL.figures / "adapters"


def keep_if_best(run: Run) -> Path | None:
    """Copies the adapter of an improved run on many reviews to `published()` where it is the best of its kind so far.

    Kinds are "lora" and "qlora"; the best is the one with the most right of the validation rows, which are the same for
    all. Returns the copy's folder, None where another is better, the run is of another sort, or its adapter is not on
    this machine.
    """
    record = record_of(run)
    if run.recipe.variant != "improved" or record.n_train < MANY or not (FULL.checkpoints / record.name).is_dir():
        return None
    folder = published() / ("qlora" if run.recipe.quantization else "lora")
    if (folder / RECORD).exists():
        best = RunRecord.load(folder / RECORD)
        if best.best_validation_accuracy >= record.best_validation_accuracy:
            return None
    with new_folder(folder) as temporary:
        of_peft = shutil.ignore_patterns("README.md")  # a form without content
        shutil.copytree(FULL.checkpoints / record.name, temporary, ignore=of_peft, dirs_exist_ok=True)
        config = json.loads((temporary / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        # peft names a folder of this machine; the hash of this file in inference.json leaves the name out.
        write_json(temporary / ADAPTER_CONFIG, {**config, "base_model_name_or_path": record.base_model})
        write_json(temporary / RECORD, vars(record))
    return folder


def write_cards(baselines: Sequence[dict]) -> list[Path]:
    """Writes the card of each published adapter and returns the paths; `baselines` are the rows of that study."""
    cards = []
    for path in sorted(published().glob(f"*/{RECORD}")):
        record = RunRecord.load(path)
        splits = splits_of("imdb", record.n_validation, record.n_test)
        findings, scores = _findings(record), _scores(record, splits)
        compared = _compared(record, baselines)
        card = model_card(record, splits, findings, scores, compared, chosen=_chosen(record))
        cards.append(write_text(path.with_name("README.md"), card))
    return cards


def _chosen(record: RunRecord) -> str:
    """What the other seeds of the run scored, in a sentence; nothing where there is none."""
    runs = map(RunRecord.load, sorted(FULL.results.glob(f"{record.recipe}-{record.variant}-seed*.json")))
    others = [f"{run.metrics['accuracy']:.1%} (seed {run.seed})" for run in runs if run.seed != record.seed]
    if not others:
        return ""
    return (
        f"Of {len(others) + 1} seeds this one has the most right of the validation rows; on the test rows the others "
        f"have {', '.join(others)}."
    )


def _findings(record: RunRecord) -> Findings:
    """What is in the corpus, the duplicates included that `splits_of` leaves out."""
    reviews = load_reviews("imdb", FULL)["train"]
    rows = reviews.to_pandas()[["text", "label"]]
    rows["label"] = rows["label"].map(dict(enumerate(reviews.features["label"].names)))
    return examine(rows, load_tokenizer(record.base_model), record.max_length)


def _scores(record: RunRecord, splits: DatasetDict) -> pd.DataFrame:
    """`evaluation.class_scores`; with two classes a wrong answer is the other one."""
    labels = np.array(splits["test"]["label"])
    right = np.array([character == "1" for character in record.correct])
    return class_scores(np.where(right, labels, 1 - labels), labels, splits["test"].features["label"].names)


def _compared(record: RunRecord, rows: Sequence[dict]) -> list[Baseline]:
    """The baselines that were trained on as many reviews, and what `record` gains over each on the same test rows."""
    named = {BASELINES.get((row.get("method"), row.get("text"))): row for row in rows if row["n_train"] >= MANY}
    named.pop(None, None)
    gains = corrected({name: paired_comparison(record.correct, row["correct"]) for name, row in named.items()})
    return [Baseline(name, row["accuracy"], row["accuracy"], gains[name]) for name, row in named.items()]
