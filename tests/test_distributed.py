"""Two processes of this machine stand for two GPUs or two machines: torchrun and gloo in place of NCCL."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import Trainer

from helpers import trainer
from helpers.data import FEATURES
from helpers.models import build_model
from helpers.profiles import ROOT, Profile
from helpers.recipes import RECIPES
from helpers.training import fine_tune


def train_tiny(checkpoint: str, rows: Dataset, restart: bool) -> dict[str, torch.Tensor]:
    """What three epochs of 64 rows teach with dropout; on two processes, an epoch is four updates."""
    update = {"learning_rate": 1e-2, "per_device_train_batch_size": 8}
    recipe = replace(RECIPES["lora_bert_sst2"], base_model=checkpoint, **update)
    parts = {"train": (0, 64), "validation": (64, 97), "test": (97, 117)}
    splits = DatasetDict({name: rows.select(range(*ends)) for name, ends in parts.items()})
    model = build_model(recipe, checkpoint)
    result = fine_tune(model, recipe, splits, Profile("tiny", False, max_length=16), restart=restart)
    assert (result is not None) == (os.environ["RANK"] == "0"), "the first alone scores"
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def killed_while_it_saves(rank: str, step: int) -> None:
    """Makes the process of this rank kill itself in the checkpoint of update `step`, before it has written its part."""
    plain = Trainer._save_rng_state

    def save(self, folder: str) -> None:
        if os.environ["RANK"] == rank and self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, folder)

    Trainer._save_rng_state = save


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv, which torch's Windows builds may lack")
def test_two_processes_of_which_one_was_killed_go_on_to_the_same_weights(tmp_path, tiny_checkpoints, toy_reviews):
    toy_reviews.to_json(tmp_path / "rows.jsonl")

    def torchrun(killed_at: int) -> subprocess.CompletedProcess:
        own = {"DATA_DIR": str(tmp_path / "Data"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        own["CUDA_VISIBLE_DEVICES"] = ""  # two processes cannot share a GPU under NCCL
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [__file__, str(tmp_path), tiny_checkpoints["bert"], str(killed_at)]
        return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)

    killed = torchrun(8)
    assert killed.returncode != 0 and "Signal 9 (SIGKILL)" in killed.stderr and "rank      : 1" in killed.stderr
    assert not (tmp_path / "rank0.pt").exists(), "the other went on alone"
    done = torchrun(0)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "Resuming after 4 updates" in done.stdout, "a half checkpoint, or none"
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(first["whole"]) > 8
    for name, weight in first["whole"].items():
        assert torch.equal(first["resumed"][name], weight) and torch.equal(second["resumed"][name], weight), name


if __name__ == "__main__":  # under torchrun: FOLDER CHECKPOINT KILLED_AT
    folder, checkpoint, killed_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    trainer.process_state()
    killed_while_it_saves("1", killed_at)
    rows = Dataset.from_json(str(folder / "rows.jsonl"), features=FEATURES)
    resumed, whole = (train_tiny(checkpoint, rows, restart) for restart in (False, True))
    torch.save({"resumed": resumed, "whole": whole}, folder / f"rank{os.environ['RANK']}.pt")
