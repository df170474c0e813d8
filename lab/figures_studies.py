"""Figures of the studies: ranks, accuracy over the number of rows, the sources' own scale, the PEFT methods.

Each is one narrow column of panels, so that a phone shows its letters; the caller says what is found.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.plots import COLORS, draw_intervals, percent

METHODS = {
    "bag_of_words": "bag of words",
    "frozen_encoder": "frozen encoder",
    "head_only": "head alone",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "full_finetune": "full fine-tuning",
}
EARLIER = ("query_value", "thirty_epochs", "half_rate")  # versions of ours that a search replaced
WIDTH = 5.4


def label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Writes `labels` (x, y, text, color) right of their points, moved up where closer than `gap` of the axis."""
    step, above = gap * (axes.get_ylim()[1] - axes.get_ylim()[0]), float("-inf")
    for x, y, text, color in sorted(labels, key=lambda label: label[1]):
        above = max(y, above + step)
        axes.annotate(text, (x, above), xytext=(10, 0), textcoords="offset points", va="center", color=color, size=9)
    axes.set_ylim(top=max(axes.get_ylim()[1], above + step / 2))


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
    heights = [4, 3.8, 0.45 * len(layers) + 1.3, 0.45 * len(schemes) + 1.3]
    figure, axes = plt.subplots(4, figsize=(WIDTH, sum(heights)), height_ratios=heights, layout="constrained")
    _draw_rates(axes[0], search)
    _draw_ranks(axes[1], sorted(ranks, key=lambda point: point["r"]), parameters)
    axes[1].axhline(bag, color=COLORS["bag_of_words"], ls="--", lw=1.2)
    axes[1].text(ranks[0]["r"], bag, f"bag of words {bag:.1%}", color=COLORS["bag_of_words"], va="bottom")
    for panel, points in zip(axes[2:], (layers, schemes), strict=True):
        _draw_named(panel, [point["name"] for point in points], points, [COLORS["improved"]] * len(points))
        panel.set_xlabel("test accuracy, each at its best rate")
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(fill(title, 52), fontsize=11)
    return figure


def _draw_rates(axes: Axes, search: Sequence[dict[str, Any]]) -> None:
    """A line a rank over the rates, the best of each ringed."""
    ranks = sorted({point["r"] for point in search})
    shades = plt.get_cmap("viridis")([0.9 - 0.85 * place / max(len(ranks) - 1, 1) for place in range(len(ranks))])
    ends = []
    for rank, color in zip(ranks, shades, strict=True):
        points = sorted((p for p in search if p["r"] == rank), key=lambda p: p["learning_rate"])
        axes.plot([p["learning_rate"] for p in points], [p["accuracy"] for p in points], "o-", color=color)
        best = max(points, key=lambda p: p["accuracy"])
        axes.plot(best["learning_rate"], best["accuracy"], "o", ms=13, mfc="none", mec=color, mew=2)
        ends.append((points[-1]["accuracy"], f"r = {rank}", color))
    rates = sorted({point["learning_rate"] for point in search})
    axes.set(xscale="log", xlim=(rates[0] / 1.2, rates[-1] * 2), ylabel="validation accuracy")
    axes.set_xlabel("peak learning rate (the best of each rank is ringed)")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=30)
    axes.minorticks_off()
    percent(axes.yaxis)
    label_ends(axes, [(rates[-1], *end) for end in ends], gap=0.08)  # beside all lines, on none of them


def _draw_ranks(axes: Axes, points: Sequence[dict[str, Any]], parameters: Mapping[int, int]) -> None:
    ranks = [point["r"] for point in points]
    _draw_line(axes, ranks, points, COLORS["improved"], "o-")
    for point in points:
        axes.plot([point["r"]] * len(point["accuracies"]), point["accuracies"], ".", color="0.25", zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [f"{rank}\n{parameters[rank] / 1e6:.2g} M" for rank in ranks])
    axes.set(xlabel="rank r, and the parameters that LoRA trains in bert-base", ylabel="test accuracy")


