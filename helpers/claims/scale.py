"""The recipes at their sources' own scale, from the records of `make full`: what each scores, and against what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from helpers.claims.evidence import Evidence, Missing
from helpers.evaluation import PairedComparison
from helpers.recipe import LOWER_RATES
from helpers.recipes import RECIPES
from helpers.results import RunRecord
from helpers.studies.at_scale import WRITTEN
from helpers.studies.compare import compare_runs, summarize

LORA, QLORA = "lora_distilbert_qv", "qlora_bert"  # whose versions of ours stand for the two methods
BAG, FULL = "bag of words", "full fine-tuning"
WHOLE = ("full_finetune", *LOWER_RATES)  # the variants of full fine-tuning: one for each rate
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
    **dict.fromkeys(WHOLE, FULL),
}


def rows_at_scale(evidence: Evidence) -> list[dict[str, Any]]:
    """A row for each run at a source's own scale that has a record, what costs nothing first.

    Each has what `compare.summarize` reads and `corpus`, `method` (in words), `recipe`, `variant`, `tokens` (the limit)
    and `minutes` of training, None for a baseline and for a run that shared its device with others. The `seed` of a
    baseline on all reviews is None, as its only use is to draw fewer of them. Of several rates of full fine-tuning the
    best on validation rows is called that. Raises Missing where there is no baseline yet.
    """
    study, _ = evidence.study("baselines")
    most = max(row["n_train"] for row in study.rows)
    rows = []
    for row in study.rows:
        kind = row["method"], row["text"]
        labels = {"corpus": "imdb", "method": BASELINES[kind], "recipe": row["rows_of"], "variant": kind[0]}
        seed = None if row["n_train"] == most else row["seed"]
        tokens = WRITTEN[row["rows_of"]]["max_length"] if row["method"] == "frozen_encoder" else None
        rows.append({**row, **labels, "seed": seed, "tokens": tokens, "minutes": None})
    order = list(RECIPES)
    records = sorted(evidence.all_at_scale(), key=lambda record: (order.index(record.recipe), record.seed))
    whole = [record for record in records if record.variant in WHOLE]
    lost = sorted(whole, key=lambda record: record.best_validation_accuracy)[:-1]
    rates = {record.variant: record.settings["learning_rate"] for record in lost}
    words = VARIANTS | {variant: f"{FULL} at {_scientific(rate)}" for variant, rate in rates.items()}
    return rows + [_row(record, words[name]) for name in words for record in records if record.variant == name]


def _scientific(rate: float) -> str:
    """For example 2e-4, as the recipes write it."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def _row(record: RunRecord, words: str) -> dict[str, Any]:
    return {
        "corpus": record.dataset.removesuffix(" (embedded)"),
        "method": words.format(record.settings["source"]),
        "recipe": record.recipe,
        "variant": record.variant,
        "tokens": record.max_length,
        "minutes": None if "runs_at_once" in record.settings else record.train_seconds / 60,
        "n_train": record.n_train,
        "seed": record.seed,
        "trainable_params": record.trainable_params,
        "accuracy": record.metrics["accuracy"],
        "correct": record.correct,
    }


def points_at_scale(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows_at_scale` over their seeds: the points of `compare.summarize`, by corpus, number of rows and method."""
    points = summarize(rows, ["corpus", "n_train", "method", "variant", "tokens"])
    for point in points:
        minutes = [row["minutes"] for row in rows if all(row[k] == point[k] for k in ("corpus", "n_train", "method"))]
        point["minutes"] = None if None in minutes else sum(minutes) / len(minutes)
    return sorted(points, key=lambda point: (point["corpus"], -point["n_train"]))


def ours(rows: Sequence[dict[str, Any]], recipe: str) -> list[dict[str, Any]]:
    """Of `rows_at_scale` those of our version of `recipe`, one a seed."""
    return [row for row in rows if (row["recipe"], row["variant"]) == (recipe, "improved")]


def gains_at_scale(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], PairedComparison]:
    """On all reviews: LoRA and QLoRA, each in our version, against what costs nothing, full fine-tuning and each other.

    p-values are corrected for the number of comparisons (Holm). Raises Missing where a run has no record yet.
    """
    most = max(row["n_train"] for row in rows)
    runs = {"LoRA": ours(rows, LORA), "QLoRA": ours(rows, QLORA)}
    for name in (*BASELINES.values(), VARIANTS["head_only"], FULL):
        runs[name] = [row for row in rows if (row["method"], row["n_train"]) == (name, most)]
    rivals = [name for name in runs if name not in ("LoRA", "QLoRA") and runs[name]]
    pairs = [(name, rival) for name in ("LoRA", "QLoRA") if runs[name] for rival in rivals]
    pairs += [("QLoRA", "LoRA")] if runs["LoRA"] and runs["QLoRA"] else []
    if not pairs:
        raise Missing("make full ONLY=improved")
    return compare_runs({pair: (runs[pair[0]], runs[pair[1]]) for pair in pairs})


def scale_table(rows: Sequence[dict[str, Any]]) -> str:
    """`points_at_scale` as a Markdown table."""
    lines = ["| training rows | method | tokens | trains | minutes | test accuracy [95 % interval] |"]
    lines.append("|---|---|---:|---:|---:|---|")
    for point in points_at_scale(rows):
        corpus = {"imdb": "reviews"}.get(point["corpus"], "sentences")
        seeds = f", {len(point['accuracies'])} seeds" if len(point["accuracies"]) > 1 else ""
        cells = (
            f"{point['n_train']:,} {corpus}",
            point["method"],
            point["tokens"] or "",
            f"{point['trainable_params']:,}",
            "" if point["minutes"] is None else f"{point['minutes']:.1f}",
            f"{point['accuracy']:.1%} [{point['low']:.1%}, {point['high']:.1%}]{seeds}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
