"""Verdicts on memory and speed; each public function decides one claim of `verdicts.CLAIMS`."""

from collections.abc import Mapping

from helpers.benchmarks.budget import memory_budget
from helpers.benchmarks.records import COMMAND, find_benchmarks, main_rows
from helpers.benchmarks.timing import median_interval
from helpers.claims.evidence import (
    CONFIRMED,
    ONLY_WHEN,
    REFUTED,
    UNDECIDED,
    Bar,
    Evidence,
    Missing,
    Verdict,
    relative_path,
    shown_difference,
)
from helpers.evaluation import paired_comparison
from helpers.recipes import RECIPES
from helpers.results import StudyRecord

SHAPES_NEEDED = 4  # shapes of batch at each size, for a verdict on memory or speed
LESS = 0.98  # of another's memory: two points are what a process's resident memory differs by from run to run
ABOUT_70 = 0.65  # claim B3
Intervals = dict[tuple[str, int, int], tuple[float, float]]  # (low, high) by (size, batch, tokens)


def _steps(record: StudyRecord, size: str, *methods: str) -> dict[tuple[int, int], dict[str, dict]]:
    """The record's `main_rows` of `size` by (batch, tokens) and method, where all of `methods` were measured.

    `own_peak_bytes` leaves out what Python and the libraries held before the model came.
    """
    shapes: dict[tuple[int, int], dict[str, dict]] = {}
    for row in main_rows(record, size=size):
        own = {"own_peak_bytes": row["peak_memory_bytes"] - row["libraries_bytes"]}
        shapes.setdefault((row["batch_size"], row["tokens"]), {})[row["method"]] = row | own
    return {shape: rows for shape, rows in sorted(shapes.items()) if set(methods) <= set(rows)}


def _ratios(
    evidence: Evidence, first: str, second: str, key: str, sizes: tuple[str, ...] = ("bert-base", "embedded")
) -> tuple[Intervals, str, str]:
    """The ratios of `key` between two methods, where they were measured, and the record's path.

    Of speeds a ratio is the 95 % interval that the windows' scatter leaves, of bytes twice the same number. Raises
    Missing unless a device has `SHAPES_NEEDED` shapes with both methods at each size.
    """

    def enough(record: StudyRecord) -> bool:
        return all(len(_steps(record, size, first, second)) >= SHAPES_NEEDED for size in sizes)

    record, path = evidence.benchmark("steps", enough)
    ratios: Intervals = {}
    for size in sizes:
        for (batch, tokens), rows in _steps(record, size, first, second).items():
            left, right = rows[first], rows[second]
            ratio = (left[key] / right[key],) * 2
            if key == "samples_per_second":
                ratio = median_interval(left["windows"], right["windows"])
            ratios[size, batch, tokens] = ratio
    used, names = record.settings["execution"], " and ".join(map(_size_name, sizes))
    where = f"{names}, {used['precision']}, {used['attention']} attention, {record.device}"
    return ratios, where, path


def _by_range(ratios: Intervals, at_least: float, at_most: float = float("inf")) -> str:
    """A verdict on ratios that a claim puts in a range: an interval that reaches over a limit decides nothing."""
    inside = [shape for shape, (low, high) in ratios.items() if low >= at_least and high <= at_most]
    outside = [shape for shape, (low, high) in ratios.items() if high < at_least or low > at_most]
    if len(inside) == len(ratios):
        return CONFIRMED
    if inside:
        undecided = len(ratios) - len(inside) - len(outside)
        return f"{ONLY_WHEN} the shape is {_shapes(inside)}; outside at {len(outside)}, open at {undecided} others"
    if len(outside) == len(ratios):
        return REFUTED
    return f"{UNDECIDED}: the scatter reaches over the limit; run {COMMAND} steps on a quiet machine"


def memory_saved(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "own_peak_bytes")
    verdict = _by_range(ratios, 0, LESS)
    sentence = "A fixed saving: no gradients and averages for frozen weights."
    measured = f"{_less(ratios)} less peak memory, libraries aside ({where})"
    return Verdict(measured, verdict, sentence, (path,), (_saved(ratios, 0, 1),))


