"""A study's rows over their seeds: means, intervals, and corrected comparisons."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from helpers.evaluation import PairedComparison, corrected, interval_of


@lru_cache(maxsize=4)
def _resamples(runs: int, rows: int) -> list[tuple[np.ndarray, ...]]:
    """How often each run and each row is drawn, in ten chunks of 500: drawing takes longer than using them."""
    rng, sizes = np.random.default_rng(0), (runs, rows)
    return [
        tuple(rng.multinomial(count, np.full(count, 1 / count), size=500).astype(np.uint8) for count in sizes)
        for _ in range(10)
    ]


def crossed_interval(values: np.ndarray) -> tuple[float, float, float]:
    """95 % bootstrap interval of the mean of `values`, (seeds, rows), over both, and the p-value of a mean of zero.

    Seeds and rows are resampled independently, as both are drawn from many (Owen 2007, arXiv 0712.1111); one seed: over
    the rows alone. The p-value is two-sided, of 5,000 draws.
    """
    runs, rows = values.shape
    if runs > 1:  # a few seeds, resampled, scatter too little by (runs - 1) / runs: their means are drawn apart
        means = values.mean(axis=1, keepdims=True)
        values = values + (means - means.mean()) * (np.sqrt(runs / (runs - 1)) - 1)
    drawn = [((of_runs / runs @ values) * (of_rows / rows)).sum(axis=1) for of_runs, of_rows in _resamples(runs, rows)]
    return interval_of(np.concatenate(drawn))


def right_rows(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """1.0 where a run is right on a row, else 0.0; shape (len(runs), rows)."""
    return np.array([[float(character) for character in run["correct"]] for run in runs])


def summarize(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that share the labels `by`, such as ("r",), over their seeds, in the order they first come.

    Each has those labels and `trainable_params`, `n_train`, `accuracies` (one a seed), `accuracy` (their mean), `low`
    and `high`: its 95 % interval over seeds and rows (see `crossed_interval`).
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[label] for label in by), []).append(row)
    points = []
    for runs in groups.values():
        shared = {label: runs[0][label] for label in (*by, "trainable_params", "n_train")}
        low, high, _ = crossed_interval(right_rows(runs))
        accuracies = [run["accuracy"] for run in runs]
        scores = {"accuracies": accuracies, "accuracy": float(np.mean(accuracies)), "low": low, "high": high}
        points.append(shared | scores)
    return points


def compare_runs(pairs: Mapping[Any, tuple[Sequence[dict], Sequence[dict]]]) -> dict[Any, PairedComparison]:
    """For each name, how much more often its runs A are right than its runs B, on the same rows and the same seeds.

    `difference` is that of the means over the seeds that both have, its interval holds for other seeds and other rows,
    and the p-values are corrected for the number of pairs (Holm 1979). A run whose seed is None depends on none: it
    stands beside every run of the other side. Raises ValueError where a pair shares no seed.
    """
    found = {}
    for name, runs in pairs.items():
        one, other = ({run["seed"]: run for run in side} for side in runs)
        one = dict.fromkeys(other, one[None]) if None in one else one
        other = dict.fromkeys(one, other[None]) if None in other else other
        if not (seeds := sorted(set(one) & set(other))):
            raise ValueError(f"{name}: no seed is on both sides, {sorted(one)} and {sorted(other)}.")
        first, second = (right_rows([side[seed] for seed in seeds]) for side in (one, other))
        found[name] = PairedComparison(float((first - second).mean()), *crossed_interval(first - second))
    return corrected(found)


def comparison_table(comparisons: Mapping[Any, PairedComparison]) -> pd.DataFrame:
    """`compare_runs`' result as a table, differences in points; a row a pair, in two levels where names are pairs."""
    table = pd.DataFrame(index=pd.Index(list(comparisons)))
    tests = comparisons.values()
    table["points"] = [f"{100 * test.difference:+.1f}" for test in tests]
    table["95 % interval"] = [f"{100 * test.low:+.1f} to {100 * test.high:+.1f}" for test in tests]
    table["p, corrected"] = [f"{test.p_value:.2g}" for test in tests]
    table["verdict"] = [test.verdict for test in tests]
    return table
