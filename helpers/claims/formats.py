"""The verdict on half precision, from what a GPU measured of it."""

from collections.abc import Mapping

from helpers.benchmarks.records import COMMAND, find_benchmarks
from helpers.benchmarks.timing import median_interval
from helpers.claims.evidence import (
    CONFIRMED,
    ONLY_WHEN,
    REFUTED,
    UNDECIDED,
    Evidence,
    Missing,
    Verdict,
    relative_path,
    shown_difference,
)
from helpers.evaluation import paired_comparison
from helpers.results import StudyRecord


def half_precision(evidence: Evidence) -> Verdict:
    scored = {path.parts[-3:-1]: (path, record) for path, record in find_benchmarks("accuracy", evidence.roots)}
    for path, steps in find_benchmarks("steps", evidence.roots):
        if path.parts[-3] != "gpu" or path.parts[-3:-1] not in scored:
            continue
        other, accuracy = scored[path.parts[-3:-1]]
        correct = {row["precision"]: row["correct"] for row in accuracy.rows if _improved_and_fast(row)}
        if (ratios := _fp16_over_fp32(steps)) and {"fp16", "fp32"} <= set(correct):
            test = paired_comparison(correct["fp16"], correct["fp32"])
            speeds = ", ".join(f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in ratios.items())
            return Verdict(
                f"fp16 over fp32, speed in {speeds} times; accuracy {shown_difference(test)} ({steps.device})",
                REFUTED if test.verdict == "worse" else _faster(ratios),
                "At one shape of BERT-base; the accuracy is that of the SST-2 post's recipe, LoRA, trained in both.",
                (relative_path(path), relative_path(other)),
            )
    sentence = f"It speaks of fp16 on a GPU: {COMMAND} steps accuracy, on one."
    try:
        record, path = evidence.benchmark("execution", lambda record: bool(_bf16_over_fp32(record)))
    except Missing:
        return Verdict("", UNDECIDED, sentence)
    low, high = (end(_bf16_over_fp32(record)) for end in (min, max))
    measured = f"beside it, a CPU's bf16: {low:.1f} to {high:.1f} times as fast as its fp32 ({record.device})"
    return Verdict(measured, UNDECIDED, sentence, (path,))


def _faster(ratios: dict[str, tuple[float, float]]) -> str:
    """A verdict on speeds by method, each of which a claim puts above 1."""
    inside = [name for name, (low, _) in ratios.items() if low > 1]
    outside = [name for name, (_, high) in ratios.items() if high < 1]
    if len(inside) == len(ratios):
        return CONFIRMED
    if inside:
        return f"{ONLY_WHEN} it is {' or '.join(inside)}; {' and '.join(outside) or 'none'} slower"
    return REFUTED if outside else f"{UNDECIDED}: the scatter reaches over the limit"


def _improved_and_fast(row: Mapping) -> bool:
    return row["settings"] == "improved" and row["execution"] != "source's"


def _fp16_over_fp32(record: StudyRecord) -> dict[str, tuple[float, float]]:
    """fp16's speed over fp32's, all else alike, by method: the lowest and the highest end over the shapes."""
    same = ("size", "batch_size", "tokens", "method", "attention", "optimizer")
    alike: dict[tuple, dict[str, list[float]]] = {}
    for row in record.rows:
        alike.setdefault(tuple(row[name] for name in same), {})[row["precision"]] = row["windows"]
    names = {"full_finetune": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
    ratios: dict[str, tuple[float, float]] = {}
    for (*_, method, _, _), windows in alike.items():
        if {"fp16", "fp32"} <= set(windows):
            low, high = median_interval(windows["fp16"], windows["fp32"])
            least, most = ratios.get(names[method], (low, high))
            ratios[names[method]] = min(low, least), max(high, most)
    return ratios


def _bf16_over_fp32(record: StudyRecord) -> list[float]:
    """bf16's speed over fp32's in an `execution` record, with its own attention and threads, at each shape."""
    own = next(row for row in record.rows if row["chosen"])
    alike: dict[tuple, dict[str, float]] = {}
    for row in record.rows:
        if (row["attention"], row["threads"]) == (own["attention"], own["threads"]):
            shape = (row["batch_size"], row["tokens"])
            alike.setdefault(shape, {})[row["precision"]] = row["samples_per_second"]
    return [rates["bf16"] / rates["fp32"] for rates in alike.values() if {"bf16", "fp32"} <= set(rates)]
