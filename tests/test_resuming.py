import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from helpers.base.paths import ROOT
from helpers.base.writing import NotWritten
from helpers.data import FEATURES, split_reviews, tokenize
from helpers.fitting import resuming
from helpers.fitting.loop import fit
from helpers.fitting.resuming import COMPLETE, Occupied, Saver, Stopped
from helpers.models import build_model, load_tokenizer
from helpers.profiles import Execution
from helpers.recipes import RECIPES

STEPS = 4 * 12  # four epochs of twelve updates


class Job:
    """A short training of a tiny BERT with dropout, LoRA and early stopping, and its checkpoints' folder."""

    def __init__(self, checkpoint, reviews, execution, folder):
        self.recipe = replace(
            RECIPES["lora_bert_sst2"], learning_rate=1e-2, max_length=16, num_train_epochs=4,
            per_device_train_batch_size=4, early_stopping_patience=4,
        )  # fmt: skip
        self.checkpoint, self.execution, self.folder = checkpoint, execution, folder
        tokenizer, splits = load_tokenizer(checkpoint), split_reviews(reviews, 48, 32, 64)
        self.rows = {name: tokenize(part, tokenizer, 16) for name, part in splits.items()}

    def run(self, folder=None, seed=1, restart=False, keep=False, **changes):
        """Trains, from where a run in the folder stopped; returns the trained weights and what `fit` gave.

        What is left of it goes, as `fine_tune` does it once the result is written, unless to `keep` it.
        """
        recipe = replace(self.recipe, **changes)
        model = build_model(recipe, self.checkpoint, self.execution, seed)
        fitted = fit(
            model, load_tokenizer(self.checkpoint), recipe, self.rows["train"], self.rows["validation"],
            self.execution, seed, checkpoints=folder or self.folder, restart=restart,
        )  # fmt: skip
        if not keep:
            shutil.rmtree(folder or self.folder, ignore_errors=True)
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, fitted


@pytest.fixture
def job(tiny_checkpoints, toy_reviews, fp32, tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SECONDS_BETWEEN_SAVES", 0)  # at every step
    return Job(tiny_checkpoints["bert"], toy_reviews, fp32, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tiny_checkpoints, toy_reviews, fp32, tmp_path_factory):
    """The weights and the outcome of the run that nothing interrupts."""
    return Job(tiny_checkpoints["bert"], toy_reviews, fp32, tmp_path_factory.mktemp("whole") / "run").run()


def signal_at(step, number):
    """A `Saver.on_step_end` with which this process gets signal `number` after update `step`."""
    original = Saver.on_step_end

    def on_step_end(self, args, state, control, **rest):
        if state.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, args, state, control, **rest)

    return on_step_end


def _stopped(job, monkeypatch, step, number=signal.SIGTERM):
    with monkeypatch.context() as patched:
        patched.setattr(Saver, "on_step_end", signal_at(step, number))
        with pytest.raises(Stopped, match=f"of {STEPS} updates") as stopped:
            job.run()
    return stopped.value


def _same(first, second):
    assert first.keys() == second.keys() and len(first) > 4
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 5), (signal.SIGINT, 12), (signal.SIGTERM, 31)])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_weights(
    job, whole, monkeypatch, capsys, number, step
):
    handler = signal.getsignal(number)
    assert _stopped(job, monkeypatch, step, number).status == 128 + number
    assert signal.getsignal(number) == handler
    weights, fitted = job.run()
    assert "Resuming after" in capsys.readouterr().out
    assert _same(weights, whole[0]), "another training than the one that nothing interrupts"
    assert fitted.history == whole[1].history and len(fitted.history["validation"]) == 4
    assert not job.folder.exists(), "a run that has ended leaves no checkpoints"


def run_that_gets(number, step, checkpoint, folder, rows):
    """What the process below does: trains, gets signal `number` after update `step`, and writes what it learned."""
    torch.set_num_threads(1)
    resuming.SECONDS_BETWEEN_SAVES = 0
    Saver.on_step_end = signal_at(int(step), int(number))
    reviews = Dataset.from_json(rows, features=FEATURES)
    weights, _ = Job(checkpoint, reviews, Execution("cpu", "fp32", "eager"), Path(folder)).run()
    torch.save(weights, f"{folder}.pt")


