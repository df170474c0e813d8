"""The lists of runs and their records, a tiny study from list to rows, comparisons, and the figures of studies."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest

from helpers.data import split_reviews
from helpers.profiles import ROOT
from helpers.results import RunRecord, StudyRecord, load_records
from lab import figures_studies, studies
from lab.at_scale import BAG, FULL, RECORDS, points_at_scale, rows_at_scale
from lab.compare import compare_runs
from lab.studies import NAMES, read_runs, read_study

BEFORE = ("query_value", "thirty_epochs")  # variants whose records had another name when they were made
SEARCHES = {"settings", "many_rows", "all_reviews", "quick", "epochs"}
SEARCHES |= {name for name in NAMES if name.endswith("_search")}
ROWS = RECORDS / "studies"


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_never_chosen_on_rows_or_with_seeds_of_the_result(name):
    for run in read_runs(name):
        assert (run.scored_on == "validation", run.seed >= 100) == (name in SEARCHES,) * 2


ALL_ROWS = {"rotten_tomatoes": 5_530, "imdb": 19_922, "bbc_headlines": 996}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"at_scale"}))
def test_each_row_is_that_of_one_run_and_each_run_has_its_row(name):
    record, runs = read_study(name), read_runs(name)
    assert len(record.rows) == len(runs)
    for run in runs:
        (row,) = [row for row in record.rows if run.is_done([row])]
        assert row["n_train"] == (run.recipe.n_train or ALL_ROWS[run.recipe.dataset])
        assert len(row["correct"]) == (run.n_validation if run.scored_on == "validation" else run.n_test)
        if run.recipe.method not in studies.BASELINES:
            assert row["epochs"] == run.recipe.epochs(row["n_train"])
            assert row["updates"] == row["epochs"] * -(-row["n_train"] // run.recipe.per_device_train_batch_size)
        for setting, value in (("dataset", run.recipe.dataset), ("scored_on", run.scored_on)):
            assert value in record.settings[setting]
        assert str(run.recipe.max_length) in str(record.settings["max_length"])


def test_each_record_at_scale_has_the_settings_of_its_run():
    records = {(one.recipe, one.variant, one.seed): one for one in load_records(RECORDS)}
    runs = {(run.recipe.name, run.recipe.variant, run.seed): run for run in read_runs("at_scale")}
    assert set(records) == set(runs) and len(runs) == len(read_runs("at_scale"))
    for name, run in runs.items():
        stated = json.loads(json.dumps(run.recipe.stated()))
        stated["num_train_epochs"] = run.recipe.epochs(records[name].n_train)
        later = {"gradient_checkpointing", "task"}  # fields that earlier records do not have
        compared = stated.keys() - later - ({"variant"} if run.recipe.variant in BEFORE else set())
        assert {key: records[name].settings[key] for key in compared} == {key: stated[key] for key in compared}
        assert (run.n_validation, run.n_test) == (records[name].n_validation, records[name].n_test)


def test_every_accuracy_is_that_of_the_rows_its_record_holds():
    runs = [(run.name, run.metrics["accuracy"], run.correct) for run in load_records(RECORDS)]
    for path in sorted(ROWS.glob("*.json")):
        runs += [(path.stem, row["accuracy"], row["correct"]) for row in StudyRecord.load(path).rows]
    assert len(runs) == 1_616
    for name, accuracy, correct in runs:
        assert accuracy == pytest.approx(correct.count("1") / len(correct), abs=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "sizes", "expected"),
    [("rotten_tomatoes", (1_000, 2_000), "539d3078c9e79575"), ("imdb", (2_490, 2_490), "6eb3a973684d86f8")],
)
def test_the_rows_are_those_of_the_records(dataset, sizes, expected):
    splits = studies.splits_of(dataset, *sizes)
    found = sha256(json.dumps([splits[name]["text"][:] for name in splits]).encode()).hexdigest()[:16]
    assert found == expected, "other rows: no new run could be compared with the records"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A function that puts a list in place of those of the repository."""
    monkeypatch.setattr(studies, "LISTS", tmp_path)
    monkeypatch.setattr(studies, "NAMES", ["toy"])

    def write(**content):
        sizes = {"recipe": "lora_bert_sst2", "n_validation": 32, "n_test": 64}
        (tmp_path / "toy.json").write_text(json.dumps(sizes | content))

    return write


