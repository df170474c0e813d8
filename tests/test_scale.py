"""Runs at the sources' own scale: what is told of them is in their records; the adapters in git do what theirs say."""

import re
from dataclasses import replace

import pytest

from helpers.base.paths import ROOT
from helpers.claims.evidence import AT_SCALE, Evidence, Missing
from helpers.claims.findings import findings
from helpers.claims.scale import BAG, FULL, LORA, QLORA, gains_at_scale, points_at_scale, rows_at_scale, scale_table
from helpers.claims.verdicts import decide_all
from helpers.evaluation import paired_comparison
from helpers.inference import SentimentClassifier
from helpers.plots.claims import plot_at_scale
from helpers.profiles import COMMITTED
from helpers.results import RunRecord, StudyRecord, load_records
from helpers.studies.adapters import RECORD
from helpers.studies.runs import splits_of

GOOD, FAIR, COIN = "1" * 180 + "0" * 20, "1" * 150 + "0" * 50, "10" * 100
ADAPTERS = sorted((COMMITTED / "full" / "adapters").glob(f"*/{RECORD}"))


@pytest.fixture
def evidence(record, tmp_path, monkeypatch):
    """Records in place of those of `make full`: a bag of words, a frozen encoder, and a function that adds runs."""
    monkeypatch.setattr("helpers.claims.evidence.AT_SCALE", tmp_path)
    baseline = {"rows_of": LORA, "seed": 42, "n_train": 400, "trainable_params": 9, "accuracy": 0.75, "correct": FAIR}
    rows = [
        {**baseline, "method": "bag_of_words", "text": "whole"},
        {**baseline, "method": "frozen_encoder", "text": "cut", "accuracy": 0.5, "correct": COIN},
    ]
    StudyRecord("baselines", "x", "full", "cpu", {}, rows).save(tmp_path / "studies")

    def add(recipe, variant, correct, learning_rate=1e-3, **changes):
        settings = {"source": "a post", "learning_rate": learning_rate}
        accuracy = {"accuracy": correct.count("1") / len(correct)}
        run = replace(record, recipe=recipe, variant=variant, metrics=accuracy, correct=correct, **changes)
        run = replace(run, settings=settings, n_train=400, train_seconds=120.0, dataset="imdb (embedded)")
        run.save(tmp_path)

    return add


def test_runs_stand_beside_what_costs_nothing_and_seeds_are_one_point(evidence):
    evidence(LORA, "improved", GOOD, seed=42)
    evidence(LORA, "improved", FAIR, seed=43)
    evidence(LORA, "as_written", COIN, seed=42)
    points = points_at_scale(rows_at_scale(Evidence()))
    assert [point["method"] for point in points] == [BAG, "frozen encoder", "a post as written", "a post, our version"]
    assert [point["minutes"] for point in points] == [None, None, 2.0, 2.0]
    ours = points[-1]
    assert ours["accuracies"] == [0.9, 0.75] and ours["accuracy"] == pytest.approx(0.825)
    assert ours["low"] < 0.75 and points[0]["low"] < 0.75 < points[0]["high"]
    assert "| 400 reviews | a post, our version | 128 | 3 | 2.0 | 82.5% [" in scale_table(rows_at_scale(Evidence()))


def test_our_versions_are_compared_on_the_same_rows(evidence):
    with pytest.raises(Missing, match="make full ONLY=improved"):
        gains_at_scale(rows_at_scale(Evidence()))
    evidence(LORA, "improved", GOOD, seed=42)
    evidence(QLORA, "improved", FAIR, seed=42)
    gains = gains_at_scale(rows_at_scale(Evidence()))
    assert set(gains) == {
        *((ours, other) for ours in ("LoRA", "QLoRA") for other in (BAG, "frozen encoder")),
        ("QLoRA", "LoRA"),
    }
    assert gains["LoRA", BAG].difference == pytest.approx(0.15) and gains["LoRA", BAG].verdict == "better"
    assert gains["QLoRA", "LoRA"].verdict == "worse" and gains["QLoRA", BAG].verdict == "no difference seen"


def test_a_baseline_on_all_reviews_stands_beside_every_seed(evidence):
    evidence(LORA, "improved", GOOD, seed=42)
    evidence(LORA, "improved", FAIR, seed=43)
    evidence(LORA, "head_only", COIN, seed=42)
    gains = gains_at_scale(rows_at_scale(Evidence()))
    assert gains["LoRA", BAG].difference == pytest.approx(0.075), "the mean of both seeds"
    assert gains["LoRA", "head alone"].difference == pytest.approx(0.4), "of the seed that both have"