@pytest.fixture
def process_that_gets(job, toy_reviews, tmp_path):
    """`process_that_gets(number, step)` starts one that does `job` and gets signal `number` after update `step`."""
    started = []

    def start(number, step):
        toy_reviews.to_json(tmp_path / "rows.jsonl")
        script = "import sys; from test_resuming import run_that_gets; run_that_gets(*sys.argv[1:])"
        arguments = [int(number), step, job.checkpoint, job.folder, tmp_path / "rows.jsonl"]
        with open(tmp_path / "said.txt", "w") as said:
            process = subprocess.Popen(
                [sys.executable, "-c", script, *map(str, arguments)], stdout=said, stderr=said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(ROOT)))},
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_run_goes_on_to_the_same_weights(job, whole, process_that_gets, tmp_path, capsys):
    step = 13 + os.getpid() % 30  # a random one
    assert process_that_gets(signal.SIGKILL, step).wait() == -signal.SIGKILL, (tmp_path / "said.txt").read_text()
    assert (tmp_path / "run.lock").is_file(), "it kept no other run out"
    steps = [int(path.name.split("-")[1]) for path in job.folder.glob("checkpoint-*")]
    assert max(steps) >= step - 2, "more than a step is lost"
    (job.folder / f"checkpoint-{STEPS}").mkdir()  # half written: the newest by its number, and no more
    (job.folder / f"checkpoint-{STEPS}" / "trainer_state.json").write_text("{")
    weights, fitted = job.run()
    assert "Resuming after" in capsys.readouterr().out
    assert _same(weights, whole[0]) and fitted.history == whole[1].history
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is halted in the middle of its training")
def test_a_second_run_at_once_is_told_so_and_touches_nothing(job, whole, process_that_gets, tmp_path):
    first = process_that_gets(signal.SIGSTOP, 20)
    _, status = os.waitpid(first.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), (tmp_path / "said.txt").read_text()
    before = _files(job.folder)
    assert before
    for restart in (False, True):
        with pytest.raises(Occupied, match=r"^Another process is training now.*Wait until it has ended"):
            job.run(restart=restart)
    assert _files(job.folder) == before
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, (tmp_path / "said.txt").read_text()
    assert _same(torch.load(tmp_path / "run.pt"), whole[0]), "the second run disturbed the first"
    assert not job.folder.exists() and not (tmp_path / "run.lock").exists()


