"""Verdicts on memory and speed; each public function decides one claim of `verdicts.CLAIMS`."""

from collections.abc import Callable
from typing import NamedTuple

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
)
from helpers.recipes import RECIPES
from helpers.results import StudyRecord

SHAPES_NEEDED = 4  # shapes of batch at each size, for a verdict on memory or speed
LESS = 0.98  # of another's memory: two points are what a process's resident memory differs by from run to run
ABOUT_70 = 0.65  # claim B3
Intervals = dict[tuple[str, int, int], tuple[float, float]]  # (low, high) by (size, batch, tokens)
BOTH = ("bert-base", "embedded")


class Ratios(NamedTuple):
    """What one device measured of two methods: the ratios, in words of what and where, and the record's path."""

    device: str
    shapes: Intervals
    where: str
    path: str


def _steps(record: StudyRecord, size: str, *methods: str) -> dict[tuple[int, int], dict[str, dict]]:
    """The record's `main_rows` of `size` by (batch, tokens) and method, where all of `methods` were measured.

    `own_peak_bytes` leaves out what Python and the libraries held before the model came.
    """
    shapes: dict[tuple[int, int], dict[str, dict]] = {}
    for row in main_rows(record, size=size):
        own = {"own_peak_bytes": row["peak_memory_bytes"] - row["libraries_bytes"]}
        shapes.setdefault((row["batch_size"], row["tokens"]), {})[row["method"]] = row | own
    return {shape: rows for shape, rows in sorted(shapes.items()) if set(methods) <= set(rows)}


def _ratios(evidence: Evidence, first: str, second: str, key: str, sizes: tuple[str, ...] = BOTH) -> list[Ratios]:
    """The ratios of `key` between two methods, of every device that has `SHAPES_NEEDED` shapes with both at each size.

    Of speeds a ratio is the 95 % interval that the windows' scatter leaves, of bytes twice the same number. Raises
    Missing where there is no such device.
    """
    found = []
    for path, record in find_benchmarks("steps", evidence.roots):
        ratios: Intervals = {}
        shapes = {size: _steps(record, size, first, second) for size in sizes}
        if any(len(measured) < SHAPES_NEEDED for measured in shapes.values()):
            continue
        for size, measured in shapes.items():
            for (batch, tokens), rows in measured.items():
                left, right = rows[first], rows[second]
                ratio = (left[key] / right[key],) * 2
                if key == "samples_per_second":
                    ratio = median_interval(left["windows"], right["windows"])
                ratios[size, batch, tokens] = ratio
        used = record.settings["execution"]
        where = f"{record.device}, {used['precision']}, {used['attention']} attention"
        found.append(Ratios(record.device, ratios, where, relative_path(path)))
    if not found:
        raise Missing(f"{COMMAND} steps")
    return found


def _open(others: list[tuple[str, int, int]], outside: list[tuple[str, int, int]]) -> str:
    undecided = len(others) - len(outside)
    return f" ({undecided} of these open)" if undecided else ""


def _on_all(devices: list[Ratios], at_least: float, at_most: float = float("inf")) -> str:
    """A verdict on ratios that a claim puts in a range: that of the devices where they agree, else a word on each."""
    return _agreed({ratios.device: _by_range(ratios.shapes, at_least, at_most) for ratios in devices})


def _agreed(verdicts: dict[str, str]) -> str:
    """The one verdict of all devices where they agree, else one that says what holds on which.

    Where none confirms the claim and one leaves it open, it is not decided, whatever the others refute.
    """
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    holds = [
        f"on {device}"
        + verdict.removeprefix(ONLY_WHEN).removeprefix(CONFIRMED).replace(" the shape", ", where the shape", 1)
        for device, verdict in verdicts.items()
        if verdict.startswith(CONFIRMED)
    ]
    rest = [f"not on {device}" for device, verdict in verdicts.items() if verdict == REFUTED]
    for device, verdict in verdicts.items():
        if verdict.startswith(UNDECIDED):
            where = verdict.removeprefix(f"{UNDECIDED}: ").partition(", the scatter")[0]
            rest.append(f"open on {device}" + (f" ({where})" if where.startswith("outside") else ""))
    if holds:
        return f"{ONLY_WHEN} it runs {'; '.join(sorted(holds, key=len) + rest)}"
    return f"{UNDECIDED}: {'; '.join(rest)}; run {COMMAND} steps on a quiet machine"


