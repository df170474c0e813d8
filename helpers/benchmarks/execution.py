"""Is the execution that `fastest_execution` chooses the fastest? Every other one beside it, in interleaved windows."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from statistics import median
from time import perf_counter

import torch

from helpers.benchmarks.records import device_record
from helpers.benchmarks.timing import TrainingStep, median_interval, scatter, timed_window
from helpers.models import build_model
from helpers.profiles import PROFILES, Execution, number_formats
from helpers.recipes import RECIPES
from helpers.results import StudyRecord

SETTLED = 0.10  # a median is settled where its scatter (`timing.scatter`) is below this


@dataclass
class _Candidate:
    """One execution in `benchmark_execution`; `rows` is the batch that its windows (samples a second) were timed on."""

    batch_size: int
    tokens: int
    precision: str
    attention: str
    threads: int
    chosen: bool
    rows: int = 1
    windows: list[float] = field(default_factory=list)
    stopped: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.batch_size, self.tokens

    @property
    def settled(self) -> bool:
        return self.rows == self.batch_size and len(self.windows) >= 3 and scatter(self.windows) < SETTLED

    def time(self, step: TrainingStep, min_seconds: float) -> float:
        torch.set_num_threads(self.threads)
        return timed_window(step, self.rows, self.tokens, min_seconds)


def benchmark_execution(
    execution: Execution,
    seconds: float = 240.0,
    shapes: Sequence[tuple[int, int]] = ((16, 128), (32, 256)),
    base_model: str | None = None,
    window_seconds: float = 0.25,
) -> StudyRecord:
    """Is `execution` the fastest here? Every number format, attention and thread count, in interleaved windows.

    Assignment 7's improved recipe on random batches of `shapes` (rows, tokens). `PRECISION`, where it is set, is
    the one format that counts as there. Windows of `window_seconds`, and at least one batch, go round in random order
    until each contender's median is settled, for about `seconds`. What can't win is measured less, and its row
    says why as `stopped`: a tenth of the best speed on one row (timed there alone), or half of it (two windows or
    more). `choice` in the settings compares chosen and best.
    """
    recipe = RECIPES["lora_distilbert_qv"].improved()
    base_model = base_model or PROFILES["full"].base_model(recipe.base_model)
    formats = number_formats(execution.device) + (("fp16",) if execution.device == "cpu" else ())
    if os.environ.get("PRECISION", "").strip():
        formats = (execution.precision,)
    default, start, random = torch.get_num_threads(), perf_counter(), Random(0)
    threads = (default,) if execution.device == "cuda" else sorted({1, max(1, default // 2), default}, reverse=True)
    kinds = [(precision, attention) for precision in formats for attention in ("eager", "lean", "sdpa")]
    own = (execution.precision, execution.attention, default)
    candidates = [
        _Candidate(*shape, *kind, count, chosen=(*kind, count) == own)
        for shape in shapes
        for kind in kinds
        for count in threads
    ]
    steps = {}
    for precision, attention in kinds:
        used = replace(execution, precision=precision, attention=attention)
        steps[precision, attention] = TrainingStep(build_model(recipe, base_model, used), used)

    def measure(candidate: _Candidate, min_seconds: float = window_seconds) -> float:
        return candidate.time(steps[candidate.precision, candidate.attention], min_seconds)

    try:
        racing = []
        for shape in shapes:
            rivals = [candidate for candidate in candidates if candidate.shape == shape]
            probes = [measure(candidate, 0) for candidate in rivals]
            for _ in range(2):  # again, so that a busy moment does not decide; what takes seconds is slow anyway
                again = [measure(c, 0) if rate > 2 else 0 for c, rate in zip(rivals, probes, strict=True)]
                probes = [max(pair) for pair in zip(probes, again, strict=True)]
            for candidate, rate in zip(rivals, probes, strict=True):
                if 10 * rate < max(probes) and not candidate.chosen:
                    candidate.windows, candidate.stopped = [rate], "under a tenth of the best: timed on one row"
                else:
                    candidate.rows = candidate.batch_size
                    measure(candidate, 0)  # warms up: kernels are made for every new shape
                    racing.append(candidate)
        while racing:
            for candidate in random.sample(racing, len(racing)):
                candidate.windows.append(measure(candidate))
            late, going = perf_counter() - start > seconds, []
            for shape in shapes:
                rivals = [candidate for candidate in racing if candidate.shape == shape]
                if not rivals or len(rivals[0].windows) < 2:
                    going += rivals
                    continue
                leader = max(median(candidate.windows) for candidate in rivals)
                for candidate in rivals:
                    if 2 * max(candidate.windows) < leader and not candidate.chosen:
                        candidate.stopped = f"under half of the best: {len(candidate.windows)} windows"
                rivals = [candidate for candidate in rivals if not candidate.stopped]
                if not late and not all(candidate.settled for candidate in rivals):
                    going += rivals
            racing = going
    finally:
        torch.set_num_threads(default)
    rows = []
    for candidate in candidates:
        extra = {"samples_per_second": median(candidate.windows), "scatter": scatter(candidate.windows)}
        extra["settled"] = candidate.settled
        rows.append(asdict(candidate) | extra)
    choice = [_choice(rows, shape) for shape in shapes]
    _print_execution(rows, choice)
    settings = {"recipe": recipe.name, "base_model": base_model, "seconds": perf_counter() - start, "choice": choice}
    return device_record("execution", execution, settings, rows)


def _choice(rows: list[dict], shape: tuple[int, int]) -> dict[str, object]:
    """The chosen execution against the best at one shape: `ratio` of their speeds with its 95 % interval."""
    rivals = [row for row in rows if (row["batch_size"], row["tokens"]) == shape]
    chosen, best = next(row for row in rivals if row["chosen"]), max(rivals, key=lambda row: row["samples_per_second"])
    ratio = chosen["samples_per_second"] / best["samples_per_second"]
    names = ("precision", "attention", "threads")
    return {
        "batch_size": shape[0],
        "tokens": shape[1],
        **{key: " ".join(str(row[name]) for name in names) for key, row in (("chosen", chosen), ("best", best))},
        "ratio": ratio,
        "interval": [1.0, 1.0] if chosen is best else median_interval(chosen["windows"], best["windows"]),
        "within_ten_percent": ratio >= 0.9,
        "settled": chosen["settled"] and best["settled"],
    }


def _print_execution(rows: list[dict], choice: list[dict]) -> None:
    for row in rows:
        print(f"{row['batch_size']:2d} x {row['tokens']}  {row['precision']} {row['attention']:5s}", end=" ")
        print(
            f"{row['threads']:2d} threads {row['samples_per_second']:8.1f} samples/s +-{row['scatter']:4.0%}", end=" "
        )
        note = row["stopped"] or ("" if row["settled"] else "not settled")
        print(f"({len(row['windows'])} windows)", "<- chosen" if row["chosen"] else "", note)
    for shape in choice:
        low, high = shape["interval"]
        print(f"{shape['batch_size']} x {shape['tokens']}: chosen {shape['chosen']}, best {shape['best']};", end=" ")
        print(f"{shape['ratio']:.2f} of its speed [{low:.2f}, {high:.2f}],", end=" ")
        print("within 10 %" if shape["within_ten_percent"] else "NOT within 10 %", end="")
        print("" if shape["settled"] else "; their scatter is not below 10 %", flush=True)
