"""Figures of the data and of single runs: lengths, curves, confusion, accuracy."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from helpers.plots import COLORS, VARIANT_NAMES, label_ends, title
from helpers.plots.studies import as_point, draw_intervals
from helpers.results import RunRecord


def plot_dataset_stats(lengths: Mapping[str, np.ndarray], counts: Mapping[str, Sequence[int]], limits=(128, 256, 512)):
    """Label balance, length distribution and what a token limit keeps, for each dataset.

    `lengths` maps a dataset to tokens per text, shape (n,); `counts` to its (negative, positive) row counts.
    """
    figure, (balance, histogram, kept) = plt.subplots(
        1, 3, figsize=(13, 3.8), width_ratios=(0.8, 1.2, 1.2), layout="constrained"
    )
    for row, (name, (negative, positive)) in enumerate(counts.items()):
        color = COLORS[name]
        for column, (label, count) in enumerate((("negative", negative), ("positive", positive))):
            position = row * 2.5 + column
            balance.barh(position, count, color=color, alpha=1 if column else 0.55)
            balance.text(count, position, f" {count:,}", va="center", fontsize=9)
            balance.text(-200, position, f"{title(name)}\n{label}", va="center", ha="right", fontsize=9)
    balance.set(title="Labels are balanced", xlabel="texts", yticks=[], xlim=(0, 1.25 * max(map(max, counts.values()))))
    balance.xaxis.set_major_locator(MaxNLocator(3))
    balance.invert_yaxis()
    balance.grid(axis="y", visible=False)

    bins = np.geomspace(4, max(values.max() for values in lengths.values()), 50)
    for name, values in lengths.items():
        weights = np.full(len(values), 1 / len(values))
        histogram.hist(values, bins=bins, weights=weights, color=COLORS[name], alpha=0.75)
        peak = np.histogram(values, bins=bins, weights=weights)
        top = peak[0].argmax()
        histogram.annotate(
            f"{title(name)}\nmedian {np.median(values):.0f}",
            (bins[top + 1], peak[0][top]),
            xytext=(8, -14),
            textcoords="offset points",
            color=COLORS[name],
            fontsize=9,
        )
    histogram.set_xscale("log")
    histogram.set_xticks([10, 32, 128, 512, 2048], ["10", "32", "128", "512", "2,048"])
    histogram.minorticks_off()
    shorter, longer = sorted(lengths, key=lambda name: np.median(lengths[name]))
    ratio = np.median(lengths[longer]) / np.median(lengths[shorter])
    histogram.set(
        title=f"{title(longer)} texts are {ratio:.0f} times as long (median)",
        xlabel="tokens per text",
        ylabel="share of texts",
    )
    histogram.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    def share_kept(values: np.ndarray, limit: float) -> float:
        return np.minimum(values, limit).sum() / values.sum()

    grid = np.geomspace(8, 2048, 200)
    for name, values in lengths.items():
        curve = [share_kept(values, limit) for limit in grid]
        kept.plot(grid, curve, color=COLORS[name], lw=2)
        half = np.interp(0.5, curve, grid)
        kept.text(1.15 * half, 0.5, title(name), color=COLORS[name], fontsize=9)
        for limit in limits:
            share = share_kept(values, limit)
            kept.plot(limit, share, "o", color=COLORS[name])
            if share < 0.99:
                kept.annotate(f"{share:.0%}", (limit, share), xytext=(7, -9), textcoords="offset points", fontsize=9)
    share = share_kept(lengths[longer], limits[0])
    kept.set_xscale("log")
    kept.set_xticks([8, 32, *limits, 2048], ["8", "32", *map(str, limits), "2,048"])
    kept.minorticks_off()
    kept.set(
        title=f"{limits[0]} tokens keep {share:.0%} of {title(longer)}'s text",
        xlabel="token limit",
        ylabel="share of all tokens kept",
    )
    kept.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def plot_training_curves(records: Sequence[RunRecord]) -> Figure:
    """Training and validation loss, and validation accuracy, over epochs; one colour a record's variant.

    A dotted line marks the loss of a model that guesses between two classes.
    """
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    best, ends = [], {"loss": [], "accuracy": []}
    for record in records:
        color, name = COLORS[record.variant], VARIANT_NAMES[record.variant]
        train, validation = record.history["train"], record.history["validation"]
        points = [row["epoch"] for row in validation]
        loss.plot([r["epoch"] for r in train], [r["loss"] for r in train], color=color, lw=1.2, alpha=0.6)
        loss.plot(points, [row["loss"] for row in validation], "o-", color=color, lw=2)
        accuracy.plot(points, [row["accuracy"] for row in validation], "o-", color=color, lw=2)
        best.append(f"{name} {max(row['accuracy'] for row in validation):.1%}")
        for measure, found in ends.items():
            found.append((points[-1], validation[-1][measure], name, color))
    epochs = max(row["epoch"] for record in records for row in record.history["validation"])
    loss.plot([0, epochs], [np.log(2)] * 2, color="0.5", ls=":", lw=1.2)
    loss.set(title="Loss: thin is training, with dots validation", ylabel="cross-entropy")
    accuracy.set(title=f"Best epoch: {', '.join(best)}", ylabel="validation accuracy")
    for axes in (loss, accuracy):
        axes.set(xlabel="epochs", xlim=(0, 1.3 * epochs))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(y=0.1)
    for axes, found in zip((loss, accuracy), ends.values(), strict=True):
        label_ends(axes, found, gap=0.06)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def plot_confusion_matrices(records: Sequence[RunRecord], labels: Sequence[str]) -> Figure:
    """One confusion matrix a record: rows are true classes, columns predicted ones."""
    figure, axes = plt.subplots(1, len(records), figsize=(4.4 * len(records), 3.9), layout="constrained", squeeze=False)
    for panel, record in zip(axes[0], records, strict=True):
        _confusion(panel, record, labels)
        panel.set(title=f"{VARIANT_NAMES[record.variant]}: {record.score}", xlabel="predicted", ylabel="true")
    return figure


def plot_class_confusion(record: RunRecord, labels: Sequence[str]) -> Figure:
    """One run's confusion matrix for any number of classes; the title names the confusion that is most frequent."""
    size = max(4.4, 1.0 * len(labels))
    figure, axes = plt.subplots(figsize=(size + 1, size), layout="constrained")
    _confusion(axes, record, labels)
    matrix = np.array(record.confusion_matrix)
    wrong = matrix - np.diag(np.diag(matrix))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    mistake = "No mistakes"
    if wrong.any():
        share = f"{wrong[true, predicted]:,} of {matrix[true].sum():,}"
        mistake = f"Most frequent mistake: {share}\n{labels[true]!r} taken for {labels[predicted]!r}"
    title = f"{mistake}\naccuracy {record.score}, n = {record.n_test:,}"
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.tick_params(axis="y", rotation=0)
    return figure


def _confusion(axes, record: RunRecord, labels: Sequence[str]) -> None:
    matrix = np.array(record.confusion_matrix)
    share = matrix / matrix.sum(axis=1, keepdims=True)
    text = [[f"{n:,}\n{p:.0%}" for n, p in zip(*rows, strict=True)] for rows in zip(matrix, share, strict=True)]
    options = {"vmin": 0, "vmax": 1, "cbar": False, "square": True, "xticklabels": labels, "yticklabels": labels}
    sns.heatmap(share, annot=text, fmt="", cmap="Blues", ax=axes, **options)


def plot_accuracy(records: Sequence[RunRecord], names: Sequence[str], title: str) -> Figure:
    """Test accuracy of each record as a dot with its 95 % interval, in the order given."""
    figure, axes = plt.subplots(figsize=(8.5, 0.55 * len(records) + 1.3), layout="constrained")
    points, colors = [as_point(record) for record in records], [COLORS[record.variant] for record in records]
    draw_intervals(axes, names, points, colors)
    axes.set(title=title, xlabel=f"test accuracy with 95 % bootstrap interval (n = {records[0].n_test:,})")
    return figure
