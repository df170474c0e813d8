"""The figures of notebook 04: what a method holds, what it costs, and what each step of a ladder gains."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from helpers.benchmarks.budget import MemoryBudget
from helpers.benchmarks.timing import median_interval
from helpers.plots import COLORS
from helpers.results import StudyRecord

METHOD_NAMES = {
    "full_finetune": "full fine-tuning",
    "lora": "LoRA",
    "lora_query_value": "LoRA, query\nand value",
    "qlora": "QLoRA",
    "qlora_checkpointing": "QLoRA, recomputing\nactivations",
}
# What fills memory, in the order it is stacked.
PARTS = {
    "libraries": ("Python and libraries", "#BBBBBB"),
    "weights": ("weights", "#0072B2"),
    "gradients": ("gradients", "#56B4E9"),
    "optimizer": ("optimizer state", "#009E73"),
    "activations": ("activations and workspace", "#E69F00"),
}


def plot_efficiency_comparison(
    budgets: Mapping[str, MemoryBudget], steps: Sequence[Mapping], stated_mb: Mapping[str, float]
) -> Figure:
    """Trainable parameters, weight bytes and measured speed (line: range of the windows) at BERT-base's size.

    `budgets` maps a method to its budget, `stated_mb` to the megabytes of weights that bert-qlora states. `steps` are
    rows of the `steps` benchmark at one shape, one a method.
    """
    figure, (parameters, weights, speed) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    names = [METHOD_NAMES[method] for method in budgets]
    colors = [COLORS[method] for method in budgets]
    counts = [budget.trainable for budget in budgets.values()]
    parameters.barh(names, counts, color=colors)
    parameters.set_xscale("log")
    for row, count in enumerate(counts):
        parameters.text(count, row, f" {count:,}", va="center", fontsize=9)
    shares = [budget.trainable / budget.total for budget in budgets.values()]
    parameters.set(title=f"LoRA trains {min(shares):.1%} of the parameters", xlabel="trainable parameters (log scale)")
    parameters.set_xlim(right=max(counts) * 40)

    held = [sum(budget.weights.values()) / 1e6 for budget in budgets.values()]
    weights.barh(names, held, color=colors)
    for row, (method, size) in enumerate(zip(budgets, held, strict=True)):
        weights.text(size, row, f" {size:.0f} MB", va="center", fontsize=9)
        if method in stated_mb:
            weights.plot([stated_mb[method]] * 2, [row - 0.4, row + 0.4], color="black", lw=2)
    weights.set(
        title=f"4 bits: {held[0] / held[-1]:.1f} times smaller, not 8",
        xlabel="weights (MB); line: as bert-qlora states",
    )
    weights.set_xlim(right=max(held) * 1.3)

    by_method = {row["method"]: row for row in steps}
    rates = [by_method[method]["samples_per_second"] for method in budgets]
    speed.barh(names, rates, color=colors)
    tops = []
    for row, method in enumerate(budgets):
        windows = by_method[method]["windows"]
        speed.plot([min(windows), max(windows)], [row] * 2, color="0.25", lw=1)
        tops.append(max(windows))
        speed.text(tops[-1], row, f"  {rates[row]:.1f}", va="center", fontsize=9)
    shape = f"batch {steps[0]['batch_size']} x {steps[0]['tokens']} tokens"
    low, high = median_interval(by_method["lora"]["windows"], by_method["full_finetune"]["windows"])
    title = "No difference in speed seen" if low <= 1 <= high else f"LoRA is {low:.1f} to {high:.1f} times as fast"
    speed.set(title=title, xlabel=f"samples/s measured ({shape})", xlim=(0, max(tops) * 1.2))
    for axes in (parameters, weights, speed):
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    weights.set_yticklabels([])
    speed.set_yticklabels([])
    return figure


def memory_parts(row: Mapping) -> dict[str, int]:
    """Bytes of a `steps` row's peak by what holds them; what is not counted exactly is activations and workspace."""
    parts = {name: row[f"{name}_bytes"] for name in ("libraries", "weights", "gradients", "optimizer")}
    return parts | {"activations": max(0, row["peak_memory_bytes"] - sum(parts.values()))}


def plot_memory_breakdown(rows: Sequence[Mapping]) -> Figure:
    """Measured peak memory of each method, split into its parts; one panel a batch size and length, one shared axis."""
    shapes = sorted({(row["batch_size"], row["tokens"]) for row in rows})
    figure, axes = plt.subplots(
        1,
        len(shapes),
        figsize=(3.3 * len(shapes) + 1, 3.8),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, (batch, tokens) in zip(axes[0], shapes, strict=True):
        chosen = [row for row in rows if (row["batch_size"], row["tokens"]) == (batch, tokens)]
        names = [METHOD_NAMES[row["method"]] for row in chosen]
        left = np.zeros(len(chosen))
        for part, (label, color) in PARTS.items():
            sizes = np.array([memory_parts(row)[part] for row in chosen]) / 1e9
            panel.barh(names, sizes, left=left, color=color, label=label)
            left += sizes
        for position, total in enumerate(left):
            panel.text(total, position, f" {total:.2f}", va="center", fontsize=9)
        peaks = {row["method"]: row["peak_memory_bytes"] for row in chosen}
        title = f"{batch} x {tokens} tokens"
        if {"lora", "full_finetune"} <= set(peaks):  # one of them may not have fitted
            title += f":\nLoRA saves {1 - peaks['lora'] / peaks['full_finetune']:.0%}"
        panel.set(title=title, xlabel="peak memory (GB)")
        panel.margins(x=0.15)
        panel.grid(axis="y", visible=False)
    axes[0][0].invert_yaxis()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(PARTS), frameon=False, fontsize=9)
    return figure


def plot_speed_ladder(record: StudyRecord, titles: Mapping[str, str]) -> Figure:
    """Samples a second at each step of the ladders named in `titles`, with the ratio to the recipe as written.

    A step whose windows overlap with those of the step before is grey: neither gain nor loss is seen.
    """
    figure, axes = plt.subplots(len(titles), 1, figsize=(9, 2.5 * len(titles)), layout="constrained", squeeze=False)
    for panel, (name, title) in zip(axes[:, 0], titles.items(), strict=True):
        rows = [row for row in record.rows if row["ladder"] == name]
        rates = [row["samples_per_second"] for row in rows]
        steps = ["#D0D0D0" if row["within_scatter"] else "#8FBCD9" for row in rows[1:-1]]
        colors = [COLORS["as_written"], *steps, COLORS["improved"]]
        panel.barh(
            [row["change"] if i == 0 else f"+ {row['change']}" for i, row in enumerate(rows)], rates, color=colors
        )
        for position, row in enumerate(rows):
            low, high = min(row["windows"]), max(row["windows"])
            panel.plot([low, high], [position] * 2, color="0.25", lw=1)
            text = f"  {row['ratio']:.1f} x   ({row['samples_per_second']:.3g}/s, {row['matmul_share']:.0%} of peak)"
            text += "  within scatter" if row["within_scatter"] else ""
            panel.text(max(high, row["samples_per_second"]), position, text, va="center", fontsize=8.5)
        panel.invert_yaxis()
        panel.margins(x=0.8)
        panel.grid(axis="y", visible=False)
        low, high = median_interval(rows[-1]["windows"], rows[0]["windows"])
        panel.set(title=f"{title}: {low:.1f} to {high:.1f} times as fast as written", xlabel="")
    axes[-1, 0].set_xlabel("training samples a second (median; line: range of the windows)")
    return figure
