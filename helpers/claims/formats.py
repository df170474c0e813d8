"""The verdict on half precision, from what a GPU measured of it."""

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
from helpers.evaluation import PairedComparison, paired_comparison
from helpers.results import StudyRecord

METHODS = {"full_finetune": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}


def half_precision(evidence: Evidence) -> Verdict:
    scored = {path.parts[-3:-1]: (path, record) for path, record in find_benchmarks("accuracy", evidence.roots)}
    for path, steps in find_benchmarks("steps", evidence.roots):
        if path.parts[-3] != "gpu" or path.parts[-3:-1] not in scored:
            continue
        other, accuracy = scored[path.parts[-3:-1]]
        ratios, tests = _fp16_over_fp32(steps), _fp16_less_fp32(accuracy)
        if ratios and tests:
            speeds = ", ".join(f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in ratios.items())
            scores = ", ".join(f"{name} {_shown(test)}" for name, test in tests.items())
            return Verdict(
                f"fp16 over fp32, speed in {speeds} times; accuracy in {scores} ({steps.device})",
                _of_methods(ratios, tests),
                "Speed at one shape of BERT-base; accuracy of the SST-2 post's recipe on MiniLM, one run each.",
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


def _of_methods(ratios: dict[str, tuple[float, float]], tests: dict[str, PairedComparison]) -> str:
    """A verdict on methods, each of which the claim says to be faster and no less accurate."""
    fails = [
        name for name, (_, high) in ratios.items() if high < 1 or (name in tests and tests[name].verdict == "worse")
    ]
    holds = [name for name, (low, _) in ratios.items() if low > 1 and name in tests and name not in fails]
    unscored = [name for name, (low, _) in ratios.items() if low > 1 and name not in tests]
    scattered = [name for name in ratios if name not in (*fails, *holds, *unscored)]
    if len(holds) == len(ratios):
        return CONFIRMED
    if len(fails) == len(ratios):
        return REFUTED
    rest = [f"not {' or '.join(fails)}"] if fails else []
    rest += [f"{' and '.join(unscored)} faster, the accuracy not measured"] if unscored else []
    rest += [f"the scatter of {' and '.join(scattered)} reaches over the limit"] if scattered else []
    if holds:
        return f"{ONLY_WHEN} it is {'; '.join([' or '.join(holds), *rest])}"
    return f"{UNDECIDED}: {'; '.join(rest)}; run {COMMAND} {'accuracy' if unscored else 'steps'} there"


def _fp16_less_fp32(record: StudyRecord) -> dict[str, PairedComparison]:
    """The accuracy of fp16 less that of fp32, by method, of those that an `accuracy` record has in both."""
    correct: dict[str, dict[str, str]] = {}
    for row in record.rows:
        if row["execution"] != "source's" and row["settings"] != "as_written":
            method = "lora" if row["settings"] == "improved" else row["settings"]
            correct.setdefault(METHODS[method], {})[row["precision"]] = row["correct"]
    both = {method: found for method, found in correct.items() if {"fp16", "fp32"} <= set(found)}
    return {method: paired_comparison(found["fp16"], found["fp32"]) for method, found in both.items()}


def _shown(test: PairedComparison) -> str:
    """The difference; where all answers are the same its interval has no width and says nothing."""
    return "the same answers on all rows" if test.low == test.high == 0 else shown_difference(test)


def _fp16_over_fp32(record: StudyRecord) -> dict[str, tuple[float, float]]:
    """fp16's speed over fp32's, all else alike, by method: the lowest and the highest end over the shapes."""
    same = ("size", "batch_size", "tokens", "method", "attention", "optimizer")
    alike: dict[tuple, dict[str, list[float]]] = {}
    for row in record.rows:
        alike.setdefault(tuple(row[name] for name in same), {})[row["precision"]] = row["windows"]
    ratios: dict[str, tuple[float, float]] = {}
    for (*_, method, _, _), windows in alike.items():
        if {"fp16", "fp32"} <= set(windows):
            low, high = median_interval(windows["fp16"], windows["fp32"])
            least, most = ratios.get(METHODS[method], (low, high))
            ratios[METHODS[method]] = min(low, least), max(high, most)
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