def trains_faster(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    sentence = "The backward pass skips the frozen weights' gradients; the forward pass stays."
    bars = (Bar("times", (1, float("inf")), *_ends(ratios)),)
    return Verdict(f"{_times(ratios)} as fast ({where})", _by_range(ratios, 1), sentence, (path,), bars)


def two_to_three_times(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    least, most = min(ratios, key=lambda shape: ratios[shape][0]), max(ratios, key=lambda shape: ratios[shape][1])
    sentence = f"Extremes at {_shapes([least])} and {_shapes([most])}."
    bars = (Bar("times", (2, 3), *_ends(ratios)),)
    return Verdict(f"{_times(ratios)} as fast ({where})", _by_range(ratios, 2, 3), sentence, (path,), bars)


def _size_name(size: str) -> str:
    return "BERT-base's shape" if size == "bert-base" else "the embedded encoder"


def _shapes(shapes: list[tuple[str, int, int]]) -> str:
    """For example "BERT-base's shape at 4 x 128, 16 x 128 tokens"."""
    by_size: dict[str, list[str]] = {}
    for size, batch, tokens in shapes:
        by_size.setdefault(size, []).append(f"{batch} x {tokens}")
    return "; ".join(f"{_size_name(size)} at {', '.join(found)} tokens" for size, found in by_size.items())


def _ends(ratios: Intervals) -> tuple[float, float]:
    return min(low for low, _ in ratios.values()), max(high for _, high in ratios.values())


def _saved(ratios: Intervals, low: float, high: float) -> Bar:
    """The bar of a saving that is stated to lie between `low` and `high`."""
    least, most = _ends(ratios)
    return Bar("share", (low, high), 1 - most, 1 - least, "saved")


def _times(ratios: Intervals) -> str:
    return "{:.2f} to {:.2f} times".format(*_ends(ratios))


def _less(ratios: Intervals) -> str:
    return f"{1 - max(high for _, high in ratios.values()):.0%} to {1 - min(low for low, _ in ratios.values()):.0%}"


def seventy_percent(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "qlora", "full_finetune", "own_peak_bytes", ("bert-base",))
    recipe = RECIPES["qlora_bert"]
    held = memory_budget(recipe).static("adamw_8bit") / memory_budget(recipe.full_finetune()).static()
    gpu = "/gpu/" in f"/{path}"
    of = "peak memory" if gpu else "of a process's resident memory, libraries aside"
    measured = f"{_less(ratios)} less {of} ({where}); {1 - held:.0%} before activations, exact"
    if not gpu:
        sentence = f"It speaks of a GPU's memory: {COMMAND} steps, on one."
        return Verdict(measured, UNDECIDED, sentence, (path,), (_saved(ratios, ABOUT_70, 0.75),))
    sentence = "The estimate leaves out activations, which rule the measurement."
    return Verdict(measured, _by_range(ratios, 0, 1 - ABOUT_70), sentence, (path,), (_saved(ratios, ABOUT_70, 0.75),))


def half_precision(evidence: Evidence) -> Verdict:
    scored = {path.parts[-3:-1]: (path, record) for path, record in find_benchmarks("accuracy", evidence.roots)}
    for path, steps in find_benchmarks("steps", evidence.roots):
        if path.parts[-3] != "gpu" or path.parts[-3:-1] not in scored:
            continue
        other, accuracy = scored[path.parts[-3:-1]]
        correct = {row["precision"]: row["correct"] for row in accuracy.rows if _improved_and_fast(row)}
        if (ratios := _fp16_over_fp32(steps)) and {"fp16", "fp32"} <= set(correct):
            test = paired_comparison(correct["fp16"], correct["fp32"])
            lost = test.verdict == "worse"
            return Verdict(
                f"fp16 is {_times(ratios)} as fast as fp32; its accuracy: {shown_difference(test)} ({steps.device})",
                REFUTED if lost else _by_range(ratios, 1),
                "LoRA, QLoRA and full fine-tuning, each at one shape, the SST-2 post's recipe trained in both formats.",
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


def _improved_and_fast(row: Mapping) -> bool:
    return row["settings"] == "improved" and row["execution"] != "source's"


def _fp16_over_fp32(record: StudyRecord) -> Intervals:
    """fp16's speed over fp32's, all else alike, by (size, batch, tokens) of the methods' lowest and highest ends."""
    same = ("size", "batch_size", "tokens", "method", "attention", "optimizer")
    alike: dict[tuple, dict[str, list[float]]] = {}
    for row in record.rows:
        alike.setdefault(tuple(row[name] for name in same), {})[row["precision"]] = row["windows"]
    ratios: Intervals = {}
    for key, windows in alike.items():
        if {"fp16", "fp32"} <= set(windows):
            low, high = median_interval(windows["fp16"], windows["fp32"])
            least, most = ratios.get(key[:3], (low, high))
            ratios[key[:3]] = min(low, least), max(high, most)
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


def checkpointing(evidence: Evidence) -> Verdict:
    sides = (evidence, "qlora_checkpointing", "qlora")
    memory, where, path = _ratios(*sides, "own_peak_bytes", ("bert-base",))
    speed, *_ = _ratios(*sides, "samples_per_second", ("bert-base",))
    saves, costs = _by_range(memory, 0, LESS), _by_range(speed, 0, 1)
    verdict = saves if costs == CONFIRMED else costs
    pace = _times(speed).removesuffix(" times")
    return Verdict(
        f"{_less(memory)} less peak memory, libraries aside, at {pace} of the speed ({where})",
        verdict,
        "It pays where activations rule.",
        (path,),
        (_saved(memory, 0, 1),),
    )


def base_untouched(evidence: Evidence) -> Verdict:
    record, path = evidence.benchmark("adapter")
    row = record.rows[0]
    verdict = CONFIRMED if row["changed_base_tensors"] == 0 else REFUTED
    return Verdict(
        f"{row['changed_base_tensors']} of {row['base_tensors']} base tensors changed in training, bit by bit",
        verdict,
        "Unload the adapter and the checkpoint is what it was.",
        (path,),
    )
