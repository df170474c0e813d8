"""Studies: many short runs that differ in one thing, on the same rows, for one StudyRecord."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from helpers.data import dataset_name, load_splits
from helpers.evaluation import (
    PairedComparison,
    accuracy_interval,
    bag_of_words,
    correct_rows,
    mean_interval,
    paired_comparison,
)
from helpers.models import build_model, count_parameters
from helpers.profiles import PROFILES, Execution, Profile
from helpers.recipes import RECIPES, Recipe
from helpers.results import StudyRecord
from helpers.training import class_probabilities, fit, tokenize_splits

CURVE_SIZES = (250, 500, 1_000, 2_000, None)  # training rows of the learning curve; None: every row
METHODS_AT = 2_000  # training rows at which it compares QLoRA too


def run_study(
    name: str,
    runs: Sequence[tuple[dict[str, object], Recipe]],
    splits: DatasetDict,
    profile: Profile,
    execution: Execution,
    *,
    command: str,
    seeds: Iterable[int] = (0, 1),
    score_on: str = "validation",
    folder: Path | None = None,
) -> StudyRecord:
    """Trains each recipe with each seed on `splits["train"]` and scores its last step on `splits[score_on]`.

    `runs` pairs each recipe with the labels its rows carry, such as `{"r": 8}`; all recipes must share dataset,
    checkpoint, `max_length` and `truncation`, since the rows are tokenized once. A recipe's `n_train` takes the first
    of the training rows. A seed fixes head, adapter and order.
    Each row has the labels and `seed, n_train, trainable_params, train_seconds, accuracy, accuracy_ci95, correct`.
    Writes the record to `folder` (None: `Data/<profile>/results/studies`) and returns it.
    """
    seeds = tuple(seeds)
    first = runs[0][1]
    shared = ("base_model", "dataset", "max_length", "truncation")
    for _, recipe in runs:
        if differing := [field for field in shared if getattr(recipe, field) != getattr(first, field)]:
            raise ValueError(f"The recipes of one study must share {', '.join(differing)}.")
    tokenizer, tokens = tokenize_splits(first, splits, profile)
    base_model = profile.base_model(first.base_model)
    rows = []
    bar = tqdm([(labels, recipe, seed) for labels, recipe in runs for seed in seeds], desc=name)
    for labels, recipe, seed in bar:
        bar.set_postfix(labels, refresh=False)
        model = build_model(recipe, base_model, execution, seed)
        trainable, _ = count_parameters(model)
        train = tokens["train"].select(range(min(recipe.n_train or len(tokens["train"]), len(tokens["train"]))))
        fitted = fit(model, tokenizer, recipe, train, None, execution, seed)
        predictions = class_probabilities(model, tokenizer, tokens[score_on], execution).argmax(axis=1)
        row = {**labels, "seed": seed, "n_train": len(train), "trainable_params": trainable}
        rows.append({**row, "train_seconds": round(fitted.seconds, 2), **scores(predictions, splits[score_on])})
    settings = {
        "base_model": base_model,
        "dataset": dataset_name(first.dataset, profile),
        "scored_on": score_on,
        "n_scored": len(splits[score_on]),
        "max_length": profile.tokens(first.max_length),
        "precision": execution.precision,
        "seeds": list(seeds),
    }
    record = StudyRecord(name, command, profile.name, execution.device_name, settings, rows)
    record.save(folder or profile.results / "studies")
    return record


def scores(predictions: np.ndarray, rows: Dataset) -> dict[str, object]:
    """`accuracy`, `accuracy_ci95` and `correct` of integer predictions for `rows`, shape (len(rows),)."""
    references = np.array(rows["label"])
    return {
        "accuracy": float((predictions == references).mean()),
        "accuracy_ci95": list(accuracy_interval(predictions, references)),
        "correct": correct_rows(predictions, references),
    }


def score_bag_of_words_on(train: Dataset, scored: Dataset) -> dict[str, object]:
    """A study's row for TF-IDF with logistic regression, fitted on `train`."""
    start = perf_counter()
    model = bag_of_words(train)
    seconds = perf_counter() - start
    row = {
        "seed": 0,
        "n_train": len(train),
        "trainable_params": model[-1].coef_.size,
        "train_seconds": round(seconds, 2),
    }
    return {**row, **scores(model.predict(list(scored["text"])), scored)}


