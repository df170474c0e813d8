"""Figures of the studies and of the runs over epochs: axes with intervals, put together to one figure a notebook."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.plots import COLORS, VARIANT_NAMES
from helpers.results import RunRecord

STUDY_COLORS = {
    "alpha = 2r": COLORS["improved"],
    "alpha fixed": "#CC79A7",
    "rsLoRA": COLORS["train"],
    "as shipped": COLORS["as_written"],
    "identity": COLORS["improved"],
}


def plot_rank_study(
    ranks: Sequence[dict[str, Any]],
    parameters: Mapping[int, int],
    modules: Sequence[dict[str, Any]],
    schemes: Mapping[str, Sequence[dict[str, Any]]],
    bag: float,
    titles: Sequence[str],
) -> Figure:
    """Accuracy over rank, over the adapted layers at one parameter budget, and over rank by `lora_alpha` scheme.

    Points are those of `studies.summarize`: `ranks` and `schemes` with label `r`, `modules` with `modules` and `r`.
    `parameters` maps a rank to what LoRA trains in the real checkpoint, `bag` is the bag of words' accuracy on the
    same rows, and `titles` holds one finding a panel.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.9), layout="constrained")
    values = [point["r"] for point in ranks]
    draw_line(axes[0], ranks, "r", STUDY_COLORS["alpha = 2r"])
    for column, (name, points) in enumerate(schemes.items()):  # side by side: some of them are the same run
        draw_line(axes[2], points, "r", STUDY_COLORS[name], shift=1.09 ** (column - (len(schemes) - 1) / 2))
    for panel in (axes[0], axes[2]):
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [str(value) for value in values])
        panel.set(xlabel="rank r", ylabel="validation accuracy")
    axes[2].set_xlim(values[0] / 1.3, values[-1] * 4.5)
    counts = axes[0].secondary_xaxis("top")
    counts.set_xticks(values, [_short(parameters[value]) for value in values], fontsize=8.5)
    counts.minorticks_off()
    counts.set_xlabel("parameters that LoRA trains in bert-base at this rank", fontsize=9)
    names = [f"{point['modules']}\nr = {point['r']}" for point in modules]
    draw_intervals(axes[1], names, modules, [STUDY_COLORS["alpha = 2r"]] * len(modules))
    axes[1].set_xlabel("validation accuracy")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=11)
    lowest = min(p["low"] for points in (ranks, modules, *schemes.values()) for p in points)
    highest = max(p["high"] for points in (ranks, modules, *schemes.values()) for p in points)
    limits = min(lowest, bag) - 0.015, max(highest, bag) + 0.015
    axes[0].set_ylim(limits)
    axes[2].set_ylim(limits)
    axes[1].set_xlim(limits[0], limits[1] + 0.02)
    ends = [
        (points[-1]["r"] * 1.1, points[-1]["accuracy"], name, STUDY_COLORS[name]) for name, points in schemes.items()
    ]
    _label_ends(axes[2], ends, gap=0.05)
    draw_reference(axes[0], bag, f"bag of words {bag:.1%}", COLORS["bag_of_words"])
    draw_reference(axes[2], bag, f"bag of words {bag:.1%}", COLORS["bag_of_words"])
    axes[1].axvline(bag, color=COLORS["bag_of_words"], ls="--", lw=1.2)
    return figure


def plot_epochs(
    runs: Sequence[RunRecord],
    baselines: Mapping[str, RunRecord],
    titles: Sequence[str],
    stated: tuple[str, Sequence[float]] | None = None,
    rates: Mapping[str, Sequence[dict[str, Any]]] | None = None,
) -> Figure:
    """Validation accuracy after each epoch with the best marked, test accuracy of runs and baselines, a rate sweep.

    `baselines` maps a name to its record; `stated` is a name and what a source says after each epoch; `rates` maps
    a pooler to points of `studies.summarize` with label `learning_rate`, for a third panel.
    """
    panels = 3 if rates else 2
    figure, axes = plt.subplots(
        1, panels, figsize=(5.2 * panels, 4.6), layout="constrained", width_ratios=[1.15, 1, 1][:panels]
    )
    draw_epochs(axes[0], runs, stated)
    names = [*baselines, *(f"{VARIANT_NAMES[run.variant]}\n{_seconds(run)} to train" for run in runs)]
    records = [*baselines.values(), *runs]
    draw_intervals(axes[1], names, [_point(record) for record in records], [COLORS[r.variant] for r in records])
    axes[1].set_xlabel(f"test accuracy, 95 % bootstrap interval (n = {records[0].n_test:,})")
    if rates:
        values = sorted({point["learning_rate"] for points in rates.values() for point in points})
        for name, points in rates.items():
            draw_line(axes[2], points, "learning_rate", STUDY_COLORS[name])
        axes[2].set_xscale("log")
        axes[2].set_xticks(values, [f"{value:g}" for value in values])
        axes[2].minorticks_off()
        axes[2].set_xlim(values[0] / 1.6, values[-1] * 5)
        ends = [(points[-1]["learning_rate"], points[-1]["accuracy"], name) for name, points in rates.items()]
        _label_ends(axes[2], [(*end, STUDY_COLORS[end[-1]]) for end in ends], gap=0.05)
        axes[2].set(xlabel="peak learning rate", ylabel="test accuracy")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=11)
    return figure


