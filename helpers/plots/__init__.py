"""Every figure of the series: functions take arrays or records, return a Figure, and `save_figure` signs it."""

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.base.writing import new_file
from helpers.recipe import EARLIER, LOWER_RATES
from helpers.results import RunRecord

# Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a method in every figure.
COLORS = {
    "as_written": "#E69F00",
    "improved": "#0072B2",
    **dict.fromkeys(EARLIER, "#56B4E9"),
    "untrained": "#999999",
    "bag_of_words": "#009E73",
    **dict.fromkeys(("full_finetune", *LOWER_RATES), "#D55E00"),
    "head_only": "#CC79A7",
    "frozen_encoder": "#000000",
    "lora": "#0072B2",
    "qlora": "#56B4E9",
    "train": "#56B4E9",
    "validation": "#0072B2",
    "imdb": "#0072B2",
    "rotten_tomatoes": "#D55E00",
}
VARIANT_NAMES = {
    "as_written": "as written",
    "improved": "improved",
    "query_value": "improved, query and value",
    "thirty_epochs": "improved, thirty epochs",
    "half_rate": "improved, half the rate",
    "untrained": "untrained head",
    "bag_of_words": "bag of words",
    "full_finetune": "full fine-tuning",
    "full_half_rate": "full fine-tuning, half the rate",
    "full_quarter_rate": "full fine-tuning, a quarter of the rate",
    "head_only": "head alone",
    "frozen_encoder": "frozen encoder",
}

sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)


def describe(figure: Figure) -> str:
    """A text alternative of `figure`: its titles, and for each panel what is drawn over what."""
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        drawn = " over ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        parts.append(": ".join(filter(None, (axes.get_title(), drawn))))
    return ". ".join(" ".join(part.split()) for part in parts if part)


def _describe_shown_figures() -> None:
    """Has a notebook store `describe(figure)` beside every figure that it shows, for those who cannot see it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return
    plt.switch_backend(matplotlib.get_backend())  # which sets up how figures are drawn, else at the first of them
    formatter = shell.display_formatter.formatters["image/png"]
    plain = formatter.type_printers.get(Figure)
    if plain is None:  # figures are widgets, windows or files here
        return

    def draw(figure: Figure):
        drawn = plain(figure)
        image, size = drawn if isinstance(drawn, tuple) else (drawn, {})
        return image, {**size, "alt": describe(figure)}

    formatter.for_type(Figure, draw)


_describe_shown_figures()


def save_figure(figure: Figure, path: Path, provenance: str) -> Path:
    """Writes `figure` as PNG with `provenance` and today's date in small print below it; returns `path`.

    Whole or not at all, as `writing.new_file` does.
    """
    path = Path(path)
    figure.text(0.01, -0.02, f"{provenance} · {date.today()}", fontsize=7.5, color="0.4", va="top")
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    return path


def provenance(record: RunRecord) -> str:
    """Where a record's numbers come from, in one line."""
    return (
        f"profile {record.profile} · {record.base_model} · {record.dataset}: {record.n_train:,} train / "
        f"{record.n_validation:,} validation / {record.n_test:,} test reviews · {record.device}, {record.precision}"
    )


def label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Writes `labels` (x, y, text, color) right of their points, moved up where closer than `gap` of the axis.

    The axis grows where one would stand above it.
    """
    step, above = gap * (axes.get_ylim()[1] - axes.get_ylim()[0]), float("-inf")
    for x, y, text, color in sorted(labels, key=lambda label: label[1]):
        above = max(y, above + step)
        axes.annotate(
            text, (x, above), xytext=(10, 0), textcoords="offset points", va="center", color=color, fontsize=9
        )
    axes.set_ylim(top=max(axes.get_ylim()[1], above + step / 2))


def title(name: str) -> str:
    """A corpus' name as a figure shows it."""
    return {"imdb": "IMDb", "rotten_tomatoes": "Rotten Tomatoes"}.get(name, name)
