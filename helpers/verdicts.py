"""The sources' claims, each with the function that decides it from the records in `Data/`.

A claim is never decided by hand: a function reads records and returns a verdict, or says which run is missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers import profiles
from helpers.budget import memory_budget
from helpers.device_records import COMMAND, find_benchmarks, main_rows
from helpers.efficiency import median_interval
from helpers.evaluation import PairedComparison, holm, paired_comparison
from helpers.profiles import Profile, shown
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord
from helpers.studies import compare_runs, summarize

EVIDENCE = profiles.COMMITTED / "evidence"  # the committed run records that the README's table rests on
AT_SCALE = profiles.COMMITTED / "full" / "results"  # what `make full` measured
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "not decided here"
ONLY_WHEN = "confirmed only when"


class Missing(Exception):
    """A record that a claim needs is not there; the message is the command that makes it."""


class Bar(NamedTuple):
    """A claim's number on one of four axes, for the figure: the range that is stated, and what was measured.

    `axis` is "accuracy", "difference" (of accuracies), "times" (as fast) or "share" (of parameters, bytes); `low` and
    `high` are the ends of the measurement's interval, or of its range. A claim of "more" states up to infinity.
    """

    axis: str
    stated: tuple[float, float]
    low: float
    high: float
    label: str = ""


class Verdict(NamedTuple):
    """What was measured (value, interval, n, profile, device), the verdict, one sentence, the records' paths, bars."""

    measured: str
    verdict: str
    sentence: str
    records: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A statement of a source (file in `RECIPES[...].source`'s numbering) and the function that decides it."""

    id: str
    source: str
    text: str
    decide: Callable[["Evidence"], Verdict]


class Evidence:
    """The records claims are decided on: `profile`'s in the data folder where it has any, else the committed ones.

    Without a profile only the committed ones.
    """

    def __init__(self, profile: Profile | None = None):
        self.roots = [profiles.COMMITTED] if profile is None else [profiles.COMMITTED, profiles.DATA_DIR]
        self.folders = [AT_SCALE, EVIDENCE]
        if profile is not None:
            self.folders.insert(0, profiles.DATA_DIR / profile.name / "results")

    def run(self, recipe: str, variant: str) -> tuple[RunRecord, str]:
        """The record of a recipe's run, and its path from the repository's root. Raises Missing."""
        name = f"{recipe}-{variant}-seed42.json"
        for folder in self.folders:
            if (folder / name).exists():
                return RunRecord.load(folder / name), relative_path(folder / name)
        raise Missing(f"make run, for {name}")

    def seeds(self, recipe: str, variant: str) -> list[tuple[RunRecord, str]]:
        """The records of a run with every seed there is, from the first folder that has the run. Raises Missing."""
        for folder in self.folders:
            if paths := sorted(folder.glob(f"{recipe}-{variant}-seed*.json")):
                return [(RunRecord.load(path), relative_path(path)) for path in paths]
        raise Missing(f"make run, for {recipe}-{variant}-seed42.json")

    def study(self, name: str) -> tuple[StudyRecord, str]:
        """The record of one of `make full`'s studies and its path. Raises Missing."""
        path = AT_SCALE / "studies" / f"{name}.json"
        if not path.exists():
            raise Missing(f"make full ONLY={name}")
        return StudyRecord.load(path), relative_path(path)

    def at_scale(self, recipe: str, variant: str) -> tuple[RunRecord, str]:
        """The record of a run of `make full` and its path. Raises Missing."""
        path = AT_SCALE / f"{recipe}-{variant}-seed42.json"
        if not path.exists():
            raise Missing(f"make full, for {path.name}")
        return RunRecord.load(path), relative_path(path)

    def benchmark(
        self, name: str, enough: Callable[[StudyRecord], bool] = lambda record: True
    ) -> tuple[StudyRecord, str]:
        """The first device's record `name` that has `enough`, and its path: GPUs first, by name. Raises Missing."""
        for path, record in find_benchmarks(name, self.roots):
            if enough(record):
                return record, relative_path(path)
        raise Missing(f"{COMMAND} {name}")


def relative_path(path: Path) -> str:
    """`path` from the repository's root; one outside of it as it is."""
    return Path(shown(path)).as_posix()


def _score(record: RunRecord) -> str:
    low, high = record.accuracy_ci95
    return f"{record.metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def _where(record: RunRecord) -> str:
    rows = f"n = {record.n_test:,}, {record.n_train:,} training rows"
    return f"{rows}, {record.base_model}, {record.profile}, {record.device}"


def _difference(test: PairedComparison) -> str:
    low, high = test.low * 100, test.high * 100
    return f"{test.difference * 100:+.1f} points [{low:+.1f}, {high:+.1f}], p = {test.p_value:.2g}"


SHAPES_NEEDED = 4  # shapes of batch at each size, for a verdict on memory or speed
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
        return f"{ONLY_WHEN} the shape is {_shapes(inside)}"
    if len(outside) == len(ratios):
        return REFUTED
    return f"{UNDECIDED}: the scatter reaches over the limit; run {COMMAND} steps on a quiet machine"


def _memory_saved(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "own_peak_bytes")
    verdict = _by_range(ratios, 0, 0.98)  # two points are what a process's resident memory differs by
    sentence = "A fixed saving: no gradients and averages for frozen weights."
    measured = f"{_less(ratios)} less peak memory, libraries aside ({where})"
    return Verdict(measured, verdict, sentence, (path,), (_saved(ratios, 0, 1),))


def _trains_faster(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    sentence = "The backward pass skips the frozen weights' gradients; the forward pass stays."
    bars = (Bar("times", (1, float("inf")), *_ends(ratios)),)
    return Verdict(f"{_times(ratios)} as fast ({where})", _by_range(ratios, 1), sentence, (path,), bars)


def _two_to_three_times(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    least, most = min(ratios, key=lambda shape: ratios[shape][0]), max(ratios, key=lambda shape: ratios[shape][1])
    sentence = f"Extremes at {_shapes([least])} and {_shapes([most])}. Confirmed where the whole range lies in 2 to 3."
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


def _against_the_trivial(
    evidence: Evidence, recipe: str, variants: tuple[str, ...], sentence: str, condition: str
) -> Verdict:
    """Whether a recipe beats what costs nothing on the same rows: the frozen encoder, and the head trained alone."""
    runs = {variant: evidence.at_scale(recipe, variant) for variant in variants}
    head, head_path = evidence.at_scale(recipe, "head_only")
    study, study_path = evidence.study("baselines")
    frozen = next(row for row in study.rows if (row["rows_of"], row["method"]) == (recipe, "frozen_encoder"))
    pairs = {
        (variant, name): _paired(run.correct, correct)
        for variant, (run, _) in runs.items()
        for name, correct in (("the frozen encoder", frozen["correct"]), ("the head alone", head.correct))
    }
    corrected = holm([test.p_value for test in pairs.values()])
    tests = {key: test._replace(p_value=p) for (key, test), p in zip(pairs.items(), corrected, strict=True)}
    ahead = [v for v in variants if all(t.p_value < 0.05 and t.difference > 0 for k, t in tests.items() if k[0] == v)]
    verdict = CONFIRMED if variants[0] in ahead else f"{ONLY_WHEN} {condition}" if ahead else REFUTED
    said = []
    for variant, (run, _) in runs.items():
        gains = [f"{_difference(tests[variant, name])} against {name}" for _, name in tests if _ == variant]
        said.append(f"{variant.replace('_', ' ')} {_score(run)}: {'; '.join(gains)}")
    first = runs[variants[0]][0]
    bars = [
        Bar("difference", (0, float("inf")), test.low, test.high, f"{variant.replace('_', ' ')} less {name}")
        for (variant, name), test in tests.items()
    ]
    paths = (*(path for _, path in runs.values()), head_path, study_path)
    return Verdict(f"{'. '.join(said)} ({_where(first)})", verdict, sentence, paths, tuple(bars))


def _paired(correct_a: str, correct_b: str) -> PairedComparison:
    if len(correct_a) != len(correct_b):
        raise Missing("make full, for runs on the same rows")
    return paired_comparison(correct_a, correct_b)


def _few_parameters(evidence: Evidence) -> Verdict:
    sentence = "Against what costs nothing: an untrained head is a coin toss, and beating it no achievement."
    return _against_the_trivial(evidence, "lora_distilbert_q", ("as_written",), sentence, "")


MARGIN = 0.02  # claims A4 and B5: what still counts as no worse


def _no_worse(tests: Mapping[str, PairedComparison], held: str) -> str:
    """A verdict on non-inferiority by `MARGIN`: where the intervals lie against it."""
    inside = [name for name, test in tests.items() if test.low > -MARGIN]
    if len(inside) == len(tests):
        return CONFIRMED
    if all(test.high < -MARGIN for test in tests.values()):
        return REFUTED
    if inside:
        return f"{ONLY_WHEN} {held} {' or '.join(inside)}"
    return f"{UNDECIDED}: the intervals reach over the margin of 2 points"


def _small_batch(evidence: Evidence) -> Verdict:
    study, path = evidence.study("batches")
    said, tests = [], {}
    for held in ("reviews", "updates"):
        rows = [row for row in study.rows if row["held"] == held]
        by_size = {size: [row for row in rows if row["batch_size"] == size] for size in (4, 16, 64)}
        tests[held] = compare_runs({f"{size}": (by_size[4], by_size[size]) for size in (16, 64)})
        scores = ", ".join(
            f"{point['batch_size']}: {point['accuracy']:.1%}" for point in summarize(rows, ["batch_size"])
        )
        gains = "; ".join(f"4 less {size} {_difference(test)}" for size, test in tests[held].items())
        said.append(f"at equal {held} batches of {scores} ({gains})")
    bars = tuple(
        Bar("difference", (-MARGIN, float("inf")), test.low, test.high, f"batches of 4 less {size}")
        for size, test in tests["reviews"].items()
    )
    where = f"n = {study.settings['n_test']:,}, 2,000 reviews seen twice, three seeds, each at its best of three rates"
    return Verdict(
        f"{'; '.join(said)} ({where}, {study.device})",
        _no_worse(tests["reviews"], "compared with batches of"),
        "High is taken as no more than 2 points below larger batches that see as many reviews.",
        (path,),
        bars,
    )


def _half_a_percent(evidence: Evidence) -> Verdict:
    budget = memory_budget(RECIPES["qlora_bert"])
    share = budget.trainable / budget.total
    verdict = CONFIRMED if 0.0045 <= share <= 0.0055 else REFUTED
    return Verdict(
        f"{share:.2%}, exact (bert-base-uncased's shape)",
        verdict,
        f"{budget.trainable:,} of {budget.total:,} parameters.",
        ("helpers/budget.py",),
        (Bar("share", (0.0045, 0.0055), share, share, "trained"),),
    )


def _weights_in_4bit(evidence: Evidence) -> Verdict:
    fp32 = sum(memory_budget(RECIPES["qlora_bert"].full_finetune()).weights.values()) / 1e6
    four, least = (
        sum(memory_budget(RECIPES["qlora_bert"], dtype=dtype).weights.values()) / 1e6 for dtype in ("fp32", "bf16")
    )
    verdict = CONFIRMED if four < 60 else REFUTED
    return Verdict(
        f"{fp32:.0f} MB and {four:.0f} MB ({least:.0f} MB with the rest in half precision), exact",
        verdict,
        "Embeddings, a fifth of BERT, do not go into 4 bits.",
        ("helpers/budget.py",),
        (Bar("share", (55 / 440, 55 / 440), least / fp32, four / fp32, "of the bytes in fp32"),),
    )


def _seventy_percent(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "qlora", "full_finetune", "own_peak_bytes", ("bert-base",))
    recipe = RECIPES["qlora_bert"]
    held = memory_budget(recipe).static("adamw_8bit") / memory_budget(recipe.full_finetune()).static()
    gpu = "/gpu/" in f"/{path}"
    of = "peak memory" if gpu else "of a process's resident memory, libraries aside"
    measured = f"{_less(ratios)} less {of} ({where}); {1 - held:.0%} before activations, exact"
    if not gpu:
        sentence = f"It speaks of a GPU's memory: {COMMAND} steps, on one."
        return Verdict(measured, UNDECIDED, sentence, (path,), (_saved(ratios, 0.65, 0.75),))
    sentence = "The estimate leaves out activations, which rule the measurement. About 70 % is taken as 65 % or more."
    return Verdict(measured, _by_range(ratios, 0, 0.35), sentence, (path,), (_saved(ratios, 0.65, 0.75),))


def _stated_accuracy(
    recipe: str, at_least: float, at_most: float = 0.0, scores: tuple[str, ...] = ("accuracy",)
) -> Callable[[Evidence], Verdict]:
    """A claim of an accuracy on a real checkpoint: only a `hub` record decides it, by its interval."""

    def decide(evidence: Evidence) -> Verdict:
        record, path = evidence.run(recipe, "as_written")
        better, other = evidence.run(recipe, "improved")
        stated = at_least, max(at_least, at_most)
        bars = tuple(
            Bar("accuracy", stated, *run.accuracy_ci95, run.variant.replace("_", " ")) for run in (record, better)
        )
        also = "".join(f", weighted F1 {record.metrics[name]:.3f}" for name in scores if name == "weighted_f1")
        measured = f"as written {_score(record)}{also}; improved {_score(better)} ({_where(record)})"
        if record.profile == "hub":
            _, high = record.accuracy_ci95
            verdict = CONFIRMED if high >= at_least else REFUTED
            return Verdict(measured, verdict, "Decided by the interval.", (path, other), bars)
        return Verdict(
            measured,
            UNDECIDED,
            f"Needs {record.settings['base_model']}: PROFILE=hub python -m helpers.train {recipe}.",
            (path, other),
            bars,
        )

    return decide


def _competitive(evidence: Evidence) -> Verdict:
    study, path = evidence.study("few_rows")
    sizes = ("500", "2000", "all")
    pairs = {}
    for size in sizes:
        sides = [
            [row for row in study.rows if (str(row["rows"]), row["method"]) == (size, method)]
            for method in ("qlora", "full_finetune")
        ]
        if not all(sides):
            raise Missing("make full ONLY=few_rows")
        pairs[size] = tuple(sides)
    tests = compare_runs(pairs)
    n_train = {size: sides[0][0]["n_train"] for size, sides in pairs.items()}
    said = "; ".join(f"at {n_train[size]:,} rows {_difference(test)}" for size, test in tests.items())
    bars = tuple(
        Bar("difference", (-MARGIN, float("inf")), test.low, test.high, f"{n_train[size]:,} rows")
        for size, test in tests.items()
    )
    seeds = {len(sides[0]) for sides in pairs.values()}
    return Verdict(
        f"QLoRA less full fine-tuning, {said} (n = {study.settings['n_test']:,}, "
        f"{min(seeds)} to {max(seeds)} seeds, the embedded encoder, {study.device})",
        _no_worse({f"{n_train[size]:,}": test for size, test in tests.items()}, "the training rows are"),
        "Competitive is no more than 2 points worse, each at its best of three rates.",
        (path,),
        bars,
    )


def _paged_optimizer(evidence: Evidence) -> Verdict:
    small, full = memory_budget(RECIPES["qlora_bert"]), memory_budget(RECIPES["qlora_bert"].full_finetune())
    saved, saved_full = (budget.adamw - budget.adamw_8bit for budget in (small, full))
    return Verdict(
        f"{saved / 1e6:.1f} MB with LoRA, {saved_full / 1e6:,.0f} MB in full fine-tuning, exact",
        f"{ONLY_WHEN} every weight trains" if saved < 0.05 * saved_full else CONFIRMED,
        "LoRA leaves next to no optimizer state to shrink.",
        ("helpers/budget.py",),
    )


def _half_precision(evidence: Evidence) -> Verdict:
    scored = {path.parts[-3:-1]: (path, record) for path, record in find_benchmarks("accuracy", evidence.roots)}
    for path, steps in find_benchmarks("steps", evidence.roots):
        if path.parts[-3] != "gpu" or path.parts[-3:-1] not in scored:
            continue
        other, accuracy = scored[path.parts[-3:-1]]
        correct = {row["precision"]: row["correct"] for row in accuracy.rows if _improved_and_fast(row)}
        if (ratios := _fp16_over_fp32(steps)) and {"fp16", "fp32"} <= set(correct):
            test = paired_comparison(correct["fp16"], correct["fp32"])
            lost = test.p_value < 0.05 and test.difference < 0
            return Verdict(
                f"fp16 is {_times(ratios)} as fast as fp32; its accuracy: {_difference(test)} ({steps.device})",
                REFUTED if lost else _by_range(ratios, 1),
                "LoRA, QLoRA and full fine-tuning, each at one shape, and source 004's recipe trained in both formats.",
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
    same = ("size", "batch_size", "tokens", "method", "attention", "optimizer", "compile")
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


def _checkpointing(evidence: Evidence) -> Verdict:
    sides = (evidence, "qlora_checkpointing", "qlora")
    memory, where, path = _ratios(*sides, "own_peak_bytes", ("bert-base",))
    speed, *_ = _ratios(*sides, "samples_per_second", ("bert-base",))
    saves, costs = _by_range(memory, 0, 0.98), _by_range(speed, 0, 1)
    verdict = saves if costs == CONFIRMED else costs
    pace = _times(speed).removesuffix(" times")
    return Verdict(
        f"{_less(memory)} less peak memory, libraries aside, at {pace} of the speed ({where})",
        verdict,
        "It pays where activations rule.",
        (path,),
        (_saved(memory, 0, 1),),
    )


def _masks(evidence: Evidence) -> Verdict:
    budget = memory_budget(RECIPES["lora_bert_cased"])
    return Verdict(
        f"rank 1, the least there is, trains {budget.trainable / budget.total:.3%}, exact",
        REFUTED,
        "r is a rank, a whole number; nothing is masked, and peft refuses 0.2 (notebook 06).",
        ("helpers/budget.py", "notebooks/06_lora_bert.ipynb"),
    )


def _out_of_the_box(evidence: Evidence) -> Verdict:
    sentence = "Out of the box is the frozen encoder with a head: an untrained head is a coin toss."
    variants = ("as_written", "improved")
    return _against_the_trivial(evidence, "lora_bert_cased", variants, sentence, "the recipe is improved")


def _distilbert_share(evidence: Evidence) -> Verdict:
    budget = memory_budget(RECIPES["lora_distilbert_qv"])
    share = budget.trainable / budget.total
    return Verdict(
        f"{share:.2%}, exact (distilbert-base-uncased's shape)",
        CONFIRMED if 0.01 <= share <= 0.02 else REFUTED,
        "590,592 of them are the head's pre_classifier, not LoRA.",
        ("helpers/budget.py",),
        (Bar("share", (0.01, 0.02), share, share, "trained"),),
    )


def _untrained_head(evidence: Evidence) -> Verdict:
    record, path = evidence.run("lora_distilbert_qv", "untrained")
    low, high = record.accuracy_ci95
    verdict = CONFIRMED if low <= 0.5 <= high else REFUTED
    sentence = "A coin toss: its interval holds 50 %. No model makes this claim right or wrong."
    bars = (Bar("accuracy", (0.5, 0.6), low, high),)
    return Verdict(f"{_score(record)} ({_where(record)})", verdict, sentence, (path,), bars)


def _epochs(evidence: Evidence) -> Verdict:
    curves, paths, bars, first = {}, [], [], None
    for variant in ("as_written", "improved"):
        runs = evidence.seeds("lora_bert_sst2", variant)
        first = first or runs[0][0]
        by_epoch = np.array([[row["accuracy"] for row in run.history["validation"][:3]] for run, _ in runs])
        curves[variant] = " / ".join(f"{accuracy:.1%}" for accuracy in by_epoch.mean(axis=0))
        paths += [path for _, path in runs]
        last = by_epoch[:, -1]
        bars.append(Bar("accuracy", (0.77, 0.77), last.min(), last.max(), f"{variant.replace('_', ' ')}, epoch 3"))
    verdict = UNDECIDED
    sentence = "Needs bert-base-uncased and SST-2: PROFILE=hub python -m helpers.train lora_bert_sst2."
    if first.profile == "hub":
        last = first.history["validation"][-1]["accuracy"]
        verdict = CONFIRMED if abs(last - 0.77) < 0.04 else REFUTED
        sentence = "Within four points (two standard errors at n = 500) of 77.0 %, or not."
    seeds = f"mean of {len(paths) // 2} seeds" if len(paths) > 2 else "one seed"
    where = f"{seeds}, validation n = {first.n_validation}, {first.base_model}, {first.profile}, {first.device}"
    measured = "as written {as_written}; improved {improved}".format(**curves)
    return Verdict(f"{measured} ({where})", verdict, sentence, tuple(paths), tuple(bars))


def _base_untouched(evidence: Evidence) -> Verdict:
    record, path = evidence.benchmark("adapter")
    row = record.rows[0]
    verdict = CONFIRMED if row["changed_base_tensors"] == 0 else REFUTED
    return Verdict(
        f"{row['changed_base_tensors']} of {row['base_tensors']} base tensors changed in training, bit by bit",
        verdict,
        "Unload the adapter and the checkpoint is what it was.",
        (path,),
    )


def _pipeline(evidence: Evidence) -> Verdict:
    record, path = evidence.benchmark("adapter", lambda record: "label_without_names" in record.rows[0])
    row = record.rows[0]
    bare, named = row["label_without_names"], row["label_with_names"]
    when_named = f"{ONLY_WHEN} the labels are named" if named == "POSITIVE" else REFUTED
    verdict = CONFIRMED if bare == "POSITIVE" else when_named
    return Verdict(
        f'{bare} for "{row["text"]}" on a base that names no labels, as BERT on the hub; {named} with the names given',
        verdict,
        "An adapter does not carry the names; the base's config must, or the call.",
        (path,),
    )


CLAIMS = (
    Claim("A1", "000", "LoRA uses less memory than full fine-tuning", _memory_saved),
    Claim("A2", "000", "LoRA trains faster than full fine-tuning", _trains_faster),
    Claim("A3", "000", "accuracy improves with few trained parameters (r=4, q_lin only)", _few_parameters),
    Claim("A4", "000", "high accuracy even with batch size 4", _small_batch),
    Claim("B1", "001", "about 0.5 % of parameters train", _half_a_percent),
    Claim("B2", "001", "weights take about 55 MB in 4 bits against 440 MB in fp32", _weights_in_4bit),
    Claim("B3", "001", "total GPU memory falls by about 70 %", _seventy_percent),
    Claim(
        "B4",
        "001",
        "93 to 94 % test accuracy, weighted F1 0.93 to 0.94",
        _stated_accuracy("qlora_bert", 0.93, 0.94, ("accuracy", "weighted_f1")),
    ),
    Claim("B5", "001", "accuracy competitive with full fine-tuning", _competitive),
    Claim("B6", "001", "the paged 8-bit optimizer saves further memory", _paged_optimizer),
    Claim("B7", "001", "fp16 gives speed without loss of precision", _half_precision),
    Claim("B8", "001", "gradient checkpointing trades compute for memory", _checkpointing),
    Claim("C1", "002", "85.3 % validation accuracy after 30 epochs", _stated_accuracy("lora_bert_cased", 0.853)),
    Claim("C2", "002", "r = 0.2 masks 80 %, only 20 % of weights update", _masks),
    Claim("C3", "002", "LoRA speeds training up 2 to 3 times", _two_to_three_times),
    Claim("C4", "002", "better than the model out of the box", _out_of_the_box),
    Claim("D1", "003", "1 to 2 % of DistilBERT's parameters train", _distilbert_share),
    Claim("D2", "003", "the untrained head scores about 50 to 60 %", _untrained_head),
    Claim("D3", "003", "over 90 % after LoRA", _stated_accuracy("lora_distilbert_qv", 0.90, 0.93)),
    Claim("E1", "004", "SST-2: 53.0, 65.4, 77.0 % after epochs 1, 2, 3", _epochs),
    Claim("E2", "004", "the base model stays untouched", _base_untouched),
    Claim("E3", "004", "the saved model answers through pipeline with POSITIVE", _pipeline),
)


def decide_all(profile: Profile | None = None) -> dict[str, Verdict]:
    """A verdict for each claim's id, on the records of `profile` and the committed ones (None: only those).

    A claim whose record is missing is "not decided here", with the command that makes it.
    """
    evidence, verdicts = Evidence(profile), {}
    for claim in CLAIMS:
        try:
            verdicts[claim.id] = claim.decide(evidence)
        except Missing as missing:
            verdicts[claim.id] = Verdict("", f"{UNDECIDED}: run {missing}", "", ())
    return verdicts
