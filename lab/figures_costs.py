"""Figures of notebook 04, what a method holds and costs and what each step of a ladder gains; and that of the claims.

Each is one column of panels; the caller says what is found.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from helpers.plots import COLORS
from helpers.results import StudyRecord
from lab.budget import MemoryBudget
from lab.claims import CLAIMS, Claim
from lab.figures_studies import METHODS, WIDTH
from lab.verdict import KINDS, Bar, Verdict

METHOD_NAMES = METHODS | {
    "lora_query_value": "LoRA, query and value",
    "lora_fp32_base": "LoRA as peft attaches it",
    "qlora_checkpointing": "QLoRA, checkpointing",
    "qlora_as_written": "bert-qlora as written",
}
# What fills memory, in the order it is stacked.
PARTS = {
    "libraries": ("Python and libraries", "#BBBBBB"),
    "weights": ("weights", "#0072B2"),
    "gradients": ("gradients", "#56B4E9"),
    "optimizer": ("optimizer state", "#009E73"),
    "activations": ("activations and workspace", "#E69F00"),
}
VERDICT_COLORS = dict(zip(KINDS, ("#009E73", "#E69F00", "#D55E00", "#666666"), strict=True))
# What a claim's number is, as the figure names and writes it.
AXES = {
    "share": ("memory saved, or share of parameters and bytes", lambda share: f"{100 * share:.2g}%"),
    "times": ("times as fast as full fine-tuning", "{:.2f}".format),
    "accuracy": ("accuracy", "{:.1%}".format),
    "difference": ("difference of two accuracies, in points", lambda points: f"{100 * points:+.1f}"),
}


def plot_efficiency_comparison(
    budgets: Mapping[str, MemoryBudget],
    steps: Sequence[Mapping[str, Any]],
    stated_mb: Mapping[str, float],
    titles: Sequence[str],
) -> Figure:
    """Trainable parameters, weight bytes and measured speed (line: range of the windows) of each method.

    `budgets` maps a method to its budget, `stated_mb` to the megabytes of weights that bert-qlora states (a line).
    `steps` are rows of the `steps` benchmark at one shape, one a method. `titles` holds one finding a panel.
    """
    figure, panels = plt.subplots(3, figsize=(WIDTH, 0.45 * 3 * (len(budgets) + 2)), layout="constrained")
    names, colors = [METHOD_NAMES[method] for method in budgets], [COLORS[method] for method in budgets]
    parameters, weights, speed = panels
    counts = [budget.trainable for budget in budgets.values()]
    parameters.barh(names, [count / 1e6 for count in counts], color=colors)
    parameters.set_xlabel("trainable parameters (millions)")
    held = [sum(budget.weights.values()) / 1e6 for budget in budgets.values()]
    weights.barh(names, held, color=colors)
    stated = [(mb, place) for place, method in enumerate(budgets) if (mb := stated_mb.get(method))]
    weights.vlines(*zip(*((mb, place - 0.4, place + 0.4) for mb, place in stated), strict=True), color="black", lw=2)
    weights.set_xlabel("weights (MB); line: as bert-qlora states")
    rows = [next(row for row in steps if row["method"] == method) for method in budgets]
    _draw_speeds(speed, names, rows, colors)
    speed.set_xlabel("samples/s; line: range of the windows")
    labels = [f"{count / 1e6:.1f} M" for count in counts], [f"{size:.0f} MB" for size in held]
    speeds = [f"{row['samples_per_second']:.3g}/s" for row in rows]
    for panel, title, words in zip(panels, titles, (*labels, speeds), strict=True):
        panel.set_title(fill(title, 52), fontsize=11)
        _label_right(panel, words, names)
    return figure


def _draw_speeds(axes: Axes, names: Sequence[str], rows: Sequence[Mapping[str, Any]], colors: Sequence[str]) -> None:
    axes.barh(names, [row["samples_per_second"] for row in rows], color=colors)
    for place, row in enumerate(rows):
        axes.plot([min(row["windows"]), max(row["windows"])], [place] * 2, color="0.25", lw=1)


def _label_right(axes: Axes, labels: Sequence[str], names: Sequence[str]) -> None:
    """Writes a label for each row right of the panel, where nothing is drawn, and turns the first row up."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(names)), labels=labels)
    for part in (axes, beside):
        part.tick_params(axis="y", labelsize=9.5, length=0)
    axes.grid(axis="y", visible=False)


