"""The sources' claims, each with the function that decides it from the records in `Data/`.

A claim is never decided by hand: a function reads records and returns a verdict, or says which run is missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from helpers import profiles
from helpers.budget import memory_budget
from helpers.device_records import COMMAND, find_benchmarks, main_rows
from helpers.efficiency import median_interval
from helpers.evaluation import PairedComparison, paired_comparison
from helpers.profiles import Profile, shown
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord

EVIDENCE = profiles.COMMITTED / "evidence"  # the committed run records that the README's table rests on
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "not decided here"
ONLY_WHEN = "confirmed only when"


class Missing(Exception):
    """A record that a claim needs is not there; the message is the command that makes it."""


class Verdict(NamedTuple):
    """What was measured (value, interval, n, profile, device), the verdict, one sentence, and the records' paths."""

    measured: str
    verdict: str
    sentence: str
    records: tuple[str, ...] = ()


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
        self.folders = [EVIDENCE] if profile is None else [profiles.DATA_DIR / profile.name / "results", EVIDENCE]

    def run(self, recipe: str, variant: str) -> tuple[RunRecord, str]:
        """The record of a recipe's run, and its path from the repository's root. Raises Missing."""
        name = f"{recipe}-{variant}-seed42.json"
        for folder in self.folders:
            if (folder / name).exists():
                return RunRecord.load(folder / name), relative_path(folder / name)
        raise Missing(f"make run, for {name}")

    def study(self, name: str) -> tuple[StudyRecord, str]:
        """A study's record and its path. Raises Missing."""
        for folder in self.folders:
            for path in (folder / "studies" / f"{name}.json", folder / f"{name}.json"):
                if path.exists():
                    return StudyRecord.load(path), relative_path(path)
        raise Missing("python -m helpers.claims --learning-curve")

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


def _compare(first: RunRecord, second: RunRecord) -> tuple[str, int]:
    """(text, sign): +1 or -1 where the paired test tells the two apart at 5 %, else 0."""
    if len(first.correct) != len(second.correct):  # one of them is the profile's own, the other the committed one
        raise Missing(f"make run, for {first.name} and {second.name} on the same rows")
    test = paired_comparison(first.correct, second.correct)
    return _difference(test), 0 if test.p_value >= 0.05 else 1 if test.difference > 0 else -1


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
    return Verdict(f"{_less(ratios)} less peak memory, libraries aside ({where})", verdict, sentence, (path,))


