"""Verdicts on what was learned; each public function decides one claim of `verdicts.CLAIMS`."""

from collections.abc import Callable, Mapping

import numpy as np

from helpers.claims.evidence import (
    CONFIRMED,
    ONLY_WHEN,
    REFUTED,
    UNDECIDED,
    Bar,
    Evidence,
    Missing,
    Verdict,
    shown_difference,
    shown_rows,
)
from helpers.evaluation import PairedComparison, corrected, paired_comparison
from helpers.studies.compare import compare_runs, summarize


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
    tests = corrected(pairs)
    ahead = [v for v in variants if all(t.verdict == "better" for k, t in tests.items() if k[0] == v)]
    verdict = CONFIRMED if variants[0] in ahead else f"{ONLY_WHEN} {condition}" if ahead else REFUTED
    said = []
    for variant, (run, _) in runs.items():
        gains = [
            f"{shown_difference(tests[variant, name])} against {name}" for other, name in tests if other == variant
        ]
        said.append(f"{variant.replace('_', ' ')} {run.score}: {'; '.join(gains)}")
    first = runs[variants[0]][0]
    bars = [
        Bar("difference", (0, float("inf")), *test[1:3], f"{variant.replace('_', ' ')} less {name}", test.difference)
        for (variant, name), test in tests.items()
    ]
    paths = (*(path for _, path in runs.values()), head_path, study_path)
    return Verdict(f"{'. '.join(said)} ({shown_rows(first)})", verdict, sentence, paths, tuple(bars))


def _paired(correct_a: str, correct_b: str) -> PairedComparison:
    if len(correct_a) != len(correct_b):
        raise Missing("make full, for runs on the same rows")
    return paired_comparison(correct_a, correct_b)


def few_parameters(evidence: Evidence) -> Verdict:
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


def small_batch(evidence: Evidence) -> Verdict:
    study, path = evidence.study("batches")
    said, tests = [], {}
    for held, seen in (("reviews", "2,000 seen twice"), ("updates", "250 to 4,000 reviews seen four times")):
        rows = [row for row in study.rows if row["held"] == held]
        by_size = {size: [row for row in rows if row["batch_size"] == size] for size in (4, 16, 64)}
        tests[held] = compare_runs({f"{size}": (by_size[4], by_size[size]) for size in (16, 64)})
        scores = ", ".join(
            f"{point['batch_size']}: {point['accuracy']:.1%}" for point in summarize(rows, ["batch_size"])
        )
        gains = "; ".join(f"4 less {size} {shown_difference(test)}" for size, test in tests[held].items())
        said.append(f"at equal {held}, {seen}, batches of {scores} ({gains})")
    bars = tuple(
        Bar("difference", (-MARGIN, float("inf")), *test[1:3], f"batches of 4 less {size}", test.difference)
        for size, test in tests["reviews"].items()
    )
    where = f"n = {study.settings['n_test']:,}, three seeds, each at the best of its rates"
    return Verdict(
        f"{'; '.join(said)} ({where}, {study.device})",
        _no_worse(tests["reviews"], "compared with batches of"),
        "Batches of 64 see a sixteenth of the updates that batches of 4 do, unless updates are held equal.",
        (path,),
        bars,
    )


def stated_accuracy(
    recipe: str, at_least: float, at_most: float = 0.0, weighted_f1: bool = False
) -> Callable[[Evidence], Verdict]:
    """A claim of an accuracy on a real checkpoint: only a `hub` record decides it, by its interval."""

    def decide(evidence: Evidence) -> Verdict:
        record, path = evidence.run(recipe, "as_written")
        better, other = evidence.run(recipe, "improved")
        stated = at_least, max(at_least, at_most)
        bars = tuple(
            Bar("accuracy", stated, *run.accuracy_ci95, run.variant.replace("_", " "), run.metrics["accuracy"])
            for run in (record, better)
        )
        also = f", weighted F1 {record.metrics['weighted_f1']:.3f}" if weighted_f1 else ""
        rows, of_better = shown_rows(record), shown_rows(better)
        of_first = "" if rows == of_better else f" ({rows})"
        measured = f"as written {record.score}{also}{of_first}; improved {better.score} ({of_better})"
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


def competitive(evidence: Evidence) -> Verdict:
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
    said = "; ".join(f"at {n_train[size]:,} rows {shown_difference(test)}" for size, test in tests.items())
    bars = tuple(
        Bar("difference", (-MARGIN, float("inf")), *test[1:3], f"{n_train[size]:,} rows", test.difference)
        for size, test in tests.items()
    )
    seeds = {len(sides[0]) for sides in pairs.values()}
    return Verdict(
        f"QLoRA less full fine-tuning, {said} (n = {study.settings['n_test']:,}, "
        f"{min(seeds)} to {max(seeds)} seeds, the embedded encoder, {study.device})",
        _no_worse({f"{n_train[size]:,}": test for size, test in tests.items()}, "the training rows are"),
        "Each at its own best rate, chosen on validation rows with other seeds.",
        (path,),
        bars,
    )


def out_of_the_box(evidence: Evidence) -> Verdict:
    sentence = "Out of the box is the frozen encoder with a head: an untrained head is a coin toss."
    variants = ("as_written", "improved")
    return _against_the_trivial(evidence, "lora_bert_cased", variants, sentence, "the recipe is improved")


def untrained_head(evidence: Evidence) -> Verdict:
    record, path = evidence.run("lora_distilbert_qv", "untrained")
    low, high = record.accuracy_ci95
    verdict = CONFIRMED if low <= 0.5 <= high else REFUTED
    sentence = "A coin toss: its interval holds 50 %. No model makes this claim right or wrong."
    bars = (Bar("accuracy", (0.5, 0.6), low, high, value=record.metrics["accuracy"]),)
    return Verdict(f"{record.score} ({shown_rows(record)})", verdict, sentence, (path,), bars)


def epochs(evidence: Evidence) -> Verdict:
    said, paths, bars, first = [], [], [], None
    for variant, shown in (("as_written", "as written"), ("improved", "improved")):
        runs = evidence.seeds("lora_bert_sst2", variant)
        run = runs[0][0]
        first = first or run
        by_epoch = np.array([[row["accuracy"] for row in run.history["validation"]] for run, _ in runs])
        curve = " / ".join(f"{accuracy:.1%}" for accuracy in by_epoch.mean(axis=0)[:3])
        seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
        of_more = f"the first three of {by_epoch.shape[1]} epochs, " if by_epoch.shape[1] > 3 else ""
        said.append(
            f"{shown} {curve} ({of_more}{seeds}, validation n = {run.n_validation:,}, {run.profile}, {run.device})"
        )
        paths += [path for _, path in runs]
        last = by_epoch[:, :3][:, -1]
        bars.append(Bar("accuracy", (0.77, 0.77), last.min(), last.max(), f"{shown}, epoch 3"))
    verdict = UNDECIDED
    sentence = "Needs bert-base-uncased and SST-2: PROFILE=hub python -m helpers.train lora_bert_sst2."
    if first.profile == "hub":
        last = first.history["validation"][-1]["accuracy"]
        verdict = CONFIRMED if abs(last - 0.77) < 0.04 else REFUTED
        sentence = "Within four points (two standard errors at n = 500) of 77.0 %, or not."
    measured = f"{'; '.join(said)}, {first.base_model}"
    return Verdict(measured, verdict, sentence, tuple(paths), tuple(bars))


def pipeline(evidence: Evidence) -> Verdict:
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
