"""The recipes at their sources' own scale, from the records in Data/full: what each scores, and against what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.evaluation import PairedComparison
from helpers.profiles import COMMITTED
from helpers.recipes import RECIPES
from helpers.results import RunRecord, load_records
from lab.compare import compare_runs, summarize
from lab.studies import read_study

RECORDS = COMMITTED / "full" / "results"
LORA, QLORA = "lora_distilbert_qv", "qlora_bert"  # whose versions of ours stand for the two methods
BAG, FULL = "bag of words", "full fine-tuning"
FULL_VARIANTS = ("full_finetune", "full_half_rate", "full_quarter_rate")  # one for each rate
BASELINES = {
    ("bag_of_words", "whole"): BAG,
    ("bag_of_words", "cut"): "bag of words, cut to 256 tokens",
    ("bag_of_words", "cut to 512"): "bag of words, cut to 512 tokens",
    ("frozen_encoder", "cut"): "frozen encoder",
}
VARIANTS = {
    "head_only": "head alone",
    "as_written": "{} as written",
    "query_value": "{}, ours on query and value at 1e-3",
    "thirty_epochs": "{}, ours with thirty epochs",
    "half_rate": "{}, ours at half the rate",
    "improved": "{}, our version",
    **dict.fromkeys(FULL_VARIANTS, FULL),
}


def rows_at_scale(folder: Path = RECORDS) -> list[dict[str, Any]]:
    """A row for each run at a source's own scale that has a record in `folder`, the baselines first.

    Each has what `compare.summarize` reads and `corpus`, `method` (in words), `recipe` and `variant`. The `seed` of
    a baseline on all reviews is None, as its only use is to draw fewer of them. Of several rates of full fine-tuning
    the one with the best validation accuracy is called that, the others by their rates.
    """
    found = read_study("baselines", folder).rows
    most = max(row["n_train"] for row in found)
    rows = []
    for row in found:
        seed = None if row["n_train"] == most else row["seed"]
        labels = {"corpus": "imdb", "recipe": row["rows_of"], "variant": row["method"], "seed": seed}
        rows.append({**row, **labels, "method": BASELINES[row["method"], row["text"]]})
    records = sorted(load_records(folder), key=lambda one: (list(RECIPES).index(one.recipe), one.seed))
    whole = sorted((record for record in records if record.variant in FULL_VARIANTS), key=_best_epoch)
    worse = [record for record in whole if record.variant != whole[-1].variant]
    rates = {record.variant: f"{record.settings['learning_rate']:.0e}".replace("e-0", "e-") for record in worse}
    words = VARIANTS | {variant: f"{FULL} at {rate}" for variant, rate in rates.items()}
    return rows + [_row(record, words[name]) for name in words for record in records if record.variant == name]


def _best_epoch(record: RunRecord) -> float:
    return max(epoch["accuracy"] for epoch in record.history["validation"])


def _row(record: RunRecord, words: str) -> dict[str, Any]:
    labels = {"corpus": record.dataset.removesuffix(" (embedded)"), "method": words.format(record.settings["source"])}
    return vars(record) | labels | {"accuracy": record.metrics["accuracy"]}


def points_at_scale(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows_at_scale` over their seeds: the points of `compare.summarize`, by corpus, number of rows and method."""
    points = summarize(rows, ["corpus", "n_train", "method", "variant"])
    return sorted(points, key=lambda point: (point["corpus"], -point["n_train"]))


def gains_at_scale(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], PairedComparison]:
    """On all reviews: LoRA and QLoRA, each in our version, against baselines, full fine-tuning and each other.

    p-values are corrected for the number of comparisons (Holm).
    """
    most = max(row["n_train"] for row in rows)
    ours = {"LoRA": (LORA, "improved"), "QLoRA": (QLORA, "improved")}
    runs = {name: [row for row in rows if (row["recipe"], row["variant"]) == key] for name, key in ours.items()}
    rivals = [*BASELINES.values(), VARIANTS["head_only"], FULL]
    for name in rivals:
        runs[name] = [row for row in rows if (row["method"], row["n_train"]) == (name, most)]
    pairs = [*((name, rival) for name in ours for rival in rivals), ("QLoRA", "LoRA")]
    return compare_runs({(one, other): (runs[one], runs[other]) for one, other in pairs if runs[one] and runs[other]})