@pytest.fixture
def tiny(listed, tiny_checkpoints, tiny_profile, toy_reviews, monkeypatch):
    """Like `listed`, of runs of a tiny checkpoint on texts that it can learn; and the records that they leave."""
    splits = split_reviews(toy_reviews, None, 32, 64)
    monkeypatch.setattr(studies, "splits_of", lambda *names: splits)
    monkeypatch.setattr(studies, "FULL", replace(tiny_profile, n_train=None, n_validation=None, n_test=None))
    monkeypatch.setattr(studies, "current_precision", lambda: "fp32")

    def write(runs, **content):
        size = {"max_length": 16, "n_train": 48, "num_train_epochs": 2, "per_device_train_batch_size": 16}
        size["modules_to_save"] = ["pooler"]
        listed(changes={**size, "base_model": tiny_checkpoints["bert"]}, runs=runs, **content)
        return lambda: StudyRecord.load(tiny_profile.results / "studies" / "toy.json")

    return write


@pytest.mark.slow
def test_a_study_is_done_in_any_number_of_sittings_and_no_run_twice(tiny, monkeypatch, capsys):
    methods = ["adapter", "full_finetune", "head_only", *studies.BASELINES[:2]]
    runs = [{"labels": {"method": name}, "changes": {"method": name}, "seeds": [0]} for name in methods]
    record, done, do_run = tiny(runs), [], studies.do_run

    def interrupted(run, profile):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(run.labels["method"])
        return do_run(run, profile)

    with monkeypatch.context() as patched:
        patched.setattr(studies, "do_run", interrupted)
        assert studies.main(["toy"]) == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on with what is left.\n"
    assert [row["method"] for row in record().rows] == done == methods[:2], "written as each run ends"
    assert studies.main(["--list"]) == 0 and "2 of    5 done" in capsys.readouterr().out
    assert len(record().rows) == 2, "--list runs nothing"
    before = record().rows
    assert studies.main([]) == 0
    rows = {row["method"]: row for row in record().rows}
    assert record().rows[:2] == before and list(rows) == methods and len(record().rows) == 5
    for name, row in rows.items():
        assert (row["seed"], row["n_train"], len(row["correct"])) == (0, 48, 64)
        assert row["accuracy"] == row["correct"].count("1") / 64 and row["trainable_params"] > 0 and row["at"]
        assert ("C" in row) == (name in studies.BASELINES[:2])
    assert (rows["adapter"]["epochs"], rows["adapter"]["updates"]) == (2, 6)
    trained = [rows[name]["trainable_params"] for name in ("head_only", "adapter", "full_finetune")]
    assert sorted(set(trained)) == trained and rows["bag_of_words"]["accuracy"] > 0.9
    assert record().command == "python -m lab.studies toy" and record().settings["n_test"] == 64
    monkeypatch.setattr(studies, "do_run", lambda *_: pytest.fail("run again"))
    assert studies.main(["toy"]) == 0


@pytest.mark.slow
def test_a_seed_fixes_a_run_and_the_scored_rows_are_those_asked_for(tiny):
    tiny([{"changes": {"num_train_epochs": 1}, "seeds": [0, 0, 1]}], scored_on="validation")
    rows = [studies.do_run(run, studies.FULL) for run in read_runs("toy")]
    assert rows[0]["last_loss"] == rows[1]["last_loss"] != rows[2]["last_loss"]
    assert rows[0]["correct"] == rows[1]["correct"] and len(rows[0]["correct"]) == 32
    assert not studies.FULL.results.exists() and not studies.FULL.checkpoints.exists(), "a row leaves nothing else"


