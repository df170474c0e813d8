"""The figures of notebook 08: the verdicts at a glance, and what more training rows are worth."""

from textwrap import shorten

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from helpers.plots import COLORS
from helpers.results import StudyRecord
from helpers.verdicts import CLAIMS, CONFIRMED, ONLY_WHEN, REFUTED, UNDECIDED, Verdict

VERDICT_COLORS = {CONFIRMED: "#009E73", ONLY_WHEN: "#E69F00", REFUTED: "#D55E00", UNDECIDED: "#999999"}
METHODS = {"bag_of_words": "bag of words", "lora": "LoRA", "full_finetune": "full fine-tuning", "qlora": "QLoRA"}


def verdict_kind(verdict: Verdict) -> str:
    """Which of the four kinds of verdict it is, without its condition."""
    return next(kind for kind in (ONLY_WHEN, CONFIRMED, REFUTED, UNDECIDED) if verdict.verdict.startswith(kind))


def plot_claims(verdicts: dict[str, Verdict]) -> Figure:
    """Every claim with its verdict as a coloured tag and what was measured, in the sources' order."""
    kinds = [verdict_kind(verdicts[claim.id]) for claim in CLAIMS]
    figure, axes = plt.subplots(figsize=(15, 0.36 * len(CLAIMS) + 0.8), layout="constrained")
    for row, (claim, kind) in enumerate(zip(CLAIMS, kinds, strict=True)):
        verdict = verdicts[claim.id]
        color = VERDICT_COLORS[kind]
        axes.text(0, row, claim.id, va="center", weight="bold", fontsize=9)
        axes.text(0.025, row, shorten(claim.text, 62, placeholder=" …"), va="center", fontsize=9)
        tag = {"facecolor": color, "edgecolor": "none", "boxstyle": "round,pad=0.25"}
        axes.text(0.40, row, kind.removesuffix(" when"), va="center", fontsize=8.5, color="white", bbox=tag)
        axes.text(
            0.50, row, shorten(verdict.measured or verdict.verdict, 108, placeholder=" …"), va="center", fontsize=8.5
        )
    counts = ", ".join(f"{kinds.count(kind)} {kind.removesuffix(' when')}" for kind in VERDICT_COLORS if kind in kinds)
    axes.set(title=f"{len(CLAIMS)} claims: {counts}", xlim=(0, 1.12), ylim=(len(CLAIMS) - 0.4, -0.6))
    axes.axis("off")
    return figure


def plot_learning_curve(record: StudyRecord, ahead: list[int]) -> Figure:
    """Accuracy with its interval against the number of training rows (log scale), one line a method.

    `ahead` are the numbers of rows at which LoRA beats the bag of words (see `studies.sizes_ahead`), for the title.
    """
    figure, axes = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    ends = []
    for offset, method in enumerate(name for name in METHODS if any(row["method"] == name for row in record.rows)):
        rows = sorted((row for row in record.rows if row["method"] == method), key=lambda row: row["n_train"])
        shifted = [row["n_train"] * (1 + 0.02 * offset) for row in rows]
        accuracy = [row["accuracy"] for row in rows]
        low, high = ([abs(row["accuracy_ci95"][side] - row["accuracy"]) for row in rows] for side in (0, 1))
        axes.errorbar(
            shifted, accuracy, yerr=[low, high], fmt="o-", color=COLORS[method], lw=2, elinewidth=1.2, capsize=2
        )
        ends.append((accuracy[-1], shifted[-1], method))
    for rank, (accuracy, last, method) in enumerate(sorted(ends)):
        place = {"xytext": (10, 9 * (rank - (len(ends) - 1) / 2)), "textcoords": "offset points"}
        axes.annotate(METHODS[method], (last, accuracy), **place, va="center", color=COLORS[method], fontsize=9)
    sizes = sorted({row["n_train"] for row in record.rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(right=max(sizes) * 2)
    title = "No size at which LoRA is seen to beat a bag of words"
    if ahead:
        behind = [size for size in sizes if size not in ahead]
        title = f"LoRA beats a bag of words at {_listed(ahead)} rows"
        title += f"; no such difference at {_listed(behind)}" if behind else ", every size tried"
    axes.set(title=title, xlabel="training rows (log scale)")
    axes.set_ylabel(f"test accuracy, 95 % interval (n = {record.settings['n_scored']:,})")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _listed(sizes: list[int]) -> str:
    *first, last = [f"{size:,}" for size in sizes]
    return f"{', '.join(first)} and {last}" if first else last
