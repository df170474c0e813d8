"""What test_distributed.py starts under torchrun: `two_processes.py FOLDER CHECKPOINT KILLED_AT`."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from transformers import Trainer

from helpers import trainer
from helpers.data import FEATURES
from helpers.models import build_model
from helpers.profiles import Profile
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


if __name__ == "__main__":
    folder, checkpoint, killed_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    trainer.process_state()
    killed_while_it_saves("1", killed_at)
    rows = Dataset.from_json(str(folder / "rows.jsonl"), features=FEATURES)
    resumed, whole = (train_tiny(checkpoint, rows, restart) for restart in (False, True))
    torch.save({"resumed": resumed, "whole": whole}, folder / f"rank{os.environ['RANK']}.pt")
