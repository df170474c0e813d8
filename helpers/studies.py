"""Studies: many short runs that differ in one thing, on the same rows, for one StudyRecord."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from helpers.baselines import bag_of_words
from helpers.data import dataset_name
from helpers.evaluation import (
    PairedComparison,
    accuracy_interval,
    correct_rows,
    crossed_interval,
    holm,
)
from helpers.models import build_model, count_parameters
from helpers.profiles import Execution, Profile
from helpers.recipes import Recipe
from helpers.results import StudyRecord
from helpers.training import class_probabilities, fit, tokenize_splits


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
    (their mean), `low` and `high`: its 95 % interval over seeds and rows (see `evaluation.crossed_interval`).
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[label] for label in by), []).append(row)
    points = []
    for labels, runs in groups.items():
        low, high, _ = crossed_interval(right_rows(runs))
        points.append(
            {
                **dict(zip(by, labels, strict=True)),
                "trainable_params": runs[0]["trainable_params"],
                "n_train": runs[0]["n_train"],
                "seconds": float(np.mean([run.get("train_seconds", run.get("seconds")) for run in runs])),
                "accuracies": [run["accuracy"] for run in runs],
                "accuracy": float(np.mean([run["accuracy"] for run in runs])),
                "low": low,
                "high": high,
            }
        )
    return points


def compare_runs(pairs: Mapping[str, tuple[Sequence[dict], Sequence[dict]]]) -> dict[str, PairedComparison]:
    """For each name, how much more often its runs A are right than its runs B, on the same rows and the same seeds.

    `difference` is that of the means over the seeds that both have, its interval holds for other seeds and other rows,
    and the p-values are corrected for the number of pairs (Holm 1979). Raises ValueError where a pair shares no seed.
    """
    found = {}
    for name, runs in pairs.items():
        by_seed = [{run["seed"]: run for run in side} for side in runs]
        if not (seeds := sorted(set(by_seed[0]) & set(by_seed[1]))):
            raise ValueError(f"{name}: no seed is on both sides, {sorted(by_seed[0])} and {sorted(by_seed[1])}.")
        first, second = (right_rows([side[seed] for seed in seeds]) for side in by_seed)
        found[name] = PairedComparison(float((first - second).mean()), *crossed_interval(first - second))
    corrected = holm([test.p_value for test in found.values()])
    return {name: test._replace(p_value=p) for (name, test), p in zip(found.items(), corrected, strict=True)}


def right_rows(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """1.0 where a run is right on a row, else 0.0; shape (len(runs), rows)."""
    return np.array([[float(character) for character in run["correct"]] for run in runs])