def summarize(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that share the labels `by`, such as ("r",), over their seeds, in the order they first come.

    Each has those labels and `trainable_params`, `n_train`, `seconds` (mean), `accuracies` (one a seed), `accuracy`
    (their mean), `low` and `high`: the 95 % bootstrap interval of that mean over the scored rows. The interval holds
    for these seeds; `accuracies` shows how far apart they are.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[label] for label in by), []).append(row)
    points = []
    for labels, runs in groups.items():
        low, high = mean_interval(np.mean([_right(run) for run in runs], axis=0))
        points.append(
            {
                **dict(zip(by, labels, strict=True)),
                "trainable_params": runs[0]["trainable_params"],
                "n_train": runs[0]["n_train"],
                "seconds": float(np.mean([run["train_seconds"] for run in runs])),
                "accuracies": [run["accuracy"] for run in runs],
                "accuracy": float(np.mean([run["accuracy"] for run in runs])),
                "low": low,
                "high": high,
            }
        )
    return points


def compare_runs(
    runs_a: Sequence[dict[str, Any]], runs_b: Sequence[dict[str, Any]], comparisons: int = 1
) -> PairedComparison:
    """How much more often the runs A are right than the runs B, seed for seed, on the same scored rows.

    `difference` and its interval are those of the mean over the seeds. `p_value` is the largest of the seeds' McNemar
    p-values, times the number of `comparisons` made (Bonferroni), so that a difference counts only if every seed shows
    it; 1 where two seeds disagree on its sign. Raises ValueError unless both have the same seeds.
    """
    by_seed = [{run["seed"]: run for run in runs} for runs in (runs_a, runs_b)]
    if set(by_seed[0]) != set(by_seed[1]) or not by_seed[0]:
        raise ValueError(f"Need the same seeds for both, not {sorted(by_seed[0])} and {sorted(by_seed[1])}.")
    seeds = sorted(by_seed[0])
    each = [paired_comparison(by_seed[0][seed]["correct"], by_seed[1][seed]["correct"]) for seed in seeds]
    gain = np.mean([_right(by_seed[0][seed]) - _right(by_seed[1][seed]) for seed in seeds], axis=0)
    agree = len({np.sign(one.difference) for one in each}) == 1
    p_value = min(1.0, comparisons * max(one.p_value for one in each)) if agree else 1.0
    return PairedComparison(float(gain.mean()), *mean_interval(gain), p_value)


def _right(run: dict[str, Any]) -> np.ndarray:
    return np.array([float(character) for character in run["correct"]])


def learning_curve(execution: Execution, folder: Path, sizes: Sequence[int | None] = CURVE_SIZES) -> StudyRecord:
    """Bag of words, LoRA and full fine-tuning on growing parts of the Rotten Tomatoes sentences, on one test set.

    The smaller a part, the more epochs (about 3,000 sentences seen, ten epochs at most), so that none is cut short.
    At `METHODS_AT` rows QLoRA joins. None stands for every row. Saves it to `folder`.
    """
    profile = replace(PROFILES["full"], n_validation=500, n_test=1_000)
    lora = replace(RECIPES["lora_bert_sst2"].improved(), dataset="rotten_tomatoes", n_train=None)
    splits = load_splits(lora, profile)
    runs, bags = [], []
    for size in (size or len(splits["train"]) for size in sizes):
        sized = replace(lora, n_train=size, num_train_epochs=min(10, max(1, round(3_000 / size))))
        runs += [({"method": "lora"}, sized), ({"method": "full_finetune"}, sized.full_finetune())]
        if size == METHODS_AT:
            runs.append(({"method": "qlora"}, replace(sized, quantization="nf4")))
        train = splits["train"].select(range(size))
        bags.append({"method": "bag_of_words"} | score_bag_of_words_on(train, splits["test"]))
    command = "python -m helpers.claims --learning-curve"
    options = {"command": command, "seeds": (profile.seed,), "score_on": "test", "folder": folder}
    record = run_study("learning_curve", runs, splits, profile, execution, **options)
    record.rows += bags
    record.settings["methods_at"] = METHODS_AT
    record.save(folder)
    return record


def sizes_ahead(record: StudyRecord, method: str = "lora") -> list[int]:
    """Numbers of training rows of a learning curve at which `method` beats the bag of words in the paired test."""
    curves = {name: {r["n_train"]: r for r in record.rows if r["method"] == name} for name in (method, "bag_of_words")}
    tests = {
        size: paired_comparison(row["correct"], curves["bag_of_words"][size]["correct"])
        for size, row in sorted(curves[method].items())
    }
    return [size for size, test in tests.items() if test.difference > 0 and test.p_value < 0.05]
