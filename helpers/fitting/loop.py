"""Trains a model on tokenized rows, with smaller batches where memory runs out, and resumes a run."""

import gc
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer

from helpers.base.memory import keep_freed_memory, peak_memory, reset_peak_memory, return_freed_memory
from helpers.base.paths import shown
from helpers.base.speedups import fast_dropout
from helpers.base.writing import NotWritten, saying_no_room
from helpers.fitting.resuming import (
    COMPLETE,
    Clock,
    Saver,
    alone,
    begin,
    clear_halves,
    ended_after,
    identity,
    unfinished,
)
from helpers.fitting.trainer import EVAL_BATCH_SIZE, effective_batch_size, make_trainer, process_state
from helpers.models import check_tokenizer, keep_4bit_layout
from helpers.profiles import Execution
from helpers.recipe import Recipe


class Fit(NamedTuple):
    """What training itself gave: Trainer's log as `RunRecord.history`, seconds without validation, peak memory.

    `samples_per_second` counts the rows of all processes, the memory is this one's. `recipe` has the batches that were
    really used: smaller ones after memory had run out.
    """

    history: dict[str, list[dict[str, float]]]
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    peak_memory_method: str
    recipe: Recipe


def fit(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    train: Dataset,
    validation: Dataset | None,
    execution: Execution,
    seed: int,
    report_to: str = "none",
    checkpoints: Path | None = None,
    restart: bool = False,
    averaged: bool = False,
) -> Fit:
    """Trains `model` in place on tokenized rows and restores its best epoch on `validation` (None: keeps the last).

    `averaged` leaves it at the mean of its weights over the updates of the last epoch (Izmailov et al. 2018, arXiv
    1803.05407); raises ValueError with `validation`, where an epoch is chosen.

    With `checkpoints`, a folder, and `validation` the run can be taken up again: called with the same arguments, it
    goes on at the last whole checkpoint there. They are made every minute and at the end of an epoch; the caller
    removes them, once the result is written. `restart` begins anew. Raises Occupied where the folder holds another
    run's or another process trains there, NotWritten where the disk is full, the earlier checkpoints being as they
    were, and Stopped, with all saved, after Ctrl-C or SIGTERM.

    Where memory runs out it starts again from the same weights and the same seed, with smaller batches and as many more
    of them to an update. Raises MemoryError when that cannot help.
    """
    if averaged and validation is not None:
        raise ValueError("averaged=True keeps the mean of the last epoch, validation rows the best epoch: give one.")
    check_tokenizer(model, tokenizer)
    keep_4bit_layout(model)
    _freeze_libraries()
    state, resumable = process_state(execution.device), checkpoints is not None and validation is not None
    with tempfile.TemporaryDirectory() as scratch, alone(checkpoints, state) if resumable else nullcontext():
        folder = checkpoints if resumable else Path(scratch)
        checkpoint = None
        if resumable:
            run = _identity(model, recipe, train, validation, execution, seed)
            checkpoint, batches = (None, {}) if restart else unfinished(folder, run)
            recipe = replace(recipe, **batches)
            state.wait_for_everyone()  # until all have read it
            if state.is_main_process:
                clear_halves(folder) if checkpoint else begin(folder, run, _batches(recipe))
            state.wait_for_everyone()
        if state.num_processes == 1:  # more of them do not start again by themselves
            _save_trained(model, Path(scratch) / "start.pt")
        eval_batch_size = EVAL_BATCH_SIZE
        while True:
            trainer = make_trainer(
                *(model, tokenizer, recipe, train, validation, execution, str(folder), seed, report_to),
                resumable=resumable,
                averaged=averaged,
            )
            trainer.args.per_device_eval_batch_size = eval_batch_size
            if checkpoint and (epochs := ended_after(checkpoint)):
                trainer.args.num_train_epochs = epochs  # nothing is left to train
            try:
                fitted = _train(trainer, recipe, execution, checkpoint)
                break
            except (RuntimeError, NotWritten) as error:
                if not should_reduce_batch_size(error):
                    if any(folder.glob(f"checkpoint-*/{COMPLETE}")):
                        print(f"Training stopped; started again, it goes on from {shown(folder)}")
                    raise
                recipe = _smaller_batches(recipe, execution)
            # Out here the exception is gone, and with it the frames that held what did not fit.
            del trainer
            model.zero_grad()
            clear_device_cache(garbage_collection=True)
            _restore_trained(model, Path(scratch) / "start.pt")
            eval_batch_size, checkpoint = min(eval_batch_size, recipe.per_device_train_batch_size), None
            if resumable:
                begin(folder, run, _batches(recipe))
            for old in folder.glob("checkpoint-*"):
                shutil.rmtree(old)
    return fitted