def test_full_fine_tuning_is_that_at_the_rate_with_the_most_right_of_the_validation_rows(evidence, record):
    evidence(LORA, "improved", GOOD, seed=42)
    for variant, rate, validated, correct in (
        ("full_finetune", 2e-4, 0.7, GOOD),
        ("full_half_rate", 1e-4, 0.9, FAIR),
        ("full_quarter_rate", 5e-5, 0.8, COIN),
    ):
        history = {"validation": [{"accuracy": validated}, {"accuracy": 0.5}]}
        evidence(LORA, variant, correct, history=history, learning_rate=rate)
    rows = rows_at_scale(Evidence())
    accuracies = {row["method"]: row["accuracy"] for row in rows if row["method"].startswith(FULL)}
    assert accuracies == {FULL: 0.75, f"{FULL} at 5e-5": 0.5, f"{FULL} at 2e-4": 0.9}
    assert gains_at_scale(rows)["LoRA", FULL].difference == pytest.approx(0.15)


def test_the_figure_has_a_panel_for_each_set_of_rows(evidence):
    evidence(LORA, "improved", GOOD, seed=42)
    points = points_at_scale(rows_at_scale(Evidence()))
    (axes,) = plot_at_scale(points, {("imdb", 400): "what is seen"}, {"imdb": 200}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [point["method"] for point in points]
    assert axes.get_title() == "what is seen" and "n = 200" in axes.get_xlabel()


def test_every_accuracy_is_that_of_the_rows_its_record_holds():
    runs = [(run.name, run.metrics["accuracy"], run.correct) for run in load_records(AT_SCALE)]
    for path in sorted((AT_SCALE / "studies").glob("*.json")):
        runs += [(path.stem, row["accuracy"], row["correct"]) for row in StudyRecord.load(path).rows]
    assert len(runs) > 600
    for name, accuracy, correct in runs:
        assert accuracy == pytest.approx(correct.count("1") / len(correct), abs=1e-9), name


def test_the_headline_is_that_of_the_best_record():
    paths = sorted(AT_SCALE.glob(f"{LORA}-improved-seed*.json"))
    right = "".join(RunRecord.load(path).correct for path in paths)
    said = findings(decide_all()).splitlines()[2]
    n_test = len(right) // len(paths)
    assert f"reach {right.count('1') / len(right):.1%} on reviews held out" in said and f"tested on {n_test:,}" in said
    assert f"mean of {len(paths)} seeds" in said and all(path.name in said for path in paths)
    gain = gains_at_scale(rows_at_scale(Evidence()))["LoRA", BAG]
    assert f"{100 * gain.difference:+.1f} points" in said and f"over a bag of words ({gain.verdict})" in said
    whole = map(RunRecord.load, AT_SCALE.glob(f"{LORA}-full_*-seed42.json"))
    best = max(whole, key=lambda record: record.best_validation_accuracy)
    test = paired_comparison(RunRecord.load(AT_SCALE / f"{LORA}-improved-seed42.json").correct, best.correct)
    assert f"{100 * test.difference:+.1f} points" in said and "from full fine-tuning (one seed each, no diff" in said


def test_the_readme_is_right_that_no_recipe_as_written_is_above_the_bag_of_words():
    said = "On reviews no recipe as written is above the bag of words"
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")
    points = [point for point in points_at_scale(rows_at_scale(Evidence())) if point["corpus"] == "imdb"]
    bags = {point["n_train"]: point["accuracy"] for point in points if point["method"] == BAG}
    written = {
        (point["method"], point["n_train"]): point["accuracy"] for point in points if point["variant"] == "as_written"
    }
    assert len(written) == 4
    assert not {name: accuracy for name, accuracy in written.items() if accuracy > bags[name[1]]}


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.parent.name)
def test_an_adapter_in_git_answers_as_its_record_says(path):
    record = RunRecord.load(path)
    assert record == RunRecord.load(AT_SCALE / f"{record.name}.json")
    rows = splits_of("imdb", record.n_validation, record.n_test)["test"].select(range(64))
    names = rows.features["label"].names
    classifier = SentimentClassifier.from_pretrained(path.parent)
    answers = [names.index(prediction.label) for prediction in classifier.predict(rows["text"][:])]
    right = "".join("01"[answer == label] for answer, label in zip(answers, rows["label"], strict=True))
    differing = sum(one != other for one, other in zip(right, record.correct[:64], strict=True))
    assert differing <= 1, "a text on the edge may fall to the other side in another number format"


def test_the_readme_s_first_snippet_predicts_before_anything_is_trained(monkeypatch):
    monkeypatch.chdir(ROOT)
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "checkpoints" not in snippet
    names = {}
    *before, last = snippet.strip().splitlines()
    exec("\n".join(before), names)
    assert [prediction.label for prediction in eval(last, names)] == ["POSITIVE", "NEGATIVE"]