def _by_range(ratios: Intervals, at_least: float, at_most: float = float("inf")) -> str:
    """A verdict on ratios that a claim puts in a range: an interval that reaches over a limit decides nothing."""
    inside = [shape for shape, (low, high) in ratios.items() if low >= at_least and high <= at_most]
    outside = [shape for shape, (low, high) in ratios.items() if high < at_least or low > at_most]
    if len(inside) == len(ratios):
        return CONFIRMED
    if inside:
        others = [shape for shape in ratios if shape not in inside]
        if len(others) < len(inside):
            return f"{ONLY_WHEN} the shape is not {_shapes(others)}{_open(others, outside)}"
        return f"{ONLY_WHEN} the shape is {_shapes(inside)}"
    if len(outside) == len(ratios):
        return REFUTED
    where = f"outside at {len(outside)} of {len(ratios)} shapes, " if outside else ""
    return f"{UNDECIDED}: {where}the scatter reaches over the limit; run {COMMAND} steps on a quiet machine"


def memory_saved(evidence: Evidence) -> Verdict:
    devices = _ratios(evidence, "lora", "full_finetune", "own_peak_bytes")
    sentence = "A fixed saving, no gradients and averages for frozen weights, which activations outgrow."
    measured = _each(devices, _less, "less peak memory, libraries aside")
    bars = tuple(_saved(ratios, 0, 1) for ratios in devices)
    return Verdict(measured, _on_all(devices, 0, LESS), sentence, _paths(devices), bars)


def trains_faster(evidence: Evidence) -> Verdict:
    return _speed(
        evidence,
        (1, float("inf")),
        "Frozen weights need no gradients, which saves products; each adapter adds small operations. Which weighs more "
        "is the machine's.",
    )


def two_to_three_times(evidence: Evidence) -> Verdict:
    return _speed(evidence, (2, 3), "See A2.")


def _speed(evidence: Evidence, stated: tuple[float, float], sentence: str) -> Verdict:
    """Of LoRA on every linear layer, and on query and value on the devices that measured that."""
    devices = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    bars = [Bar("times", stated, *_ends(ratios.shapes), _kind(ratios)) for ratios in devices]
    measured = _each(devices, _times, "as fast")
    verdicts = {ratios.device: _by_range(ratios.shapes, *stated) for ratios in devices}
    try:
        fewer = _ratios(evidence, "lora_query_value", "full_finetune", "samples_per_second")
    except Missing:
        fewer = []
    if fewer:
        of_every, of_fewer = "with adapters on every linear layer", "with adapters on query and value"
        measured = f"{of_every} {measured}; {of_fewer} {_each(fewer, _times, 'as fast')}"
        of_both = {ratios.device: _by_range(ratios.shapes, *stated) for ratios in fewer}
        bars += [Bar("times", stated, *_ends(r.shapes), f"{_kind(r)}, query and value") for r in fewer]
        alone = {f"{device} {of_every}": v for device, v in verdicts.items() if of_both.get(device) != v}
        alone |= {f"{device} {of_fewer}": v for device, v in of_both.items() if verdicts.get(device) != v}
        verdicts = {device: v for device, v in verdicts.items() if of_both.get(device) == v} | alone
    return Verdict(measured, _agreed(verdicts), sentence, _paths(devices), tuple(bars))


def _each(devices: list[Ratios], shown: Callable[[Intervals], str], words: str) -> str:
    """For example "1.10 to 1.59 times as fast (AMD EPYC, bf16, lean attention); ..." """
    return "; ".join(f"{shown(ratios.shapes)} {words} ({ratios.where})" for ratios in devices)


