"""The figures of notebook 08: what was stated against what was measured, and what more training rows are worth."""

from collections.abc import Mapping, Sequence
from math import isfinite

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from helpers.claims.evidence import CONFIRMED, ONLY_WHEN, REFUTED, UNDECIDED, Bar, Claim, Verdict
from helpers.claims.verdicts import CLAIMS
from helpers.plots import COLORS, label_ends
from helpers.plots.studies import draw_intervals

VERDICT_COLORS = {CONFIRMED: "#009E73", ONLY_WHEN: "#E69F00", REFUTED: "#D55E00", UNDECIDED: "#999999"}
METHODS = {
    "bag_of_words": "bag of words",
    "frozen_encoder": "frozen encoder",
    "head_only": "head alone",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "full_finetune": "full fine-tuning",
}


AXES = {  # of the claims that state a number
    "accuracy": "accuracy",
    "difference": "difference of accuracies (points)",
    "times": "times as fast as full fine-tuning",
    "share": "share",
}


def plot_claims(verdicts: dict[str, Verdict]) -> Figure:
    """What was stated against what was measured, a panel for each kind of number; the other claims stand below.

    A grey band is what a claim states (towards an edge: "more", or "less"), a coloured bar what was measured: with a
    dot an interval, without one a range.
    """
    bars = {axis: [(c, bar) for c in CLAIMS for bar in verdicts[c.id].bars if bar.axis == axis] for axis in AXES}
    bars = {axis: found for axis, found in bars.items() if found}
    columns = [[axis for axis in side if axis in bars] for side in (("accuracy", "times"), ("difference", "share"))]
    height = max(sum(len(bars[axis]) + 3 for axis in column) for column in columns)
    figure = plt.figure(figsize=(14, 0.3 * height + 1.6), layout="constrained")
    for place, column in zip(figure.subfigures(1, 2), columns, strict=True):
        if column:
            panels = place.subplots(len(column), squeeze=False, height_ratios=[len(bars[axis]) + 1 for axis in column])
            for panel, axis in zip(panels[:, 0], column, strict=True):
                _draw_bars(panel, axis, bars[axis], verdicts)
    kinds = [verdicts[claim.id].kind for claim in CLAIMS]
    counts = ", ".join(f"{kinds.count(kind)} {kind.removesuffix(' when')}" for kind in VERDICT_COLORS if kind in kinds)
    figure.suptitle(f"{len(CLAIMS)} claims: {counts}", fontsize=13)
    without = [c.id for c in CLAIMS if not verdicts[c.id].bars]
    names = [Patch(color="0.85", label="stated")]
    names += [Patch(color=color, label=kind.removesuffix(" when")) for kind, color in VERDICT_COLORS.items()]
    of_bars = {"95 % interval": {"marker": "o", "ms": 6}, "range": {}}
    names += [Line2D([], [], color="0.4", lw=5, label=label, **style) for label, style in of_bars.items()]
    title = f"not drawn: {', '.join(without)}" if without else None
    figure.legend(handles=names, loc="outside lower right", ncols=len(names), frameon=False, fontsize=9, title=title)
    return figure


def _draw_bars(axes: Axes, axis: str, bars: list[tuple[Claim, Bar]], verdicts: dict[str, Verdict]) -> None:
    finite = [end for _, bar in bars for end in (bar.low, bar.high, *bar.stated) if isfinite(end)]
    room = 0.06 * (max(finite) - min(finite))
    left, right = min(finite) - room, max(finite) + room
    for row, (claim, bar) in enumerate(bars):
        low, high = max(bar.stated[0], left), min(bar.stated[1], right)
        width = max(high - low, room / 5)  # or a single number would be no bar
        axes.barh(row, width, left=(low + high - width) / 2, height=0.8, color="0.85", zorder=0)
        color = VERDICT_COLORS[verdicts[claim.id].kind]
        axes.plot([bar.low, bar.high], [row, row], color=color, lw=5, solid_capstyle="butt")
        if bar.value is not None:
            axes.plot(bar.value, row, "o", color=color, ms=6)
    names = [f"{claim.id}  {bar.label}".rstrip() for claim, bar in bars]
    axes.set(yticks=range(len(bars)), yticklabels=names, ylim=(len(bars) - 0.4, -0.6), xlim=(left, right))
    axes.set_xlabel(AXES[axis])
    if axis != "times":
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol="" if axis == "difference" else "%"))
    axes.grid(axis="y", visible=False)


def plot_few_rows(points: Mapping[str, Sequence[dict]], title: str, n_scored: int) -> Figure:
    """Mean accuracy with its interval against the number of training rows (log scale), one line a method.

    `points` maps a method to points of `compare.summarize`, each with its `n_train`.
    """
    figure, axes = plt.subplots(figsize=(9.5, 5.2), layout="constrained")
    ends = []
    for offset, (method, found) in enumerate(points.items()):
        found = sorted(found, key=lambda point: point["n_train"])
        shifted = [point["n_train"] * (1 + 0.025 * (offset - len(points) / 2)) for point in found]
        accuracy = [point["accuracy"] for point in found]
        spread = [[abs(point[side] - point["accuracy"]) for point in found] for side in ("low", "high")]
        style = {"fmt": "o-" if method != "qlora" else "s:", "color": COLORS[method], "lw": 1.8, "ms": 5}
        axes.errorbar(shifted, accuracy, yerr=spread, elinewidth=1.2, capsize=2, **style)
        ends.append((found[-1]["n_train"] * 1.05, accuracy[-1], METHODS[method], COLORS[method]))
    sizes = sorted({point["n_train"] for found in points.values() for point in found})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlim(right=max(sizes) * 2.4)
    axes.set(title=title, xlabel="training rows (log scale)")
    axes.set_ylabel(f"test accuracy, 95 % interval over seeds and rows (n = {n_scored:,})")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    label_ends(axes, ends, gap=0.04)
    return figure


def plot_at_scale(points: Sequence[dict], titles: Mapping[tuple[str, int], str], n_scored: Mapping[str, int]) -> Figure:
    """Test accuracy with its interval of each method at the sources' own scale, a panel for each set of training rows.

    `points` are those of `scale.points_at_scale`; `titles` says by corpus and number of training rows what is seen,
    and which panels there are; `n_scored` has the number of test rows by corpus.
    """
    panels = {key: [p for p in points if (p["corpus"], p["n_train"]) == key] for key in titles}
    figure, axes = plt.subplots(
        len(panels),
        figsize=(9.5, 0.34 * len(points) + 1.3 * len(panels)),
        height_ratios=[len(found) + 1 for found in panels.values()],
        layout="constrained",
        squeeze=False,
    )
    for panel, (key, found) in zip(axes[:, 0], panels.items(), strict=True):
        names = [point["method"] for point in found]
        draw_intervals(panel, names, found, [COLORS[point["variant"]] for point in found])
        panel.set_title(titles[key], fontsize=11)
        panel.set_xlabel(f"test accuracy, 95 % interval (n = {n_scored[key[0]]:,})")
    limits = [panel.get_xlim() for panel in axes[:, 0]]
    plt.setp(axes, xlim=(min(low for low, _ in limits), max(high for _, high in limits)))
    return figure
