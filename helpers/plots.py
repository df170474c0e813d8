"""What all figures share: one colour a method, provenance in small print, accuracies with their intervals."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.files import new_file
from helpers.results import RunRecord

# Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a method in every figure.
COLORS = {
    "as_written": "#E69F00",
    "improved": "#0072B2",
    "lora": "#0072B2",
    "qlora": "#56B4E9",
    "untrained": "#999999",
    "bag_of_words": "#009E73",
    "full_finetune": "#D55E00",
    "head_only": "#CC79A7",
    "frozen_encoder": "#000000",
    "imdb": "#0072B2",
    "rotten_tomatoes": "#D55E00",
}
VARIANT_NAMES = {
    "as_written": "as written",
    "improved": "improved",
    "untrained": "untrained head",
    "bag_of_words": "bag of words",
    "full_finetune": "full fine-tuning",
    "head_only": "head alone",
    "frozen_encoder": "frozen encoder",
}


def set_theme() -> None:
    """seaborn's theme, as all figures here have it."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)


def save_figure(figure: Figure, path: Path, provenance: str) -> Path:
    """Writes `figure` as PNG with `provenance` and today's date in small print below it; returns `path`."""
    figure.text(0.01, -0.02, f"{provenance} · {date.today()}", fontsize=7.5, color="0.4", va="top")
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return Path(path)


def provenance(record: RunRecord) -> str:
    """Where a record's numbers come from, in one line."""
    return (
        f"profile {record.profile} · {record.base_model} · {record.dataset}: {record.n_train:,} train / "
        f"{record.n_validation:,} validation / {record.n_test:,} test reviews · {record.device}, {record.precision}"
    )


def label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Writes `labels` (x, y, text, color) right of their points, moved up where closer than `gap` of the axis."""
    step, above = gap * (axes.get_ylim()[1] - axes.get_ylim()[0]), float("-inf")
    for x, y, text, color in sorted(labels, key=lambda label: label[1]):
        above = max(y, above + step)
        axes.annotate(text, (x, above), xytext=(10, 0), textcoords="offset points", va="center", color=color, size=9)
    axes.set_ylim(top=max(axes.get_ylim()[1], above + step / 2))


def title(name: str) -> str:
    """A corpus' name as a figure shows it."""
    return {"imdb": "IMDb", "rotten_tomatoes": "Rotten Tomatoes"}.get(name, name)


def percent(axis) -> None:
    """Whole percents, at places that are whole percents."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def as_point(record: RunRecord) -> dict[str, Any]:
    """A run as `draw_intervals` takes it."""
    low, high = record.accuracy_ci95
    return {"accuracy": record.metrics["accuracy"], "low": low, "high": high, "accuracies": []}


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
    percent(axes.xaxis)
    axes.grid(axis="y", visible=False)


def plot_accuracy(records: Sequence[RunRecord], names: Sequence[str], title: str) -> Figure:
    """Test accuracy of each record as a dot with its 95 % interval, in the order given."""
    figure, axes = plt.subplots(figsize=(8.5, 0.55 * len(records) + 1.3), layout="constrained")
    draw_intervals(axes, names, [as_point(record) for record in records], [COLORS[r.variant] for r in records])
    axes.set(title=title, xlabel=f"test accuracy with 95 % bootstrap interval (n = {records[0].n_test:,})")
    return figure


def draw_epochs(axes: Axes, records: Sequence[RunRecord], measure: str) -> None:
    """`measure` ("loss" or "accuracy") on validation rows after each epoch, and the training loss as a thin line."""
    ends = []
    for record in records:
        color, name = COLORS[record.variant], VARIANT_NAMES[record.variant]
        rows = record.history["validation"]
        epochs, values = [row["epoch"] for row in rows], [row[measure] for row in rows]
        axes.plot(epochs, values, "o-", color=color, lw=2, ms=5)
        if measure == "loss":
            train = record.history["train"]
            axes.plot([row["epoch"] for row in train], [row["loss"] for row in train], color=color, lw=1.2, alpha=0.6)
        ends.append((epochs[-1], values[-1], name, color))
    axes.set_xlim(0, 1.35 * max(end[0] for end in ends))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(y=0.1)
    axes.set(xlabel="epochs", ylabel=f"validation {measure}")
    label_ends(axes, ends, gap=0.06)


def draw_confusion(axes: Axes, record: RunRecord, labels: Sequence[str]) -> None:
    """One confusion matrix: rows are true classes, columns predicted ones, with counts and shares of the row."""
    matrix = np.array(record.confusion_matrix)
    share = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
    text = [[f"{n:,}\n{p:.0%}" for n, p in zip(*rows, strict=True)] for rows in zip(matrix, share, strict=True)]
    options = {"vmin": 0, "vmax": 1, "cbar": False, "square": True, "xticklabels": labels, "yticklabels": labels}
    sns.heatmap(share, annot=text, fmt="", cmap="Blues", ax=axes, **options)
    axes.set(xlabel="predicted", ylabel="true")
