"""Figures of the studies and of the runs over epochs: axes with intervals, put together to one figure a notebook."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.plots import COLORS, VARIANT_NAMES, label_ends
from helpers.results import RunRecord

STUDY_COLORS = {
    "as shipped": COLORS["as_written"],
    "identity": COLORS["improved"],
}


def plot_rank_study(
    search: Sequence[dict[str, Any]],
    ranks: Sequence[dict[str, Any]],
    parameters: Mapping[int, int],
    layers: Sequence[dict[str, Any]],
    schemes: Sequence[dict[str, Any]],
    bag: float,
    titles: Sequence[str],
) -> Figure:
    """Validation accuracy over the learning rate, a line a rank; and, each at its best rate, test accuracy over the
    rank, over the adapted layers at one parameter budget, and over the ways to scale.

    Points are those of `compare.summarize`: `search` with labels `r` and `learning_rate`, `ranks` with `r`, `layers`
    and `schemes` with `name`. `parameters` maps a rank to what LoRA trains in the real checkpoint, `bag` is the
    bag of words' test accuracy, and `titles` holds one finding a panel.
    """
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.2), layout="constrained")
    over_rate, over_rank, *lower = axes.flat
    values = sorted({point["r"] for point in search})
    shades = plt.get_cmap("viridis")([0.9 - 0.85 * place / max(len(values) - 1, 1) for place in range(len(values))])
    ends = []
    for value, color in zip(values, shades, strict=True):
        points = sorted((p for p in search if p["r"] == value), key=lambda p: p["learning_rate"])
        rates, means = [p["learning_rate"] for p in points], [p["accuracy"] for p in points]
        over_rate.plot(rates, means, "o-", color=color, lw=1.8, ms=5)
        best = means.index(max(means))
        over_rate.plot(rates[best], means[best], "o", ms=13, mfc="none", mec=color, mew=2)
        ends.append((rates[-1], means[-1], f"r = {value}", color))
    rates = sorted({point["learning_rate"] for point in search})
    over_rate.set_xscale("log")
    over_rate.set_xticks(rates, [f"{rate:g}" for rate in rates])
    over_rate.minorticks_off()
    over_rate.set_xlim(rates[0] / 1.2, rates[-1] * 1.7)
    _percent(over_rate.yaxis)
    label_ends(over_rate, ends, gap=0.06)
    over_rate.set(xlabel="peak learning rate (the best of each rank is ringed)", ylabel="validation accuracy")
    draw_line(over_rank, ranks, "r", COLORS["improved"])
    over_rank.set_xscale("log", base=2)
    over_rank.set_xticks(values, [str(value) for value in values])
    over_rank.set(xlabel="rank r, each at its best rate", ylabel="test accuracy")
    counts = over_rank.secondary_xaxis("top")
    counts.set_xticks(values, [_short(parameters[value]) for value in values], fontsize=8.5)
    counts.minorticks_off()
    counts.set_xlabel("parameters that LoRA trains in bert-base at this rank", fontsize=9)
    draw_reference(over_rank, bag, f"bag of words {bag:.1%}", COLORS["bag_of_words"])
    for panel, points in zip(lower, (layers, schemes), strict=True):
        draw_intervals(panel, [p["name"] for p in points], points, [COLORS["improved"]] * len(points))
        panel.set_xlabel("test accuracy, each at its best rate")
    for panel, title in zip(axes.flat, titles, strict=True):
        panel.set_title(title, fontsize=11)
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
    a pooler to points of `compare.summarize` with label `learning_rate`, for a third panel.
    """
    panels = 3 if rates else 2
    figure, axes = plt.subplots(
        1, panels, figsize=(5.2 * panels, 4.6), layout="constrained", width_ratios=[1.15, 1, 1][:panels]
    )
    draw_epochs(axes[0], runs, stated)
    names = [*baselines, *(f"{VARIANT_NAMES[run.variant]}\n{run.train_seconds:.0f} s to train" for run in runs)]
    records = [*baselines.values(), *runs]
    draw_intervals(axes[1], names, [as_point(record) for record in records], [COLORS[r.variant] for r in records])
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
        label_ends(axes[2], [(*end, STUDY_COLORS[end[-1]]) for end in ends], gap=0.05)
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
    label_ends(axes, [(last, *label[1:]) for label in labels], gap=0.12)  # beside all lines, on none of them
    axes.set(xlabel="epochs", ylabel=f"validation accuracy (n = {runs[0].n_validation:,})")
    axes.set_xticks(range(1, round(last) + 1, 1 + round(last) // 10))
    _percent(axes.yaxis)


def draw_line(axes: Axes, points: Sequence[dict[str, Any]], x: str, color: str) -> None:
    """Mean accuracy with its interval over label `x`; each seed as a small dot."""
    values = [point[x] for point in points]
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
    axes.set_xlim(right=min(1.0, axes.get_xlim()[1] + 0.17 * (axes.get_xlim()[1] - axes.get_xlim()[0])))
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


def as_point(record: RunRecord) -> dict[str, Any]:
    """A run as `draw_intervals` takes it."""
    low, high = record.accuracy_ci95
    return {"accuracy": record.metrics["accuracy"], "low": low, "high": high, "accuracies": []}


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
