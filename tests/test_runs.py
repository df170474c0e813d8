import json
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from hashlib import sha256
from threading import Barrier

import numpy as np
import pytest
from datasets import concatenate_datasets
from filelock import FileLock

from helpers import baselines
from helpers.data import split_reviews, tokenize
from helpers.fitting.loop import fit
from helpers.fitting.resuming import Stopped
from helpers.models import build_model, load_tokenizer
from helpers.profiles import EMBEDDED_BERT
from helpers.recipe import METHODS
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord
from helpers.studies import __main__ as studies_command
from helpers.studies import adapters, plan, runs, search
from helpers.studies.runs import Run, drawn, row_of
from helpers.training import class_probabilities

WHERE = {"base_model": EMBEDDED_BERT, "n_validation": 1_000, "n_test": 2_000}


@pytest.fixture
def tiny(tiny_checkpoints, toy_reviews, tmp_path, monkeypatch):
    """A run on a tiny checkpoint and toy reviews, and an empty `Data/full`."""
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr(runs, "splits_of", lambda *key: split_reviews(toy_reviews, None, 32, 64))
    runs._tokens.cache_clear()
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(),
        base_model=tiny_checkpoints["bert"], learning_rate=2e-2, max_length=16, n_train=48, num_train_epochs=1,
        per_device_train_batch_size=16, min_updates=None,
    )  # fmt: skip
    yield Run("toy", (("r", 8),), recipe, tiny_checkpoints["bert"], 32, 64, seed=0)
    runs._tokens.cache_clear()


def test_what_a_run_gives_is_what_its_version_gave(tiny_checkpoints, toy_reviews, fp32):
    """Fails where a change of the code changes what a training gives: then raise `runs.VERSION` and these numbers."""
    recipe = replace(
        RECIPES["lora_bert_sst2"], learning_rate=1e-2, num_train_epochs=12, max_length=16, per_device_train_batch_size=5
    )
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    rows = tokenize(split_reviews(toy_reviews, None, 32, 64)["train"].select(drawn(104, 48, 3)), tokenizer, 16)
    model = build_model(recipe, tiny_checkpoints["bert"], fp32, seed=3)
    fit(model, tokenizer, recipe, rows, None, fp32, seed=3)
    probabilities = class_probabilities(model, tokenizer, rows.select(range(4)), fp32)[:, 1]
    assert runs.VERSION == 1
    np.testing.assert_allclose(probabilities, [0.01678, 0.01676, 0.98779, 0.98781], atol=1e-3)


@pytest.mark.parametrize(
    ("dataset", "sizes", "expected"),
    [("rotten_tomatoes", search.SENTENCES, "539d3078c9e79575"), ("imdb", plan.REVIEWS, "6eb3a973684d86f8")],
)
def test_the_rows_are_those_of_this_version(dataset, sizes, expected):
    splits = runs.splits_of(dataset, *sizes.values())
    found = sha256(json.dumps([splits[name]["text"][:] for name in splits]).encode()).hexdigest()[:16]
    assert found == expected, "other rows: raise runs.VERSION"


def test_a_run_is_named_by_what_decides_its_result(tiny):
    same = [
        replace(tiny, study="other", labels=(("x", 1),)),
        replace(tiny, recipe=replace(tiny.recipe, name="other", assumed=(), overrides=(), variant="as_written")),
    ]
    assert {run.id for run in same} == {tiny.id}
    recipes = [
        replace(tiny.recipe, **change)
        for change in ({"r": 9}, {"learning_rate": 1e-3}, {"n_train": 47}, {"method": "full_finetune"},
                       {"max_length": 12}, {"min_updates": 9}, {"dataset": "imdb"}, {"quantization": "nf4"})
    ]  # fmt: skip
    others = [replace(tiny, recipe=recipe) for recipe in recipes]
    others += [replace(tiny, **change) for change in ({"seed": 1}, {"n_test": 63}, {"scored_on": "validation"})]
    others += [
        replace(tiny, **change) for change in ({"at_scale": True}, {"averaged": True}, {"base_model": EMBEDDED_BERT})
    ]
    assert len({run.id for run in (tiny, *others)}) == len(others) + 1


def test_another_version_of_the_code_is_another_run(tiny, monkeypatch):
    before = tiny.id
    monkeypatch.setattr(runs, "VERSION", runs.VERSION + 1)
    assert tiny.id != before


