"""What all figures share: one colour a method, provenance in small print, accuracies with their intervals."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
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


def set_theme() -> None:
    """seaborn's theme, as all figures here have it."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)


def save_figure(figure: Figure, path: Path, provenance: str) -> Path:
    """Writes `figure` as PNG with `provenance` and today's date in small print below it; returns `path`."""
    width = int(18 * figure.get_figwidth())  # no wider than the figure
    small_print = fill(f"{provenance} · drawn {date.today()}", width)
    figure.text(0.01, -0.02, small_print, fontsize=7.5, color="0.4", va="top")
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return Path(path)


def provenance(record: RunRecord) -> str:
    """Where a record's numbers come from, in one line."""
    return (
        f"profile {record.profile} · {record.base_model} · {record.dataset}: {record.n_train:,} train / "
        f"{record.n_validation:,} validation / {record.n_test:,} test reviews · {record.device}, {record.precision}"
    )


def percent(axis) -> None:
    """Whole percents, at places that are whole percents."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def draw_intervals(axes: Axes, names: Sequence[str], points: Sequence[dict[str, Any]], colors: Sequence[str]) -> None:
    """`points` (accuracy, low, high, and accuracies by seed) as dots in rows, in the order given."""
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


def draw_confusion(axes: Axes, record: RunRecord, labels: Sequence[str]) -> None:
    """One confusion matrix: rows are true classes, columns predicted ones, as counts, coloured by shares of the row."""
    matrix = pd.DataFrame(record.confusion_matrix, labels, labels)
    share = matrix.div(matrix.sum(axis=1).clip(1), axis=0)
    sns.heatmap(share, annot=matrix, fmt=",d", vmin=0, vmax=1, cmap="Blues", cbar=False, square=True, ax=axes)
    axes.set(xlabel="predicted", ylabel="true")
