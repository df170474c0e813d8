"""What decides the claims on accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from helpers.evaluation import PairedComparison
from helpers.results import RunRecord, StudyRecord
from lab.at_scale import rows_at_scale
from lab.compare import compare_runs, summarize
from lab.verdict import FAILS, HOLDS, OPEN, Bar, Evidence, Verdict, all_of, in_range, verdict_on

BASELINES = {"frozen_encoder": "frozen encoder", "head_only": "head alone"}
VERSIONS = {"as_written": "as written", "improved": "our version"}
MARGIN = 0.02  # claims A4 and B5: what still counts as no worse
SEEDS_NEEDED = 3  # for a comparison
OWN_RUNS = f"{SEEDS_NEEDED} seeds each of its own checkpoint and its rivals: PROFILE=hub python -m lab.studies"
Runs = Sequence[dict[str, Any]]


def of_its_checkpoint(cases: Mapping[str, str], records: Iterable[RunRecord | StudyRecord]) -> Mapping[str, str]:
    """The rule for every claim on accuracy: `cases` where `records` are of the checkpoint that it names, else none."""
    return cases if all(record.profile == "hub" for record in records) else {}


def beats_baselines(evidence: Evidence, recipe: str, variants: Sequence[str]) -> Verdict:
    """A claim that a recipe is better than the frozen encoder and than the head alone on the same rows.

    Where it is not as the first of `variants`, it can be confirmed for those that are.
    """
    records, folder = [evidence.study("baselines")], evidence.folder("baselines")
    for name in (*variants, "head_only"):
        records += evidence.runs(recipe, name, folder)
    rows = [row for row in rows_at_scale(folder) if row["recipe"] == recipe]
    runs = {name: [row for row in rows if row["variant"] == name] for name in (*variants, *BASELINES)}
    pairs = {
        f"{VERSIONS[name]} less {words}": (runs[name], runs[other])
        for name in variants for other, words in BASELINES.items()
    }  # fmt: skip
    tests = compare_runs(pairs)
    cases, numbers = {}, {"test rows": len(runs[variants[0]][0]["correct"])}
    for name in variants:
        words = VERSIONS[name]
        seeds = min(_shared_seeds(*sides) for pair, sides in pairs.items() if pair.startswith(words))
        accuracy = float(np.mean([run["accuracy"] for run in runs[name]]))
        numbers |= {f"{words}: accuracy": accuracy, f"{words}: seeds": seeds}
        found = [test.verdict for pair, test in tests.items() if pair.startswith(words)]
        better = all_of(*({"better": HOLDS, "worse": FAILS}.get(one, OPEN) for one in found))
        if HOLDS not in cases.values():
            cases[words] = better if seeds >= SEEDS_NEEDED else OPEN
    cases = of_its_checkpoint(cases, records)
    return verdict_on(cases, numbers, _differences(tests, numbers, (0, inf)), f"{OWN_RUNS} baselines at_scale")


def _shared_seeds(runs: Runs, others: Runs) -> int:
    """How many seeds both sides have; a baseline whose seed is None stands beside all."""
    seeds, of_others = ({row["seed"] for row in side} for side in (runs, others))
    return len(seeds if None in of_others else seeds & of_others)


def _differences(
    tests: Mapping[str, PairedComparison], numbers: dict[str, float], stated: tuple[float, float]
) -> tuple[Bar, ...]:
    """A bar for each difference of accuracies; its ends and p-value go to `numbers`."""
    bars = []
    for name, test in tests.items():
        parts = {"difference": test.difference, "low": test.low, "high": test.high, "p": test.p_value}
        numbers |= {f"{name}: {part}": value for part, value in parts.items()}
        bars.append(Bar("difference", stated, test.low, test.high, name, test.difference))
    return tuple(bars)


def small_batch(evidence: Evidence) -> Verdict:
    study, tests = evidence.study("batches"), {}
    points = summarize(study.rows, ["held", "batch_size"])
    numbers = {f"equal {p['held']}, batches of {p['batch_size']}: accuracy": p["accuracy"] for p in points}
    numbers |= {"test rows": study.settings["n_test"], "seeds": len({row["seed"] for row in study.rows})}
    for held in ("reviews", "updates"):
        runs = {size: [r for r in study.rows if (r["held"], r["batch_size"]) == (held, size)] for size in (4, 16, 64)}
        tests[held] = compare_runs({f"equal {held}, 4 less {size}": (runs[4], runs[size]) for size in (16, 64)})
    bars, _ = (_differences(found, numbers, (-MARGIN, inf)) for found in tests.values())
    cases = {name: in_range(test.low, test.high, -MARGIN) for name, test in tests["reviews"].items()}
    return verdict_on(of_its_checkpoint(cases, [study]), numbers, bars, f"{OWN_RUNS} batches, at its best rates")


def competitive(evidence: Evidence) -> Verdict:
    study, runs = evidence.study("few_rows"), {}
    numbers = {"test rows": study.settings["n_test"]}
    for size in (500, 2_000, "all"):
        by_method = {
            name: [r for r in study.rows if (r["rows"], r["method"]) == (size, name)]
            for name in ("qlora", "full_finetune")
        }
        n_train, sides = by_method["qlora"][0]["n_train"], tuple(by_method.values())
        runs[f"{n_train:,} sentences"] = sides
        numbers |= {f"{n_train:,} sentences": n_train, f"{n_train:,} sentences: seeds": _shared_seeds(*sides)}
    tests = compare_runs(runs)
    cases = of_its_checkpoint({name: in_range(test.low, test.high, -MARGIN) for name, test in tests.items()}, [study])
    needs = f"{OWN_RUNS} few_rows, at its best rates"
    return verdict_on(cases, numbers, _differences(tests, numbers, (-MARGIN, inf)), needs)


def stated_accuracy(evidence: Evidence, recipe: str, at_least: float, at_most: float | None = None) -> Verdict:
    """A claim of an accuracy. "Over x" needs the lower end of the interval at x or above."""
    cases, numbers, bars = {}, {}, []
    for variant, words in VERSIONS.items():
        runs = evidence.runs(recipe, variant)
        value, low, high = over_seeds(runs)
        if variant == "as_written":
            cases = of_its_checkpoint({runs[0].base_model: in_range(low, high, at_least)}, runs)
        f1 = float(np.mean([run.metrics["weighted_f1"] for run in runs]))
        found = {"accuracy": value, "low": low, "high": high, "weighted F1": f1, "seeds": len(runs)}
        found |= {"training rows": runs[0].n_train, "test rows": runs[0].n_test}
        numbers |= {f"{words}: {name}": number for name, number in found.items()}
        bars.append(Bar("accuracy", (at_least, at_most or at_least), low, high, words, value))
    return verdict_on(cases, numbers, tuple(bars), f"PROFILE=hub python -m helpers.train {recipe}")


def over_seeds(runs: Sequence[RunRecord]) -> tuple[float, float, float]:
    """A run's accuracy and the ends of its 95 % interval, over seeds and rows; of one seed the record's, over rows."""
    if len(runs) == 1:
        return runs[0].metrics["accuracy"], *runs[0].accuracy_ci95
    rows = [{**vars(run), "accuracy": run.metrics["accuracy"]} for run in runs]
    (point,) = summarize(rows, ["recipe"])
    return point["accuracy"], point["low"], point["high"]


def untrained_head(evidence: Evidence) -> Verdict:
    """A coin toss: the interval must hold 50 %."""
    runs = evidence.runs("lora_distilbert_qv", "untrained")
    value, low, high = over_seeds(runs)
    numbers = {"accuracy": value, "low": low, "high": high, "seeds": len(runs), "test rows": runs[0].n_test}
    tossed = HOLDS if low <= 0.5 <= high else FAILS
    cases = of_its_checkpoint({runs[0].base_model: tossed if len(runs) >= SEEDS_NEEDED else OPEN}, runs)
    bars = (Bar("accuracy", (0.5, 0.6), low, high, value=value),)
    return verdict_on(cases, numbers, bars, f"{SEEDS_NEEDED} seeds of the head, on its own checkpoint")


def epochs(evidence: Evidence) -> Verdict:
    cases, numbers, bars = {}, {}, []
    for variant, words in VERSIONS.items():
        runs = evidence.runs("lora_bert_sst2", variant)
        by_epoch = np.array([[row["accuracy"] for row in run.history["validation"]][:3] for run in runs])
        numbers |= {f"{words}, epoch {i}: accuracy": float(mean) for i, mean in enumerate(by_epoch.mean(axis=0), 1)}
        numbers |= {f"{words}: seeds": len(runs), f"{words}: validation rows": runs[0].n_validation}
        if variant == "as_written":
            held = HOLDS if abs(by_epoch[:, -1].mean() - 0.77) < 0.04 else FAILS
            cases = of_its_checkpoint({runs[0].base_model: held}, runs)
        bars.append(Bar("accuracy", (0.77, 0.77), by_epoch[:, -1].min(), by_epoch[:, -1].max(), f"{words}, epoch 3"))
    return verdict_on(cases, numbers, tuple(bars), "PROFILE=hub python -m helpers.train lora_bert_sst2")