def _files(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_a_disk_that_fills_up_ends_a_run_in_one_line_and_it_goes_on_once_there_is_room(
    full, job, whole, monkeypatch, capsys
):
    folder, fill, make_room = full
    job.folder, before, plain = folder / "run", {}, Saver.on_step_end

    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 20:
            before.update(_files(job.folder))
            fill()
        return plain(self, args, state, control, **rest)

    said = r"^There is no room to write .*checkpoint-20 \(.*What was there before is as it was\..*DATA_DIR"
    with monkeypatch.context() as patched, pytest.raises(NotWritten, match=said) as caught:
        patched.setattr(Saver, "on_step_end", on_step_end)
        job.run()
    make_room()
    assert "\n" not in str(caught.value) and "Training stopped; started again, it goes on" in capsys.readouterr().out
    assert _files(job.folder) == before, "an earlier checkpoint is damaged, or a half one was left"
    weights, fitted = job.run()
    assert "Resuming after 19 updates" in capsys.readouterr().out
    assert _same(weights, whole[0]) and fitted.history == whole[1].history


def test_a_full_disk_for_temporary_files_is_told_before_training(full, job, monkeypatch, capsys):
    folder, fill, make_room = full
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    job.rows["validation"] = None  # such a run has no folder of its own
    fill()
    with pytest.raises(NotWritten, match=r"^There is no room to write .*start\.pt.*TMPDIR"):
        job.run()
    make_room()
    assert [path.name for path in folder.iterdir()] in ([], [".filler"])
    assert len(job.run()[1].history["train"]) > 4


def test_a_run_whose_result_was_not_written_is_not_trained_again(job, whole, capsys):
    job.run(keep=True)
    weights, fitted = job.run()
    assert f"Resuming after {STEPS} updates" in capsys.readouterr().out
    assert _same(weights, whole[0]) and fitted.history == whole[1].history and not job.folder.exists()
    early = {"early_stopping_patience": 1, "learning_rate": 1e-9}  # nothing is learned: it stops after two epochs
    weights, fitted = job.run(keep=True, **early)
    again, more = job.run(**early)
    assert _same(again, weights) and more.history == fitted.history and len(more.history["validation"]) == 2


def test_checkpoints_that_are_not_whole_are_passed_over(job, monkeypatch):
    _stopped(job, monkeypatch, 20)
    run = json.loads((job.folder / "run.json").read_text())["run"]
    newest, batches = resuming.unfinished(job.folder, run)
    assert batches == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    (newest / COMPLETE).unlink()
    before, _ = resuming.unfinished(job.folder, run)
    assert int(before.name.split("-")[1]) < int(newest.name.split("-")[1])
    for path in job.folder.glob("checkpoint-*"):
        (path / COMPLETE).unlink(missing_ok=True)
    assert resuming.unfinished(job.folder, run)[0] is None


def test_another_run_does_not_go_on_from_there_and_restart_begins_anew(job, whole, monkeypatch, capsys):
    _stopped(job, monkeypatch, 20)
    for change, said in (
        ({"learning_rate": 2e-2}, "learning_rate 0.01 there, 0.02 now"),
        ({"seed": 2}, "seed 1 there, 2 now"),
        ({"r": 4}, "r 8 there, 4 now"),
    ):
        with pytest.raises(ValueError, match=f"another one: {said}.*--restart"):
            job.run(**change)
    rows = job.rows["train"]
    job.rows["train"] = rows.select(range(47))
    with pytest.raises(ValueError, match=r"rows .*48 rows.* there, .*47 rows.* now"):
        job.run()
    job.rows["train"] = rows
    with monkeypatch.context() as patched:
        patched.setattr("helpers.fitting.loop.version", lambda name: "0.0")
        with pytest.raises(ValueError, match=r"torch '.*' there, '0\.0' now"):
            job.run()
    capsys.readouterr()
    weights, _ = job.run(restart=True)
    assert "Resuming" not in capsys.readouterr().out and _same(weights, whole[0])
    assert not job.folder.exists()


def test_a_damaged_run_file_is_told(job):
    job.folder.mkdir(parents=True)
    (job.folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged.*--restart"):
        job.run()


def test_a_second_signal_ends_it_at_once(job, monkeypatch):
    def on_step_end(self, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Saver, "on_step_end", on_step_end)
    with pytest.raises(KeyboardInterrupt) as stopped:
        job.run()
    assert not isinstance(stopped.value, Stopped)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_is_named_without_the_format_that_fails_beside_new_versions_of_torchvision(monkeypatch):
    """As on Colab, whose datasets asks torchvision for a VideoReader wherever rows are wanted as numpy."""

    def tensorize(self, value):
        raise ImportError("cannot import name 'VideoReader' from 'torchvision.io'")

    monkeypatch.setattr("datasets.formatting.np_formatter.NumpyFormatter._tensorize", tensorize)
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3], [4]], "label": [0, 1]})
    with pytest.raises(ImportError, match="VideoReader"):
        rows.with_format("numpy")["input_ids"][:]
    names = [
        resuming.identity({}, part, None)["rows"]["train"] for part in (rows, rows.select([1, 0]), rows.select([]))
    ]
    assert len(set(names)) == 3
    assert resuming.identity({}, rows.select([1, 0]).select([1, 0]), None)["rows"]["train"] == names[0]
