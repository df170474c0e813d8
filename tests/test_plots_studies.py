from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import pytest

from helpers import plots
from helpers.plots import studies

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def _point(accuracy: float, **labels) -> dict:
    seeds = [accuracy - 0.01, accuracy + 0.01]
    return {**labels, "accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03, "accuracies": seeds}


def _texts(axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


@pytest.fixture
def runs(record):
    history = [{"step": e, "epoch": e, "loss": 0.6, "accuracy": a} for e, a in ((1, 0.6), (2, 0.8), (3, 0.7))]
    record = replace(record, history={"train": [], "validation": history}, train_seconds=41.6)
    return [replace(record, variant="as_written"), record]


def test_the_rank_study_shows_rates_means_intervals_seeds_and_counts():
    search = [_point(0.6 + 10 * rate - 0.001 * r, r=r, learning_rate=rate) for r in (64, 1, 8) for rate in (1e-2, 1e-3)]
    ranks = [_point(0.70, r=1), _point(0.74, r=8), _point(0.73, r=64)]
    layers = [_point(0.71, name="query, r = 18"), _point(0.75, name="every linear layer, r = 2")]
    counts, titles = {1: 36_864, 8: 294_912, 64: 2_359_296}, ["one", "two", "three", "four"]
    figure = studies.plot_rank_study(search, ranks, counts, layers, layers[:1], 0.65, titles)
    assert [axes.get_title() for axes in figure.axes] == titles
    over_rate, over_rank, of_layers, of_schemes = figure.axes
    lines = [line for line in over_rate.lines if len(line.get_xdata()) == 2]
    assert len(lines) == 3 and all(list(line.get_xdata()) == [1e-3, 1e-2] for line in lines)
    ringed = [line.get_xdata()[0] for line in over_rate.lines if line.get_markersize() > 10]
    assert ringed == [1e-2] * 3 and {"r = 1", "r = 8", "r = 64"} == {text.get_text() for text in over_rate.texts}
    assert list(over_rank.lines[0].get_xdata()) == [1, 8, 64] and list(over_rank.lines[0].get_ydata())[1] == 0.74
    assert list(over_rank.lines[1].get_ydata()) == [pytest.approx(0.67), pytest.approx(0.73)], "the interval"
    assert list(over_rank.lines[2].get_ydata()) == [pytest.approx(0.69), pytest.approx(0.71)], "the seeds"
    top = over_rank.child_axes[0]
    assert [label.get_text() for label in top.get_xticklabels()] == ["37 k", "295 k", "2.4 M"]
    assert "bag of words 65.0%" in _texts(over_rank)
    assert [label.get_text() for label in of_layers.get_yticklabels()] == [point["name"] for point in layers]
    assert len(of_schemes.get_yticklabels()) == 1


def test_epochs_ring_the_best_and_stand_beside_what_was_stated(runs, record):
    figure = studies.plot_epochs(runs, {"bag of words": record}, ["a", "b"], ("the SST-2 post", [0.53, 0.65, 0.77]))
    epochs, scores = figure.axes
    ringed = [(line.get_xdata()[0], line.get_ydata()[0]) for line in epochs.lines if line.get_markersize() > 10]
    assert ringed == [(2, 0.8), (2, 0.8)]
    assert "best 80.0%, epoch 2" in _texts(epochs) and "the SST-2 post" in _texts(epochs)
    assert list(epochs.lines[-1].get_ydata()) == [0.53, 0.65, 0.77]
    names = [label.get_text() for label in scores.get_yticklabels()]
    assert names == ["bag of words", "as written\n42 s to train", "improved\n42 s to train"]
    assert list(scores.lines[0].get_xdata()) == [0.5, 1.0], "the interval"


def test_a_rate_sweep_is_a_third_panel(runs, record):
    rates = {
        "as shipped": [_point(0.5, learning_rate=5e-5), _point(0.7, learning_rate=1e-3)],
        "identity": [_point(0.75, learning_rate=5e-5)],
    }
    figure = studies.plot_epochs(runs, {"bag of words": record}, ["a", "b", "c"], rates=rates)
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["5e-05", "0.001"]
    assert _texts(figure.axes[2]).split(" ", 1) == ["as", "shipped identity"]


def test_labels_that_would_overlap_are_moved_apart(runs, record):
    figure = studies.plot_epochs(runs, {"bag of words": record}, ["a", "b"])
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)
    low, high = figure.axes[0].get_ylim()
    assert heights[1] - heights[0] >= 0.1 * (high - low)


def test_poolers_have_colours_of_their_own():
    colors = {studies.STUDY_COLORS[name] for name in ("as shipped", "identity")}
    assert len(colors) == 2 and not colors & {plots.COLORS["untrained"], plots.COLORS["bag_of_words"]}