def test_a_seed_draws_the_training_rows():
    assert sorted(drawn(10, 10, 0)) == list(range(10)) == list(drawn(10, None, 5))
    assert list(drawn(100, 8, 0)) == list(drawn(100, 8, 0)) != list(drawn(100, 8, 1))
    assert len(set(drawn(100, 8, 0))) == 8


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_row(tiny, fp32, method):
    runs._embeddings.cache_clear()
    row = row_of(replace(tiny, recipe=replace(tiny.recipe, method=method, num_train_epochs=6)), fp32)
    assert (row["r"], row["seed"], row["n_train"], len(row["correct"])) == (8, 0, 48, 64)
    assert row["accuracy"] == row["correct"].count("1") / 64 and row["trainable_params"] > 0 and row["seconds"] >= 0
    if method == "bag_of_words":
        assert row["accuracy"] > 0.9 and row["C"] > 0
    elif method != "frozen_encoder":
        assert (row["epochs"], row["updates"]) == (6, 18)


def test_few_rows_are_seen_as_often_as_updates_are_wanted(tiny, fp32):
    row = row_of(replace(tiny, recipe=replace(tiny.recipe, n_train=16, min_updates=5)), fp32)
    assert (row["epochs"], row["updates"]) == (5, 5)


def test_averaged_weights_are_asked_for_by_the_run(tiny, fp32, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "fit", lambda *rows, averaged: (asked.append(averaged), fit(*rows))[1])
    for run in (tiny, replace(tiny, averaged=True)):
        row_of(run, fp32)
    assert asked == [False, True]


def test_a_cut_text_is_no_longer_than_the_encoder_s_tokens(tiny, fp32, monkeypatch):
    seen = []
    original = baselines.bag_of_words
    monkeypatch.setattr(runs, "bag_of_words", lambda *rows: (seen.append(rows[0]["text"][0]), original(*rows))[1])
    bag = replace(tiny, recipe=replace(tiny.recipe, method="bag_of_words", max_length=8))
    row_of(bag, fp32)
    row_of(replace(bag, cut_text=True), fp32)
    whole, cut = (len(text.split()) for text in seen)
    assert cut < whole and bag.id != replace(bag, cut_text=True).id


@pytest.fixture
def study(tiny, monkeypatch, fp32):
    """`make full` with one study of three short runs; the list of the runs that were done."""
    done = []

    def toy(rows):
        for seed in range(3):
            yield replace(tiny, seed=seed)

    def row(run, execution):
        done.append(run.seed)
        return {**dict(run.labels), "seed": run.seed, "accuracy": 0.5, "correct": "10", "run": run.id}

    monkeypatch.setattr(studies_command, "STUDIES", {"toy": toy})
    monkeypatch.setattr(runs, "row_of", row)
    monkeypatch.setattr(studies_command, "fastest_execution", lambda: fp32)
    return done


def _toy() -> StudyRecord:
    return StudyRecord.load(runs.FULL.results / "studies" / "toy.json")


def _raise_at(monkeypatch, seed, error):
    """Has the run with `seed` end by `error`."""
    row = runs.row_of

    def raises(run, execution):
        if run.seed == seed:
            raise error
        return row(run, execution)

    monkeypatch.setattr(runs, "row_of", raises)


