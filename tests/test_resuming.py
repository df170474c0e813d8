"""A run that was killed goes on to the same weights, bit for bit: fp32, on a CPU."""

import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from helpers import trainer, training
from helpers.data import FEATURES, split_reviews
from helpers.files import DiskFull
from helpers.models import build_model
from helpers.profiles import Profile
from helpers.recipes import RECIPES
from helpers.trainer import Watcher
from helpers.training import checkpoint_folder, fine_tune

STEPS = 4 * 12  # four epochs of twelve updates


class Job:
    """A short training of a tiny BERT with dropout, LoRA and early stopping, that saves after every fourth update."""

    def __init__(self, checkpoint: str, reviews: Dataset):
        self.recipe = replace(
            RECIPES["lora_bert_sst2"], base_model=checkpoint, learning_rate=1e-2, max_length=16, num_train_epochs=4,
            per_device_train_batch_size=4, early_stopping_patience=4,
        )  # fmt: skip
        self.profile = Profile("tiny", False, max_length=16, seed=1)
        self.splits = split_reviews(reviews, 48, 32, 64)
        trainer.perf_counter = count(20, 20).__next__  # each update takes 20 seconds

    def run(self, splits=None, restart=False, **changes):
        recipe = replace(self.recipe, **changes)
        model = build_model(recipe, recipe.base_model, seed=1)
        result = fine_tune(model, recipe, splits or self.splits, self.profile, restart=restart)
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        return weights, result.record.history

    @property
    def folder(self) -> Path:
        return checkpoint_folder(self.recipe, self.splits, self.profile) / "batches-of-4"


@pytest.fixture(scope="module")
def whole(tiny_checkpoints, toy_reviews, tmp_path_factory):
    """The weights and the history of the run that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DATA_DIR", str(tmp_path_factory.mktemp("whole")))
        patched.setattr(trainer, "perf_counter", None)
        return Job(tiny_checkpoints["bert"], toy_reviews).run()


@pytest.fixture
def job(whole, tiny_checkpoints, toy_reviews, tmp_path, monkeypatch) -> Job:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "Data"))
    monkeypatch.setattr(trainer, "perf_counter", None)
    return Job(tiny_checkpoints["bert"], toy_reviews)


def at_step(step: int, act, monkeypatch) -> None:
    """Has `act()` called after update `step`."""
    plain = Watcher.on_step_end

    def on_step_end(self, args, state, control, **rest):
        if state.global_step == step:
            act()
        return plain(self, args, state, control, **rest)

    monkeypatch.setattr(Watcher, "on_step_end", on_step_end)


def _interrupted(job, monkeypatch, step) -> None:
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        at_step(step, interrupt, patched)
        job.run()


def _same(found, expected) -> bool:
    assert found[1]["validation"] == expected[1]["validation"] and len(found[1]["validation"]) == 4
    # The first loss that is logged after a resume is the mean of fewer updates.
    assert [row["step"] for row in found[1]["train"]] == [row["step"] for row in expected[1]["train"]]
    assert found[0].keys() == expected[0].keys() and len(found[0]) > 4
    return all(torch.equal(found[0][name], expected[0][name]) for name in found[0])


@pytest.mark.parametrize(
    ("lacking", "content"), [("trainer_state.json", None), ("trainer_state.json", "{"), ("rng_state.pth", None)]
)
def test_a_half_written_checkpoint_is_not_taken(job, whole, monkeypatch, capsys, lacking, content):
    _interrupted(job, monkeypatch, 22)
    newest = Path(shutil.copytree(job.folder / "checkpoint-20", job.folder / "checkpoint-21"))
    (newest / lacking).unlink() if content is None else (newest / lacking).write_text(content)
    assert _same(job.run(), whole) and "Resuming after 20 updates" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [{}, {"early_stopping_patience": 1, "learning_rate": 1e-9}])
def test_a_run_of_which_only_the_result_is_missing_is_not_trained_again(job, whole, monkeypatch, capsys, changes):
    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr(training, "save_adapter", lambda *_, **__: {}["the result"])
        job.run(**changes)
    for step in range(1, STEPS + 1):
        at_step(step, lambda: pytest.fail("trained on"), monkeypatch)
    found = job.run(**changes)
    epochs = len(found[1]["validation"])
    assert epochs == (2 if changes else 4) and (changes or _same(found, whole))
    assert f"Resuming after {12 * epochs} updates" in capsys.readouterr().out


def test_another_run_does_not_go_on_from_there_and_restart_begins_anew(job, whole, monkeypatch, capsys):
    _interrupted(job, monkeypatch, 22)
    fewer = split_reviews(Dataset.from_dict(job.splits["train"].to_dict(), features=FEATURES), 24, 12, 12)
    job.run(splits=fewer)
    others = [(replace(job.recipe, learning_rate=2e-2), job.profile), (job.recipe, replace(job.profile, seed=2))]
    folders = [checkpoint_folder(recipe, job.splits, profile) for recipe, profile in others]
    with monkeypatch.context() as patched:
        patched.setattr(training, "versions", lambda: {"torch": "0.0"})
        folders.append(checkpoint_folder(job.recipe, job.splits, job.profile))
    assert job.folder.parent not in folders and (job.folder / "checkpoint-20").is_dir()
    assert _same(job.run(restart=True), whole) and "Resuming" not in capsys.readouterr().out
    assert not job.folder.parent.exists(), "a run that has ended leaves no checkpoints"


def test_a_disk_that_fills_up_ends_a_run_in_one_line_and_it_goes_on_once_there_is_room(
    full, job, whole, monkeypatch, capsys
):
    folder, fill, make_room = full
    monkeypatch.setenv("DATA_DIR", str(folder))

    def files():
        return {path: path.stat().st_mtime_ns for path in job.folder.rglob("*") if path.is_file()}

    before, said = {}, "^There is no room to write .*DATA_DIR"
    with monkeypatch.context() as patched, pytest.raises(DiskFull, match=said) as caught:
        at_step(20, lambda: (before.update(files()), fill()), patched)
        job.run()
    make_room()
    assert "\n" not in str(caught.value) and before.items() <= files().items(), "an earlier checkpoint is damaged"
    assert _same(job.run(), whole) and "Resuming after 16 updates" in capsys.readouterr().out