def draw_epochs(axes: Axes, runs: Sequence[RunRecord], stated: tuple[str, Sequence[float]] | None = None) -> None:
    """Each run's validation accuracy after each epoch, its best epoch ringed; `stated` as in `plot_epochs`."""
    labels = []
    for run in runs:
        color, validation = COLORS[run.variant], run.history["validation"]
        epochs, accuracy = [row["epoch"] for row in validation], [row["accuracy"] for row in validation]
        best = max(range(len(accuracy)), key=accuracy.__getitem__)
        axes.plot(epochs, accuracy, "o-", color=color, lw=2, ms=5)
        axes.plot(epochs[best], accuracy[best], "o", ms=13, mfc="none", mec=color, mew=2)
        text = f"{VARIANT_NAMES[run.variant]}\nbest {accuracy[best]:.1%}, epoch {epochs[best]:.0f}"
        labels.append((epochs[-1], accuracy[-1], text, color))
    if stated:
        epochs = range(1, len(stated[1]) + 1)
        axes.plot(epochs, stated[1], "s--", color="0.35", lw=1.4, ms=5)
        labels.append((epochs[-1], stated[1][-1], stated[0], "0.35"))
    last = max(label[0] for label in labels)
    axes.set_xlim(0.7, last + 0.5 * (last - 0.7))
    axes.margins(y=0.12)
    _label_ends(axes, labels, gap=0.12)
    axes.set(xlabel="epochs", ylabel=f"validation accuracy (n = {runs[0].n_validation:,})")
    axes.set_xticks(range(1, round(last) + 1, 1 + round(last) // 10))
    _percent(axes.yaxis)


def draw_line(axes: Axes, points: Sequence[dict[str, Any]], x: str, color: str, shift: float = 1.0) -> None:
    """Mean accuracy with its interval over label `x`, times `shift`; each seed as a small dot."""
    values = [point[x] * shift for point in points]
    axes.plot(values, [point["accuracy"] for point in points], "o-", color=color, lw=1.8, ms=7)
    for value, point in zip(values, points, strict=True):
        axes.plot([value] * 2, [point["low"], point["high"]], color=color, lw=2, alpha=0.45, solid_capstyle="butt")
        axes.plot([value] * len(point["accuracies"]), point["accuracies"], ".", color="0.25", ms=4, zorder=3)
    _percent(axes.yaxis)


def draw_intervals(axes: Axes, names: Sequence[str], points: Sequence[dict[str, Any]], colors: Sequence[str]) -> None:
    """Accuracies with their intervals as dots in rows, in the order given; seeds, if any, as small dots."""
    for row, (point, color) in enumerate(zip(points, colors, strict=True)):
        axes.plot([point["low"], point["high"]], [row, row], color=color, lw=2.5, alpha=0.6, solid_capstyle="butt")
        axes.plot(point["accuracy"], row, "o", color=color, ms=8)
        axes.plot(point["accuracies"], [row] * len(point["accuracies"]), ".", color="0.25", ms=4, zorder=3)
        axes.text(point["high"] + 0.004, row, f"{point['accuracy']:.1%}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(right=min(1.0, axes.get_xlim()[1] + 0.12 * (axes.get_xlim()[1] - axes.get_xlim()[0])))
    _percent(axes.xaxis)
    axes.grid(axis="y", visible=False)


def draw_reference(axes: Axes, value: float, text: str, color: str) -> None:
    """A dashed horizontal line at `value` with its name on it."""
    axes.axhline(value, color=color, ls="--", lw=1.2)
    axes.text(0.99, value, text, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9, color=color)


def _percent(axis: Axis) -> None:
    """Whole percents, at places that are whole percents."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Writes `labels` (x, y, text, color) right of their points, moved up where closer than `gap` of the axis."""
    step, above = gap * (axes.get_ylim()[1] - axes.get_ylim()[0]), float("-inf")
    for x, y, text, color in sorted(labels, key=lambda label: label[1]):
        above = max(y, above + step)
        axes.annotate(
            text, (x, above), xytext=(10, 0), textcoords="offset points", va="center", color=color, fontsize=9
        )


def _point(record: RunRecord) -> dict[str, Any]:
    low, high = record.accuracy_ci95
    return {"accuracy": record.metrics["accuracy"], "low": low, "high": high, "accuracies": []}


def _seconds(record: RunRecord) -> str:
    return f"{record.train_seconds:.0f} s"


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