@pytest.mark.slow
def test_a_run_at_scale_has_a_record_and_an_adapter_and_is_not_run_again(tiny, monkeypatch):
    tiny([{"changes": {"variant": "improved"}, "seeds": [3]}], at_scale=True)
    assert studies.main([]) == 0
    record = RunRecord.load(studies.FULL.results / "lora_bert_sst2-improved-seed3.json")
    assert (record.n_train, record.n_validation, len(record.history["validation"])) == (48, 32, 2)
    assert (studies.FULL.checkpoints / record.name / "adapter_model.safetensors").is_file()
    monkeypatch.setattr(studies, "do_run", lambda *_: pytest.fail("run again"))
    assert studies.main([]) == 0 and not (studies.FULL.results / "studies").exists()


def test_only_seeds_of_both_sides_are_compared_and_none_stands_beside_all():
    one, other = [{"seed": 0, "correct": "1111"}, {"seed": 1, "correct": "1100"}], [{"seed": 0, "correct": "1100"}]
    assert compare_runs({"x": (one, other)})["x"].difference == pytest.approx(0.5)
    assert compare_runs({"x": (one, [{**other[0], "seed": None}])})["x"].difference == pytest.approx(0.25)
    with pytest.raises(ValueError, match=r"x: no seed is on both sides, \[1\] and \[0\]"):
        compare_runs({"x": (one[1:], other)})


@pytest.mark.parametrize("method", [BAG, "Assignment 7, our version", "bert-qlora, our version", FULL])
def test_the_readme_s_first_table_is_that_of_the_records(method):
    rows = [row for row in rows_at_scale() if (row["method"], row["n_train"]) == (method, 19_922)]
    (point,) = points_at_scale(rows)
    score = f"{point['accuracy']:.1%} [{point['low']:.1%}, {point['high']:.1%}]"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| {point['trainable_params']:,} | {score} |" in text


def _point(accuracy: float, **labels) -> dict:
    seeds = [accuracy - 0.01, accuracy + 0.01]
    return {**labels, "accuracy": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03, "accuracies": seeds}


def _texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_rank_study_rings_the_best_rates_and_orders_the_ranks():
    search = [_point(0.6 + 10 * rate - 0.001 * r, r=r, learning_rate=rate) for r in (64, 1) for rate in (1e-2, 1e-3)]
    ranks, layers = [_point(0.73, r=64), _point(0.70, r=1)], [_point(0.71, name="query, r = 18")]
    counts = {1: 36_864, 64: 2_359_296}
    figure = figures_studies.plot_rank_study(search, ranks, counts, layers, layers, 0.65, "abcd")
    over_rate, over_rank, of_layers, _ = figure.axes
    ringed = [line.get_xdata()[0] for line in over_rate.lines if line.get_markersize() > 10]
    assert ringed == [1e-2] * 2 and _texts(over_rate) == ["r = 64", "r = 1"]
    assert list(over_rank.lines[0].get_xdata()) == [1, 64] and list(over_rank.lines[0].get_ydata()) == [0.70, 0.73]
    assert [label.get_text() for label in over_rank.get_xticklabels()] == ["1\n0.037 M", "64\n2.4 M"]
    assert _texts(over_rank) == ["bag of words 65.0%"] and _texts(of_layers) == ["71.0%", "query, r = 18"]


def test_the_scale_has_a_panel_for_each_set_of_rows_and_no_interval_outside():
    titles = {("imdb", 19_922): "reviews", ("rotten_tomatoes", 2_000): "sentences"}
    points = [point for point in points_at_scale(rows_at_scale()) if (point["corpus"], point["n_train"]) in titles]
    figure = figures_studies.plot_at_scale(points, titles, {"imdb": 2_490, "rotten_tomatoes": 2_000})
    assert [axes.get_title() for axes in figure.axes] == ["reviews", "sentences"]
    for point in points:
        (axes,) = [axes for axes in figure.axes if point["method"] in _texts(axes)]
        assert axes.get_xlim()[0] < point["low"] <= point["high"] < axes.get_xlim()[1]