def plot_memory_breakdown(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Measured peak memory of each method, split into its parts; one panel a batch size and length, one shared axis.

    What is not counted exactly is activations and workspace. `title` says what is found.
    """
    shapes = sorted({(row["batch_size"], row["tokens"]) for row in rows})
    figure, axes = plt.subplots(
        len(shapes), figsize=(WIDTH, 1.9 * len(shapes) + 0.8), sharex=True, squeeze=False, layout="constrained"
    )
    for panel, shape in zip(axes[:, 0], shapes, strict=True):
        chosen = [row for row in rows if (row["batch_size"], row["tokens"]) == shape]
        names = [METHOD_NAMES[row["method"]] for row in chosen]
        known = {part: np.array([row[f"{part}_bytes"] for row in chosen]) for part in list(PARTS)[:-1]}
        peaks = np.array([row["peak_memory_bytes"] for row in chosen])
        known["activations"] = np.maximum(0, peaks - sum(known.values()))
        left = np.zeros(len(chosen))
        for part, (label, color) in PARTS.items():
            panel.barh(names, known[part] / 1e9, left=left / 1e9, color=color, label=label)
            left += known[part]
        _label_right(panel, [f"{size / 1e9:.2f} GB" for size in left], names)
        panel.set_title("batches of {} x {} tokens".format(*shape), fontsize=10)
    axes[-1, 0].set_xlabel("peak memory (GB)")
    legend = {"loc": "outside upper center", "ncols": 2, "frameon": False, "fontsize": 9.5}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title=fill(title, 52), title_fontsize=11, **legend)
    return figure


def plot_speed_ladder(record: StudyRecord, titles: Mapping[str, str]) -> Figure:
    """Samples a second at each step of the ladders named in `titles`, with the ratio to the recipe as written.

    A step whose windows overlap with those of the step before is grey: neither gain nor loss is seen.
    """
    ladders = {name: [row for row in record.rows if row["ladder"] == name] for name in titles}
    heights = [len(rows) + 2 for rows in ladders.values()]
    figure, axes = plt.subplots(
        len(ladders), figsize=(WIDTH, 4.2 * len(ladders)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, (name, rows) in zip(axes[:, 0], ladders.items(), strict=True):
        changes = [row["change"].replace("improved()", "our version's") for row in rows]
        names = [fill(f"{'+ ' * (place > 0)}{change}", 25) for place, change in enumerate(changes)]
        steps = ["#D0D0D0" if row["within_scatter"] else "#8FBCD9" for row in rows[1:-1]]
        _draw_speeds(panel, names, rows, [COLORS["as_written"], *steps, COLORS["improved"]])
        labels = [f"{row['ratio']:.1f} x" for row in rows]
        _label_right(panel, labels, names)
        panel.set_title(fill(titles[name], 52), fontsize=11)
    axes[-1, 0].set_xlabel("samples/s (line: range; grey: within the scatter)")
    return figure


def plot_claims(verdicts: Mapping[str, Verdict], title: str) -> Figure:
    """What was stated against what was measured, a panel for each kind of number, and the claims that have none.

    A grey band is what a claim states (towards an edge: "more", or "less"), a coloured bar what was measured: with a
    dot an interval, without one a range. Names and numbers stand above their bars, so that a phone shows them.
    """
    bars = {axis: [(c, bar) for c in CLAIMS for bar in verdicts[c.id].bars if bar.axis == axis] for axis in AXES}
    bars = {axis: found for axis, found in bars.items() if found}
    others = [claim for claim in CLAIMS if not verdicts[claim.id].bars]
    heights = [*(len(found) + 0.3 for found in bars.values()), 0.6 * len(others)]
    size = WIDTH, 0.26 * (sum(heights) + 2 * len(heights)) + 1.2
    figure, panels = plt.subplots(len(heights), figsize=size, height_ratios=heights, layout="constrained")
    for panel, (axis, found) in zip(panels, bars.items(), strict=False):
        _draw_bars(panel, found, verdicts)
        panel.set_title(AXES[axis][0], fontsize=10.5, loc="left")
        panel.tick_params(labelsize=9)
        if axis != "times":
            symbol = "" if axis == "difference" else "%"
            panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=symbol))
    panels[-1].set_title("claims without such a number", fontsize=10.5, loc="left")
    panels[-1].set(ylim=(len(others) - 0.4, -0.6), xlim=(0, 1))
    panels[-1].axis("off")
    for row, claim in enumerate(others):
        kind = verdicts[claim.id].kind
        panels[-1].plot(0.03, row, "s", color=VERDICT_COLORS[kind], ms=8)
        panels[-1].text(0.07, row, claim.label, fontsize=9, va="center")
    names = [Patch(color="0.85", label="what is stated")]
    names += [
        Patch(color=color, label=kind.replace("only when", "under a condition"))
        for kind, color in VERDICT_COLORS.items()
    ]
    place = {"loc": "outside upper center", "ncols": 2, "frameon": False, "fontsize": 9}
    figure.legend(handles=names, title=fill(title, 56), title_fontsize=11, **place)
    return figure


def _draw_bars(axes: Axes, bars: Sequence[tuple[Claim, Bar]], verdicts: Mapping[str, Verdict]) -> None:
    finite = [end for _, bar in bars for end in (bar.low, bar.high, *bar.stated) if isfinite(end)]
    room = 0.06 * (max(finite) - min(finite))
    left, right = min(finite) - room, max(finite) + room
    for row, (claim, bar) in enumerate(bars):
        low, high = max(bar.stated[0], left), min(bar.stated[1], right)
        width = max(high - low, room / 5)  # or a single number would be no bar
        axes.barh(row, width, left=(low + high - width) / 2, height=0.42, color="0.85", zorder=0)
        color = VERDICT_COLORS[verdicts[claim.id].kind]
        axes.plot([bar.low, bar.high], [row, row], color=color, lw=5, solid_capstyle="butt")
        if bar.value is not None:
            axes.plot(bar.value, row, "o", color=color, ms=6)
        above = {"y": row - 0.45, "transform": axes.get_yaxis_transform(), "fontsize": 8.5, "va": "center"}
        axes.text(x=0.01, s=": ".join(filter(None, (claim.label, bar.label))), **above)
        ends = [bar.low, bar.high] if bar.value is None else [bar.value]
        measured = " to ".join(AXES[bar.axis][1](end) for end in ends)
        axes.text(x=0.99, s=measured, ha="right", color=color, weight="bold", **above)
    axes.set(yticks=[], ylim=(len(bars) - 0.6, -0.8), xlim=(left, right))