def test_what_has_its_row_is_not_run_again(study, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        _raise_at(patched, 2, KeyboardInterrupt())
        assert studies_command.main([]) == 130
    assert study == [0, 1] and [entry["seed"] for entry in _toy().rows] == [0, 1], "a row is written as its run ends"
    assert studies_command.main(["--list"]) == 0 and re.search(r"toy\s+2 of\s+3 done", capsys.readouterr().out)
    assert studies_command.main(["toy"]) == 0
    assert study == [0, 1, 2]
    out = capsys.readouterr().out
    assert "toy: r 8, seed 2: 50.0%" in out and "0 runs left, 0:00 h" in out and "nothing is left" in out
    assert studies_command.main([]) == 0 and study == [0, 1, 2]
    assert (_toy().command, _toy().profile) == ("make full ONLY=toy", "full")


def test_rows_of_runs_that_are_no_longer_asked_for_go(study, monkeypatch, tiny):
    studies_command.main([])
    changed = replace(tiny.recipe, r=9)
    others = [replace(tiny, recipe=changed, seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(studies_command, "STUDIES", {"toy": lambda rows: iter(others)})
    studies_command.main([])
    assert [row["seed"] for row in _toy().rows] == [0, 1] and len(study) == 5


def test_a_run_that_is_added_later_stands_in_its_place(study, monkeypatch, tiny):
    for seeds in ((0, 2), (0, 1, 2)):
        monkeypatch.setattr(
            studies_command, "STUDIES", {"toy": lambda rows, s=seeds: (replace(tiny, seed=one) for one in s)}
        )
        studies_command.main([])
    assert study == [0, 2, 1] and [row["seed"] for row in _toy().rows] == [0, 1, 2]


def test_a_study_s_record_names_the_checkpoints_of_all_its_runs(study, monkeypatch, tiny):
    both = [replace(tiny, seed=0), replace(tiny, seed=1, base_model=f"{tiny.base_model}/.")]
    monkeypatch.setattr(studies_command, "STUDIES", {"toy": lambda rows: iter(both)})
    studies_command.main([])
    assert _toy().settings["base_model"] == f"{tiny.base_model} and {tiny.base_model}/."
    assert _toy().settings["n_test"] == tiny.n_test


def test_two_sittings_at_once_do_not_write_over_each_other(study, capsys):
    with FileLock(runs.FULL.results / ".lock"):
        assert studies_command.main([]) == 1
    assert "another `make full`" in capsys.readouterr().err and study == []
    with pytest.raises(SystemExit):
        studies_command.main(["no-such-study"])
    with pytest.raises(SystemExit):
        studies_command.main(["--jobs", "0"])
    assert "there is toy" in capsys.readouterr().err


def test_no_run_starts_that_would_outlast_the_sitting(study, capsys):
    assert studies_command.main(["--minutes", "1e-6"]) == 0
    assert study == [] and "stopped: toy: r 8, seed 0 should take" in capsys.readouterr().out


@pytest.fixture
def threads(monkeypatch):
    """Threads in place of processes, which would not see what a test puts in place of a run."""
    monkeypatch.setattr(studies_command, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(jobs))


def test_several_runs_at_a_time_give_the_rows_of_one_after_the_other(study, threads, monkeypatch, tiny):
    row, together = runs.row_of, Barrier(2, timeout=10)

    def waits(run, execution):
        if run.seed != 0:
            together.wait()  # a broken barrier where they come one after the other
        return row(run, execution)

    longer = replace(tiny, seed=0, recipe=replace(tiny.recipe, num_train_epochs=99))
    asked = [replace(tiny, seed=1), longer, replace(tiny, seed=2), replace(tiny, study="again", seed=1)]
    monkeypatch.setattr(studies_command, "STUDIES", {"toy": lambda rows: iter(asked)})
    monkeypatch.setattr(runs, "row_of", waits)
    assert studies_command.main(["--jobs", "2"]) == 0
    assert study[0] == 0, "the longest comes first"
    assert sorted(study) == [0, 1, 2] and [entry["seed"] for entry in _toy().rows] == [1, 0, 2], (
        "the same run only once"
    )


def test_a_process_that_dies_is_said_in_one_line_and_what_ended_is_kept(study, threads, monkeypatch, capsys):
    _raise_at(monkeypatch, 2, BrokenProcessPool())
    monkeypatch.setattr(Future, "exception", lambda self: None)  # so that it is raised as by submit, in the main loop
    assert studies_command.main(["--jobs", "2"]) == 1
    assert "error: a process died" in capsys.readouterr().err and [entry["seed"] for entry in _toy().rows][:1] == [0]


@pytest.mark.parametrize(
    ("interrupt", "said", "status"),
    [
        (KeyboardInterrupt(), "Stopped. The same command goes on with what is left.", 130),
        (
            Stopped(15, 5, 10),
            "Stopped after 5 of 10 updates, and all is saved. The same command goes on from there.",
            143,
        ),
    ],
)
def test_a_sitting_that_is_stopped_says_so_in_one_line(study, monkeypatch, capsys, interrupt, said, status):
    with monkeypatch.context() as patched:
        _raise_at(patched, 2, interrupt)
        assert studies_command.main([]) == status
    assert capsys.readouterr().err == f"{said}\n"
    assert [entry["seed"] for entry in _toy().rows] == [0, 1]
    assert studies_command.main([]) == 0 and study == [0, 1, 2]


def test_of_several_runs_at_a_time_one_that_fails_leaves_the_others_alone(study, threads, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        _raise_at(patched, 0, RuntimeError("CUDA out of memory"))
        assert studies_command.main(["--jobs", "2"]) == 1
    out = capsys.readouterr().out
    assert "failed: toy: r 8, seed 0: CUDA out of memory" in out and "nothing is left" not in out
    assert [entry["seed"] for entry in _toy().rows] == [1, 2]
    assert studies_command.main(["--jobs", "2"]) == 0 and sorted(study) == [0, 1, 2]


def test_a_run_at_scale_has_a_record_and_an_adapter_and_is_not_run_again(tiny, fp32, monkeypatch):
    at_scale = replace(tiny, at_scale=True)
    monkeypatch.setattr(studies_command, "STUDIES", {"toy": lambda rows: iter([at_scale])})
    monkeypatch.setattr(studies_command, "fastest_execution", lambda: fp32)
    monkeypatch.setattr(runs, "FULL", replace(runs.FULL, embedded=False))
    assert runs.record_of(at_scale) is None
    monkeypatch.setattr(runs, "dataset_revision", lambda *names: {})
    assert studies_command.main([]) == 0
    record = runs.record_of(at_scale)
    assert "runs_at_once" not in record.settings
    assert runs.train_at_scale(replace(at_scale, seed=3), fp32, 8).settings["runs_at_once"] == 8
    assert record.run == at_scale.id and record.n_train == 48 and record.profile == "full"
    assert (runs.FULL.checkpoints / record.name / "adapter_model.safetensors").is_file()
    assert runs.record_of(replace(at_scale, recipe=replace(tiny.recipe, r=9))) is None
    monkeypatch.setattr(runs, "train_at_scale", lambda *_: pytest.fail("run again"))
    assert studies_command.main([]) == 0


def test_the_best_adapter_of_each_kind_is_kept_with_its_card(tiny, fp32, monkeypatch):
    monkeypatch.setattr(studies_command, "STUDIES", {"toy": lambda rows: iter(asked)})
    monkeypatch.setattr(studies_command, "fastest_execution", lambda: fp32)
    monkeypatch.setattr(runs, "FULL", replace(runs.FULL, embedded=False))
    monkeypatch.setattr(runs, "dataset_revision", lambda *names: {})
    monkeypatch.setattr(adapters, "splits_of", runs.splits_of)
    splits = runs.splits_of()
    corpus = concatenate_datasets([*splits.values(), splits["test"].select([0])])
    monkeypatch.setattr(adapters, "load_reviews", lambda *names: {"train": corpus})
    recipe = replace(tiny.recipe, num_train_epochs=8)
    at_scale = replace(tiny, recipe=recipe, at_scale=True, seed=1)
    asked = [at_scale, replace(at_scale, recipe=replace(recipe, name="weak", learning_rate=1e-6))]
    assert studies_command.main([]) == 0 and not adapters.published().exists(), "of few reviews none is kept"
    monkeypatch.setattr(adapters, "MANY", 10)
    asked = [replace(run, seed=0) for run in reversed(asked)]
    assert studies_command.main([]) == 0
    (folder,) = adapters.published().iterdir()
    assert "More Information Needed" not in (folder / "README.md").read_text()
    kept = RunRecord.load(folder / "record.json")
    assert folder.name == "lora" and kept.recipe == tiny.recipe.name, "the weak one came first"
    shutil.rmtree(folder)  # as if the process had been killed before it was kept
    trained = runs.FULL.checkpoints / kept.name / "adapter_config.json"
    trained.write_text(json.dumps({**json.loads(trained.read_text()), "base_model_name_or_path": "/this/machine"}))
    assert studies_command.main([]) == 0 and RunRecord.load(folder / "record.json") == kept
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == kept.base_model
    baseline = {"n_train": 48, "text": "whole", "method": "bag_of_words", "accuracy": 0.5, "correct": "10" * 32}
    adapters.write_cards([baseline, {**baseline, "text": "cut"}])
    card = (folder / "README.md").read_text()
    assert f"{kept.metrics['accuracy']:.1%}" in card and "TF-IDF with logistic regression reaches 50.0%" in card
    assert ", 1 duplicates," in card
    assert "Of 2 seeds this one has the most right of the validation rows" in card and "(seed 1)" in card
