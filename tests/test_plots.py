import os
import subprocess
import sys
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread

from helpers import plots
from helpers.base.paths import ROOT
from helpers.plots import runs
from helpers.recipe import EARLIER, LOWER_RATES
from helpers.results import RunRecord

matplotlib.use("Agg")


@pytest.fixture
def records() -> list[RunRecord]:
    history = {
        "train": [{"step": s, "epoch": s / 10, "loss": 1 / s} for s in range(1, 21)],
        "validation": [
            {"step": 10, "epoch": 1, "loss": 0.5, "accuracy": 0.7},
            {"step": 20, "epoch": 2, "loss": 0.6, "accuracy": 0.65},
        ],
    }
    record = RunRecord(
        recipe="r", variant="as_written", profile="quick", base_model="minilm-l6-bert", dataset="imdb (embedded)",
        n_train=2000, n_validation=500, n_test=1000, max_length=128, seed=42,
        device="cpu (2 threads)", precision="bf16",
        trainable_params=3, total_params=30, weights_bytes=120, metrics={"accuracy": 0.8},
        accuracy_ci95=[0.77, 0.83], confusion_matrix=[[400, 100], [100, 400]], correct="1" * 800 + "0" * 200,
        history=history,
    )  # fmt: skip
    return [record, replace(record, variant="improved")]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_a_saved_figure_is_an_image_that_says_where_it_comes_from(records, tmp_path):
    figure = runs.plot_confusion_matrices(records, ["NEGATIVE", "POSITIVE"])
    path = plots.save_figure(figure, tmp_path / "new" / "figure.png", plots.provenance(records[0]))
    assert imread(path).shape[0] > 300
    text = figure.texts[-1].get_text()
    for part in ("quick", "minilm-l6-bert", "imdb", "2,000 train", "1,000 test", "cpu (2 threads)", "bf16", "20"):
        assert part in text


def test_confusion_matrices_show_counts_and_shares(records):
    figure = runs.plot_confusion_matrices(records, ["NEGATIVE", "POSITIVE"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["400\n80%", "100\n20%", "100\n20%", "400\n80%"]
    assert figure.axes[1].get_title() == "improved: 80.0% [77.0%, 83.0%]"


def test_training_curves_name_the_best_epoch_and_show_a_coin_toss(records):
    loss, accuracy = runs.plot_training_curves(records).axes
    assert len(loss.lines) == 5 and loss.lines[-1].get_ydata()[0] == pytest.approx(np.log(2))
    assert accuracy.get_title() == "Best epoch: as written 70.0%, improved 70.0%"
    assert {text.get_text() for text in accuracy.texts} == {"as written", "improved"}
    assert list(accuracy.lines[0].get_ydata()) == [0.7, 0.65]


def test_labels_that_are_close_stand_above_one_another_and_inside_the_axis():
    axes = plt.figure().add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plots.label_ends(axes, [(0.5, 0.97, "higher", "k"), (0.5, 0.95, "lower", "k"), (0.5, 0.2, "far", "k")], gap=0.1)
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert heights == pytest.approx({"far": 0.2, "lower": 0.95, "higher": 1.05}) and axes.get_ylim()[1] > 1.05


def test_accuracy_shows_the_intervals(records):
    axes = runs.plot_accuracy(records, ["one", "two"], "title").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.77, 0.83]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]


def test_dataset_stats_titles_state_what_was_counted():
    lengths = {"imdb": np.array([64, 256]), "rotten_tomatoes": np.array([8, 16])}
    figure = runs.plot_dataset_stats(lengths, {"imdb": (1, 1), "rotten_tomatoes": (1, 1)})
    assert figure.axes[2].get_title() == "128 tokens keep 60% of IMDb's text"


def test_one_method_one_colour():
    same = dict.fromkeys(EARLIER, "improved before") | dict.fromkeys(LOWER_RATES, "full_finetune")
    methods = {(same.get(name, name), plots.COLORS[name]) for name in plots.VARIANT_NAMES}
    names, colors = zip(*methods, strict=True)
    assert len(methods) == len(set(names)) == len(set(colors))


def test_the_confusion_of_many_classes_names_the_most_frequent_mistake(record):
    record = replace(record, confusion_matrix=[[5, 0, 1], [2, 3, 4], [0, 3, 6]])
    figure = runs.plot_class_confusion(record, ["a", "b", "c"])
    assert figure.axes[0].get_title().startswith("Most frequent mistake: 4 of 9\n'b' taken for 'c'\naccuracy 75.0%")
    record = replace(record, confusion_matrix=[[5, 0], [0, 3]])
    assert runs.plot_class_confusion(record, ["a", "b"]).axes[0].get_title().startswith("No mistakes\n")


def test_a_kernel_that_draws_no_figures_inline_imports_the_plots():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        "Shell.instance().kernel = None\nimport helpers.plots\nprint('imported')"
    )
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


def test_a_figure_is_described_by_its_titles_and_axes():
    figure, (left, right) = plt.subplots(1, 2)
    figure.suptitle("Rank hardly\nmatters")
    left.set(title="accuracy", xlabel="rank", ylabel="share")
    right.set(xlabel="step")
    assert plots.describe(figure) == "Rank hardly matters. accuracy: share over rank. step"
    plt.close(figure)