def _paths(devices: list[Ratios]) -> tuple[str, ...]:
    return tuple(ratios.path for ratios in devices)


def _kind(ratios: Ratios) -> str:
    return "on a GPU" if _of_gpu(ratios) else "on a CPU"


def _of_gpu(ratios: Ratios) -> bool:
    return "/gpu/" in f"/{ratios.path}"


def _size_name(size: str) -> str:
    return "BERT-base's shape" if size == "bert-base" else "the embedded encoder"


def _shapes(shapes: list[tuple[str, int, int]]) -> str:
    """For example "BERT-base's shape at 4 x 128, 16 x 128 tokens or the embedded encoder at 4 x 128 tokens"."""
    by_size: dict[str, list[str]] = {}
    for size, batch, tokens in shapes:
        by_size.setdefault(size, []).append(f"{batch} x {tokens}")
    return " or ".join(f"{_size_name(size)} at {', '.join(found)} tokens" for size, found in by_size.items())


def _ends(ratios: Intervals) -> tuple[float, float]:
    return min(low for low, _ in ratios.values()), max(high for _, high in ratios.values())


def _saved(ratios: Ratios, low: float, high: float) -> Bar:
    """The bar of a saving that is stated to lie between `low` and `high`."""
    least, most = _ends(ratios.shapes)
    return Bar("share", (low, high), 1 - most, 1 - least, f"saved {_kind(ratios)}")


def _times(ratios: Intervals) -> str:
    return "{:.2f} to {:.2f} times".format(*_ends(ratios))


def _less(ratios: Intervals) -> str:
    return f"{1 - max(high for _, high in ratios.values()):.0%} to {1 - min(low for low, _ in ratios.values()):.0%}"


def seventy_percent(evidence: Evidence) -> Verdict:
    devices = _ratios(evidence, "qlora", "full_finetune", "own_peak_bytes", ("bert-base",))
    recipe = RECIPES["qlora_bert"]
    held = memory_budget(recipe).static("adamw_8bit") / memory_budget(recipe.full_finetune()).static()
    gpus = [ratios for ratios in devices if _of_gpu(ratios)]
    counted = f"{1 - held:.0%} before activations, exact"
    bars = tuple(_saved(ratios, ABOUT_70, 0.75) for ratios in gpus or devices)
    if not gpus:
        measured = _each(devices, _less, "less of a process's resident memory, libraries aside")
        sentence = f"It speaks of a GPU's memory: {COMMAND} steps, on one."
        return Verdict(f"{measured}; {counted}", UNDECIDED, sentence, _paths(devices), bars)
    sentence = "The estimate leaves out activations, which rule the measurement."
    measured = f"{_each(gpus, _less, 'less peak memory')}; {counted}"
    return Verdict(measured, _on_all(gpus, 0, 1 - ABOUT_70), sentence, _paths(gpus), bars)


def checkpointing(evidence: Evidence) -> Verdict:
    sides = (evidence, "qlora_checkpointing", "qlora")
    memory = _ratios(*sides, "own_peak_bytes", ("bert-base",))
    speed = _ratios(*sides, "samples_per_second", ("bert-base",))
    verdicts = {}
    for saved, pace in zip(memory, speed, strict=True):
        saves, costs = _by_range(saved.shapes, 0, LESS), _by_range(pace.shapes, 0, 1)
        verdicts[saved.device] = saves if costs == CONFIRMED else costs
    measured = "; ".join(
        f"{_less(saved.shapes)} less peak memory, libraries aside, at {_times(pace.shapes).removesuffix(' times')} of "
        f"the speed ({saved.where})"
        for saved, pace in zip(memory, speed, strict=True)
    )
    bars = tuple(_saved(ratios, 0, 1) for ratios in memory)
    return Verdict(measured, _agreed(verdicts), "It pays where activations rule.", _paths(memory), bars)


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
