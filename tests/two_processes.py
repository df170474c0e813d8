"""What test_distributed.py starts under torchrun; `python tests/two_processes.py` measures what a second one gains."""

import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from helpers import models, profiles, train
from helpers.benchmarks.records import device_folder, device_label
from helpers.fitting import loop, resuming, trainer
from helpers.models import build_model
from helpers.profiles import PROFILES, Execution, fastest_execution
from helpers.recipes import RECIPES
from helpers.results import StudyRecord

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def small_quick() -> None:
    """Makes `quick` a matter of seconds."""
    profiles.PROFILES["quick"] = replace(
        PROFILES["quick"], n_train=64, n_validation=33, n_test=40, max_length=16, max_epochs=2
    )


def rows(n: int, seed: int) -> Dataset:
    """Tokenized rows of 4 to 12 random ids of the tiny checkpoints' words; the label follows from the first of them."""
    rng = np.random.default_rng(seed)
    ids = [[2, *rng.integers(5, 18, length - 2).tolist(), 3] for length in rng.integers(4, 13, n)]
    return Dataset.from_dict(
        {"input_ids": ids, "label": [int(row[1] > 11) for row in ids], "length": [len(row) for row in ids]}
    )


def train_tiny(checkpoint: str, folder: Path, batch_size: int) -> dict:
    """Three epochs of 64 rows on a tiny checkpoint, without dropout; what was learned, and the validation's history.

    The rows come in their order: two processes draw a shuffled order from a generator that one process does not have.
    """
    fp32 = Execution("cpu", "fp32", "eager")
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(), base_model=checkpoint, learning_rate=1e-2, num_train_epochs=3,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=1, model_dropout=0.0, lora_dropout=0.0,
    )  # fmt: skip
    shuffled = trainer.training_arguments

    def in_order(*args, **options):
        arguments = shuffled(*args, **options)
        arguments.train_sampling_strategy = "sequential"
        return arguments

    trainer.training_arguments = in_order
    try:
        model = build_model(recipe, checkpoint, fp32, seed=0)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        fitted = loop.fit(model, tokenizer, recipe, rows(64, 0), rows(33, 1), fp32, 0, checkpoints=folder)
    finally:
        trainer.training_arguments = shuffled
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return {"weights": weights, "history": fitted.history}


def train_as_it_is(checkpoint: str, folder: Path) -> dict[str, torch.Tensor]:
    """Three epochs of 64 rows on a tiny checkpoint, shuffled, with dropout, saved at every step; what was learned."""
    resuming.SECONDS_BETWEEN_SAVES, resuming.STEPS_BETWEEN_QUESTIONS = 0, 1
    fp32 = Execution("cpu", "fp32", "eager")
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(), base_model=checkpoint, learning_rate=1e-2, num_train_epochs=3,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, model_dropout=0.1, lora_dropout=0.1,
    )  # fmt: skip
    model, tokenizer = build_model(recipe, checkpoint, fp32, seed=0), AutoTokenizer.from_pretrained(checkpoint)
    loop.fit(model, tokenizer, recipe, rows(64, 0), rows(33, 1), fp32, 0, checkpoints=folder)
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def killed_while_it_saves(rank: str, step: int) -> None:
    """Makes the process of this rank kill itself in the checkpoint of update `step`, before it has written its part."""
    plain = trainer.Trainer._save_rng_state

    def save(self, folder: str) -> None:
        if os.environ["RANK"] == rank and self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, folder)

    trainer.Trainer._save_rng_state = save


def killed_in_the_middle(rank: str, note: Path) -> None:
    """Makes the process of this rank kill itself in its fifth forward pass, and write down when."""
    if os.environ["RANK"] != rank:
        return
    plain, seen = train.build_model, []

    def kill_at_the_fifth(*_) -> None:
        seen.append(True)
        if len(seen) == 5:
            note.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    def build(*args, **options):
        model = plain(*args, **options)
        model.register_forward_pre_hook(kill_at_the_fifth)
        return model

    train.build_model = build


def measure(rows_trained: int) -> None:
    """Samples a second of this launch: LoRA on the embedded BERT's shape, 128 tokens, batches of 16 in each process."""
    execution = fastest_execution()
    recipe = replace(
        RECIPES["qlora_bert"].improved(), quantization=None, num_train_epochs=1, per_device_train_batch_size=16
    )
    state = trainer.process_state(execution.device)
    base_model = PROFILES["quick"].base_model(recipe.base_model)
    model = build_model(recipe, base_model, execution)
    ids = np.random.default_rng(0).integers(1_000, 20_000, (rows_trained, 128)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "label": [0, 1] * (rows_trained // 2), "length": [128] * rows_trained})
    tokenizer = models.load_tokenizer(base_model)
    fitted = loop.fit(model, tokenizer, recipe, data, None, execution, 0)
    if state.is_main_process:
        print(f"{state.num_processes} {torch.get_num_threads()} {fitted.samples_per_second}")


def ratio(rows_trained: int, rounds: int) -> None:
    """Samples a second of two processes over those of one, with as many cores in all, in alternating rounds."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes in (1, 2):
            command = [*TORCHRUN, f"--nproc_per_node={processes}", __file__, "measure", str(rows_trained)]
            threads = str((os.cpu_count() or 2) // processes)
            done = subprocess.run(
                command, env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=True
            )
            speeds[processes].append(float(done.stdout.split()[-1]))
            print(f"{processes} x {threads} threads: {speeds[processes][-1]:.1f} samples/s", flush=True)
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    print(f"Two processes over one: {statistics.median(ratios):.2f} (rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    execution = fastest_execution()
    settings = {"rows": rows_trained, "tokens": 128, "batch_size": 16, "ratio": statistics.median(ratios)}
    rows = [{"processes": processes, "windows": windows} for processes, windows in speeds.items()]
    command = "python tests/two_processes.py"
    StudyRecord("processes", command, None, device_label(execution), settings, rows).save(device_folder(execution))


def main(what: str = "ratio", *arguments: str) -> None:
    if what in ("train", "killed"):
        if what == "killed":
            note, *arguments = arguments
            killed_in_the_middle("1", Path(note))
        small_quick()
        sys.exit(train.main(arguments))
    elif what == "weights":
        checkpoint, folder = arguments
        trainer.process_state("cpu")
        torch.save(train_tiny(checkpoint, Path(folder) / "run", 8), Path(folder) / f"rank{os.environ['RANK']}.pt")
    elif what == "resumed":
        checkpoint, folder, step = arguments
        trainer.process_state("cpu")
        if int(step):
            killed_while_it_saves("1", int(step))
        resumed = train_as_it_is(checkpoint, Path(folder) / "run")
        whole = train_as_it_is(checkpoint, Path(folder) / "another")
        torch.save({"resumed": resumed, "whole": whole}, Path(folder) / f"rank{os.environ['RANK']}.pt")
    elif what == "measure":
        measure(int(arguments[0]))
    else:
        ratio(rows_trained=1_024, rounds=3)


if __name__ == "__main__":
    main(*sys.argv[1:])