def plot_few_rows(points: Mapping[str, Sequence[dict]], title: str, n_scored: int) -> Figure:
    """Mean accuracy with its interval over the number of training rows (log scale), one line a method.

    `points` maps a method to points of `compare.summarize`, each with its `n_train`.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 5.4), layout="constrained")
    ends = []
    for place, (method, found) in enumerate(points.items()):
        found = sorted(found, key=lambda point: point["n_train"])
        beside = 1 + 0.03 * (place - len(points) / 2)  # so that no interval hides another
        sizes = [point["n_train"] * beside for point in found]
        _draw_line(axes, sizes, found, COLORS[method], "s:" if method == "qlora" else "o-")
        ends.append((found[-1]["n_train"] * 1.05, found[-1]["accuracy"], METHODS[method], COLORS[method]))
    sizes = sorted({point["n_train"] for found in points.values() for point in found})
    axes.set(xscale="log", xlim=(sizes[0] / 1.2, sizes[-1] * 5), xlabel="training rows (log scale)")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
    axes.minorticks_off()
    axes.set_ylabel(f"test accuracy, 95 % interval (n = {n_scored:,})")
    axes.set_title(fill(title, 52), fontsize=11)
    label_ends(axes, ends, gap=0.045)
    return figure


def _draw_line(axes: Axes, places: Sequence[float], points: Sequence[dict], color: str, style: str) -> None:
    """Mean accuracies with their intervals at `places`, joined by a line."""
    means = [point["accuracy"] for point in points]
    spread = [[abs(point[side] - point["accuracy"]) for point in points] for side in ("low", "high")]
    axes.errorbar(places, means, yerr=spread, fmt=style, color=color, lw=1.8, ms=5, elinewidth=1.2, capsize=2)
    percent(axes.yaxis)


def plot_at_scale(points: Sequence[dict], titles: Mapping[tuple[str, int], str], n_scored: Mapping[str, int]) -> Figure:
    """Test accuracy with its interval of each method at the sources' own scale, a panel for each set of training rows.

    `points` are those of `at_scale.points_at_scale`; `titles` says by corpus and number of training rows what is
    found, and which panels there are; `n_scored` has the number of test rows by corpus.
    """
    panels = {key: [p for p in points if (p["corpus"], p["n_train"]) == key] for key in titles}
    heights = [0.42 * len(found) + 1.2 for found in panels.values()]
    shape = {"figsize": (WIDTH, sum(heights)), "height_ratios": heights, "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(panels), **shape)
    colors = COLORS | dict.fromkeys(EARLIER, COLORS["qlora"])
    for panel, (key, found) in zip(axes[:, 0], panels.items(), strict=True):
        kinds = ["full_finetune" if point["variant"].startswith("full_") else point["variant"] for point in found]
        _draw_named(panel, [point["method"] for point in found], found, [colors[kind] for kind in kinds])
        panel.set_title(fill(titles[key], 52), fontsize=11)
        panel.set_xlabel(f"test accuracy, 95 % interval (n = {n_scored[key[0]]:,})")
    low, high = min(point["low"] for point in points), max(point["high"] for point in points)
    plt.setp(axes, xlim=(low - 0.02, high + 0.05))
    return figure


def plot_methods(points: Sequence[dict], titles: Sequence[str], n_scored: int) -> Figure:
    """Test accuracy with its interval of each method, the best first; and accuracy over trainable parameters, with the
    Pareto front (what no method beats with as few) joined and named.

    `points` are those of `compare.summarize` by `method`; `titles` holds one finding a panel.
    """
    points = sorted(points, key=lambda point: -point["accuracy"])
    front: list[dict] = []
    for point in sorted(points, key=lambda point: (point["trainable_params"], -point["accuracy"])):
        if all(point["accuracy"] > other["accuracy"] for other in front):
            front.append(point)
    known = {name: COLORS[method] for method, name in METHODS.items()}  # the other PEFT methods have QLoRA's colour
    colors = {point["method"]: known.get(point["method"], COLORS["qlora"]) for point in points}
    heights = [0.42 * len(points) + 1.2, 4.6]
    figure, axes = plt.subplots(2, figsize=(WIDTH, sum(heights)), height_ratios=heights, layout="constrained")
    _draw_named(axes[0], [point["method"] for point in points], points, list(colors.values()))
    axes[0].set_xlabel(f"test accuracy, 95 % interval (n = {n_scored:,})")
    for point in points:
        axes[1].plot(point["trainable_params"], point["accuracy"], "o", color=colors[point["method"]])
    places = [[point[name] for point in front] for name in ("trainable_params", "accuracy")]
    axes[1].plot(*places, color="0.6", lw=1, zorder=0)
    for number, (x, y, point) in enumerate(zip(*places, front, strict=True)):  # above and below in turns
        where = {"xytext": (4, -12), "ha": "left"} if number % 2 else {"xytext": (-4, 6), "ha": "right"}
        axes[1].annotate(point["method"], (x, y), textcoords="offset points", size=9, **where)
    axes[1].set(xscale="log", xlabel="trainable parameters (log scale)", ylabel="test accuracy")
    left, right = axes[1].get_xlim()
    axes[1].set_xlim(left / 30, right * 10)  # room for the first name and the last
    percent(axes[1].yaxis)
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(fill(title, 52), fontsize=11)
    return figure


def _draw_named(axes: Axes, names: Sequence[str], points: Sequence[dict], colors: Sequence[str]) -> None:
    """Accuracies with their intervals in rows, each with its name above it, so that names take no width."""
    draw_intervals(axes, [""] * len(names), points, colors)
    for row, name in enumerate(names):
        axes.text(0.01, row - 0.32, name, transform=axes.get_yaxis_transform(), fontsize=9.5, va="center")
    axes.set_ylim(len(names) - 0.5, -0.9)