def _trains_faster(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    sentence = "The backward pass skips the frozen weights' gradients; the forward pass stays."
    return Verdict(f"{_times(ratios)} as fast ({where})", _by_range(ratios, 1), sentence, (path,))


def _two_to_three_times(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "lora", "full_finetune", "samples_per_second")
    least, most = min(ratios, key=lambda shape: ratios[shape][0]), max(ratios, key=lambda shape: ratios[shape][1])
    sentence = f"Extremes at {_shapes([least])} and {_shapes([most])}. Confirmed where the whole range lies in 2 to 3."
    return Verdict(f"{_times(ratios)} as fast ({where})", _by_range(ratios, 2, 3), sentence, (path,))


def _size_name(size: str) -> str:
    return "BERT-base's shape" if size == "bert-base" else "the embedded encoder"


def _shapes(shapes: list[tuple[str, int, int]]) -> str:
    """For example "BERT-base's shape at 4 x 128, 16 x 128 tokens"."""
    by_size: dict[str, list[str]] = {}
    for size, batch, tokens in shapes:
        by_size.setdefault(size, []).append(f"{batch} x {tokens}")
    return "; ".join(f"{_size_name(size)} at {', '.join(found)} tokens" for size, found in by_size.items())


def _times(ratios: Intervals) -> str:
    return f"{min(low for low, _ in ratios.values()):.2f} to {max(high for _, high in ratios.values()):.2f} times"


def _less(ratios: Intervals) -> str:
    return f"{1 - max(high for _, high in ratios.values()):.0%} to {1 - min(low for low, _ in ratios.values()):.0%}"


def _few_parameters(evidence: Evidence) -> Verdict:
    record, path = evidence.run("lora_distilbert_q", "as_written")
    untrained, other = evidence.run("lora_distilbert_qv", "untrained")
    text, sign = _compare(record, untrained)
    verdict = CONFIRMED if sign > 0 else REFUTED
    return Verdict(
        f"{_score(record)}, untrained head {_score(untrained)}: {text} ({_where(record)})",
        verdict,
        "It learns; the head alone has most of what trains.",
        (path, other),
    )


def _small_batch(evidence: Evidence) -> Verdict:
    record, path = evidence.run("lora_distilbert_q", "as_written")
    bag, other = evidence.run("lora_distilbert_qv", "bag_of_words")
    text, sign = _compare(record, bag)
    verdict = REFUTED if sign < 0 else CONFIRMED
    return Verdict(
        f"{_score(record)}, bag of words {_score(bag)}: {text} ({_where(record)})",
        verdict,
        "High is taken as not below a bag of words on the same rows.",
        (path, other),
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
    )


def _seventy_percent(evidence: Evidence) -> Verdict:
    ratios, where, path = _ratios(evidence, "qlora", "full_finetune", "own_peak_bytes", ("bert-base",))
    recipe = RECIPES["qlora_bert"]
    held = memory_budget(recipe).static("adamw_8bit") / memory_budget(recipe.full_finetune()).static()
    gpu = "/gpu/" in f"/{path}"
    of = "peak memory" if gpu else "of a process's resident memory, libraries aside"
    measured = f"{_less(ratios)} less {of} ({where}); {1 - held:.0%} before activations, exact"
    if not gpu:
        return Verdict(measured, UNDECIDED, f"It speaks of a GPU's memory: {COMMAND} steps, on one.", (path,))
    sentence = "The estimate leaves out activations, which rule the measurement. About 70 % is taken as 65 % or more."
    return Verdict(measured, _by_range(ratios, 0, 0.35), sentence, (path,))


def _stated_accuracy(
    recipe: str, at_least: float, scores: tuple[str, ...] = ("accuracy",)
) -> Callable[[Evidence], Verdict]:
    """A claim of an accuracy on a real checkpoint: only a `hub` record decides it, by its interval."""

    def decide(evidence: Evidence) -> Verdict:
        record, path = evidence.run(recipe, "as_written")
        better, other = evidence.run(recipe, "improved")
        also = "".join(f", weighted F1 {record.metrics[name]:.3f}" for name in scores if name == "weighted_f1")
        measured = f"as written {_score(record)}{also}; improved {_score(better)} ({_where(record)})"
        if record.profile == "hub":
            _, high = record.accuracy_ci95
            verdict = CONFIRMED if high >= at_least else REFUTED
            return Verdict(measured, verdict, "Decided by the interval.", (path, other))
        return Verdict(
            measured,
            UNDECIDED,
            f"Needs {record.settings['base_model']}: PROFILE=hub python -m helpers.train {recipe}.",
            (path, other),
        )

    return decide


def _competitive(evidence: Evidence) -> Verdict:
    study, path = evidence.study("learning_curve")
    rows = {row["method"]: row for row in study.rows if row["n_train"] == study.settings["methods_at"]}
    first, second = rows["qlora"], rows["full_finetune"]
    test = paired_comparison(first["correct"], second["correct"])
    verdict = REFUTED if test.p_value < 0.05 and test.difference < 0 else CONFIRMED
    return Verdict(
        f"QLoRA {first['accuracy']:.1%}, full fine-tuning {second['accuracy']:.1%}: {_difference(test)} "
        f"(n = {study.settings['n_scored']:,}, {first['n_train']:,} training rows, embedded encoder, {study.device})",
        verdict,
        "Each with a rate that suits it; that no difference is seen is what competitive can mean.",
        (path,),
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
    written, path = evidence.run("lora_bert_cased", "as_written")
    better, other = evidence.run("lora_bert_cased", "improved")
    untrained, third = evidence.run("lora_bert_cased", "untrained")
    (text, sign), (text_better, sign_better) = _compare(written, untrained), _compare(better, untrained)
    verdict = CONFIRMED if sign > 0 else f"{ONLY_WHEN} the learning rate is raised" if sign_better > 0 else REFUTED
    return Verdict(
        f"as written {text}; improved {text_better} ({_where(written)})",
        verdict,
        "A head that was never trained is a coin toss; at 5e-5 rank 1 hardly moves it.",
        (path, other, third),
    )


def _distilbert_share(evidence: Evidence) -> Verdict:
    budget = memory_budget(RECIPES["lora_distilbert_qv"])
    share = budget.trainable / budget.total
    return Verdict(
        f"{share:.2%}, exact (distilbert-base-uncased's shape)",
        CONFIRMED if 0.01 <= share <= 0.02 else REFUTED,
        "590,592 of them are the head's pre_classifier, not LoRA.",
        ("helpers/budget.py",),
    )


def _untrained_head(evidence: Evidence) -> Verdict:
    record, path = evidence.run("lora_distilbert_qv", "untrained")
    low, high = record.accuracy_ci95
    verdict = CONFIRMED if high >= 0.5 and low <= 0.6 else REFUTED
    return Verdict(f"{_score(record)} ({_where(record)})", verdict, "A coin toss, as a random head must be.", (path,))


def _epochs(evidence: Evidence) -> Verdict:
    record, path = evidence.run("lora_bert_sst2", "as_written")
    better, other = evidence.run("lora_bert_sst2", "improved")
    curve, curve_better = (
        " / ".join(f"{row['accuracy']:.1%}" for row in run.history["validation"]) for run in (record, better)
    )
    verdict = UNDECIDED
    sentence = "Needs bert-base-uncased and SST-2: PROFILE=hub python -m helpers.train lora_bert_sst2."
    if record.profile == "hub":
        last = record.history["validation"][-1]["accuracy"]
        verdict, sentence = (
            (CONFIRMED if abs(last - 0.77) < 0.04 else REFUTED),
            "Within four points (two standard errors at n = 500) of 77.0 %, or not.",
        )
    where = f"validation n = {record.n_validation}, {record.base_model}, {record.profile}, {record.device}"
    return Verdict(f"as written {curve}; improved {curve_better} ({where})", verdict, sentence, (path, other))


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
    record, path = evidence.benchmark("adapter")
    row = record.rows[0]
    verdict = CONFIRMED if row["pipeline_label"] == "POSITIVE" else REFUTED
    return Verdict(
        f'{row["pipeline_label"]}, {row["pipeline_score"]:.2f} for "{row["text"]}"',
        verdict,
        "The base's config must name its labels; a hub BERT answers LABEL_1 until it does.",
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
        _stated_accuracy("qlora_bert", 0.93, ("accuracy", "weighted_f1")),
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
    Claim("D3", "003", "over 90 % after LoRA", _stated_accuracy("lora_distilbert_qv", 0.90)),
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
