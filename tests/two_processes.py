"""What test_distributed.py starts under torchrun: `two_processes.py FOLDER CHECKPOINT [KILLED_AT]`."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import Trainer

from helpers import trainer
from helpers.data import FEATURES
from helpers.models import build_model
from helpers.profiles import Profile
from helpers.recipes import RECIPES
from helpers.training import fine_tune

WORDS = (["bad", "awful", "not", "end", "the", "movie"], ["great", "good", "very", "scene", "the", "movie"])


def rows(count: int, seed: int) -> Dataset:
    """Short texts of the tiny checkpoints' words, of unlike lengths."""
    rng, labels = np.random.default_rng(seed), [index % 2 for index in range(count)]
    texts = [f"{index} {' '.join(rng.choice(WORDS[label], 3 + index % 5))}" for index, label in enumerate(labels)]
    return Dataset.from_dict({"text": texts, "label": labels}, features=FEATURES)


def train_tiny(checkpoint: str, batch_size: int, in_order: bool = False, **options) -> dict:
    """Three epochs of 64 rows: what was learned, and the history of the record of the first process.

    `in_order` takes the rows in their order, without dropout: two processes draw them otherwise than one.
    """
    dropout = 0.0 if in_order else 0.1
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(), base_model=checkpoint, learning_rate=1e-2, num_train_epochs=3,
        min_updates=None, per_device_train_batch_size=batch_size, model_dropout=dropout, lora_dropout=dropout,
    )  # fmt: skip
    shuffled, sequential = trainer.training_arguments, {"train_sampling_strategy": "sequential"} if in_order else {}
    trainer.training_arguments = lambda *rest, **changes: shuffled(*rest, **changes | sequential)
    splits = DatasetDict(train=rows(64, 0), validation=rows(33, 1), test=rows(20, 2))
    model = build_model(recipe, checkpoint)
    result = fine_tune(model, recipe, splits, Profile("tiny", False, max_length=16), **options)
    trainer.training_arguments = shuffled
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return {"weights": weights, "history": result and result.record.history}


def killed_while_it_saves(rank: str, step: int) -> None:
    """Makes the process of this rank kill itself in the checkpoint of update `step`, before it has written its part."""
    plain = Trainer._save_rng_state

    def save(self, folder: str) -> None:
        if os.environ["RANK"] == rank and self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, folder)

    Trainer._save_rng_state = save


if __name__ == "__main__":
    folder, checkpoint, *killed_at = sys.argv[1:]
    trainer.process_state()
    if killed_at:
        killed_while_it_saves("1", int(killed_at[0]))
        found = {"resumed": train_tiny(checkpoint, 8), "whole": train_tiny(checkpoint, 8, restart=True)}
    else:
        found = train_tiny(checkpoint, 8, in_order=True, save=False)
    torch.save(found, Path(folder) / f"rank{os.environ['RANK']}.pt")