@cache
def _freeze_libraries() -> None:
    """Has garbage collection pass over what a process holds when its first training begins, the libraries above all.

    Each training makes full collections, which walk every object there is: seconds of a short one.
    """
    gc.freeze()


def _identity(
    model: torch.nn.Module, recipe: Recipe, train: Dataset, validation: Dataset, execution: Execution, seed: int
) -> dict[str, object]:
    """All that must be the same for a run to go on (see `resuming.identity`)."""
    settings = recipe.stated()
    for name in _batches(recipe):  # which may be halved on the way
        del settings[name]
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return identity(
        settings,
        train,
        validation,
        effective_batch_size=effective_batch_size(recipe, execution),
        processes=process_state(execution.device).num_processes,
        seed=seed,
        checkpoint=base.name_or_path,
        precision=execution.precision,
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    )


def _batches(recipe: Recipe) -> dict[str, int]:
    return {name: getattr(recipe, name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}


def _train(trainer: Trainer, recipe: Recipe, execution: Execution, checkpoint: Path | None = None) -> Fit:
    if trainer.eval_dataset is None:
        trainer.remove_callback(PrinterCallback)
    saver = next((c for c in trainer.callback_handler.callbacks if isinstance(c, Saver)), None)
    keep_freed_memory(execution.device == "cpu" and execution.keep_memory)
    reset_peak_memory(execution.device)
    main = process_state(execution.device).is_main_process
    if checkpoint and main:
        steps = checkpoint.name.rpartition("-")[2]
        print(f"Resuming after {int(steps):,} updates, from {shown(checkpoint.parent)}", flush=True)
    try:
        quick = execution.device == "cpu" and execution.fast_dropout
        with fast_dropout(quick), saver.listening() if saver else nullcontext():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if bar := getattr(callback, "training_bar", None):  # after an error, whose message would end its line
                bar.close()
        # Or every later forward pass stays under autocast, and a training that starts again is not put under it.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        trainer.model._is_accelerate_prepared = False
    state = trainer.state
    trainer.accelerator.wait_for_everyone()  # each process reads the best checkpoint, which goes next
    log, rows = state.log_history, len(trainer.train_dataset) * state.epoch
    seconds = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Clock)).so_far()
    fitted = Fit(_history(log), seconds, rows / seconds, *peak_memory(execution.device), recipe)
    return_freed_memory()
    return fitted


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: weights that train, and buffers. Frozen weights stay as they were loaded."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return weights | dict(model.named_buffers())


def _save_trained(model: torch.nn.Module, path: Path) -> None:
    with saying_no_room(path, "TMPDIR"):
        torch.save(_trained(model), path)  # on disk: a copy in memory would count in what training takes


def _restore_trained(model: torch.nn.Module, path: Path) -> None:
    start = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, tensor in _trained(model).items():
            tensor.copy_(start[name])


def _smaller_batches(recipe: Recipe, execution: Execution) -> Recipe:
    """`recipe` with batches of half the rows (5, which has no half: of 1) and as many more of them to an update."""
    size, processes = recipe.per_device_train_batch_size, process_state(execution.device).num_processes
    smaller = next((rows for rows in range(size // 2, 0, -1) if size % rows == 0), None)
    if smaller is None:
        raise MemoryError(
            "Out of memory with one text at a time. A shorter max_length takes less, so does gradient checkpointing "
            "(Execution.gradient_checkpointing); PROFILE=quick caps the tokens at 256."
        )
    if processes > 1:  # the others wait for this one's gradients and cannot be told
        raise MemoryError(
            f"Out of memory in one of {processes} processes, at batches of {size} in each. Start them again with "
            f"--batch-size {smaller}: updates stay as large."
        )
    accumulated = recipe.gradient_accumulation_steps * size // smaller
    print(f"Out of memory at batches of {size}: training again with batches of {smaller}, {accumulated} to an update")
    return replace(recipe, per_device_train_batch_size=smaller, gradient_accumulation_steps=accumulated)


def _history(log: list[dict]) -> dict[str, list[dict[str, float]]]:
    """Trainer's log as two lists: "train" (step, epoch, loss) and "validation" (step, epoch, loss, accuracy)."""
    train = [{key: row[key] for key in ("step", "epoch", "loss")} for row in log if "loss" in row]
    validation = [
        {"step": row["step"], "epoch": row["epoch"], "loss": row["eval_loss"], "accuracy": row["eval_accuracy"]}
        for row in log
        if "eval_loss" in row
    ]
    return {"train": train, "validation": validation}
