"""transformers' Trainer for a recipe: it goes on where it was killed, and in smaller batches where memory runs out."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import find_executable_batch_size
from datasets import DatasetDict
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from helpers.evaluation import compute_metrics
from helpers.files import clear_disk_errors, shown
from helpers.profiles import Profile, device, setting
from helpers.recipes import Recipe
from helpers.results import reset_peak_memory
from helpers.tasks import TASKS

UPDATE = ("per_device_train_batch_size", "gradient_accumulation_steps")


def process_state() -> PartialState:
    """This process's place among those that `torchrun` started; without it, it is the only one. On CUDA each gets a GPU
    of its own: call it before anything is loaded."""
    return PartialState(cpu=device() == "cpu")


def training_arguments(recipe: Recipe, profile: Profile, folder: Path, **changes) -> TrainingArguments:
    """`recipe` and `profile` in Trainer's words; `changes` are arguments of TrainingArguments in place of these."""
    same = ("learning_rate", "lr_scheduler_type", "weight_decay", "num_train_epochs", "gradient_checkpointing", *UPDATE)
    arguments = {name: getattr(recipe, name) for name in same} | {
        "output_dir": str(folder),
        "warmup_steps": recipe.warmup_ratio,  # a float below 1 is a share of all steps
        "optim": "adamw_torch_fused" if recipe.optim == "adamw_torch" else recipe.optim,  # the same, in one pass
        "bf16": profile.precision == "bf16",
        "fp16": profile.precision == "fp16",
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "restore_callback_states_from_checkpoint": True,  # or early stopping would forget how long it has waited
        "load_best_model_at_end": True,
        "metric_for_best_model": "balanced_accuracy" if recipe.class_weights else TASKS[recipe.task].best,
        "logging_steps": 0.1 / recipe.num_train_epochs,  # a share of all steps: ten times an epoch
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "seed": profile.seed,
        "use_cpu": device() == "cpu",
        "torch_compile": setting("COMPILE") not in ("", "0"),
        "ddp_find_unused_parameters": False,  # every weight that trains is used in every step
    }
    return TrainingArguments(**arguments | changes)


def train(
    model,
    tokenizer,
    recipe: Recipe,
    tokens: DatasetDict,
    profile: Profile,
    folder: Path | None,
    report_to="none",
    prepare=None,
) -> Trainer:
    """Trains `model` in place on tokenized rows, its checkpoints in `folder` (None: it cannot be resumed); returns the
    Trainer. For the rest see `training.fine_tune`."""
    size, processes = recipe.per_device_train_batch_size, process_state().num_processes

    def smaller_sizes() -> Iterator[int]:
        # Several processes cannot change it on their way: one would wait for the other's gradients.
        yield from (part for part in range(size // 2, 0, -1) if size % part == 0 and processes == 1)
        raise MemoryError(
            f"Out of memory with batches of {size} and less. A shorter max_length takes less, and so do "
            "gradient_checkpointing=True and, among several processes, a smaller per_device_train_batch_size."
        )

    def attempt(batch_size: int) -> Trainer:
        parts = size // batch_size
        if parts > 1:
            print(f"Out of memory: training again with batches of {batch_size}, {parts} in place of each")
            model.load_state_dict(torch.load(start, weights_only=True), strict=False)
            model.zero_grad()
        update = dict(zip(UPDATE, (batch_size, recipe.gradient_accumulation_steps * parts), strict=True))
        fitting = replace(recipe, **update)
        checkpoints = folder / f"batches-of-{batch_size}" if folder else Path(scratch)
        trainer = make_trainer(model, tokenizer, fitting, tokens, profile, checkpoints, report_to)
        if prepare:
            prepare(trainer)
        reset_peak_memory(device())
        train_or_resume(trainer)
        return trainer

    with tempfile.TemporaryDirectory() as scratch, clear_disk_errors(folder or scratch):
        start = Path(scratch) / "start.pt"  # on disk: a copy in memory would count in what training takes
        torch.save({name: weight for name, weight in model.named_parameters() if weight.requires_grad}, start)
        # Not as a decorator: before accelerate 1.15 that form takes no function for the next size.
        return find_executable_batch_size(attempt, size, smaller_sizes().__next__)()


def make_trainer(model, tokenizer, recipe, tokens: DatasetDict, profile, folder: Path, report_to: str) -> Trainer:
    """The Trainer of `train`; without validation rows there is no best epoch, and nothing is saved."""
    validate = "validation" in tokens
    changes = {} if validate else {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    args = training_arguments(recipe, profile, folder, report_to=report_to, disable_tqdm=not validate, **changes)
    args._n_gpu = min(args.n_gpu, 1)  # importing bitsandbytes counts the GPUs before the others are hidden
    # Batches of every length fragment a CPU's memory, and each is compiled: long texts are padded to few lengths.
    multiple = 64 if args.torch_compile else 32 if max(tokens["train"]["length"]) > 256 else 1
    fits = profile.tokens(recipe.max_length) % multiple == 0
    callbacks = [Watcher()]
    if validate and recipe.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=tokens["train"],
        eval_dataset=tokens.get("validation"),
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple if fits else None),
        processing_class=tokenizer,
        compute_loss_func=weighted_loss(tokens["train"]["label"][:]) if recipe.class_weights else None,
        compute_metrics=partial(compute_metrics, task=recipe.task),
        # Some models answer with hidden states, too, which would be gathered of every row.
        preprocess_logits_for_metrics=lambda logits, _: logits[0] if isinstance(logits, tuple) else logits,
        callbacks=callbacks,
    )
    trainer.model_accepts_loss_kwargs = False  # BERT's forward takes **kwargs, but does not average over batches
    if not validate:
        trainer.remove_callback(PrinterCallback)  # a line for every loss
    return trainer


def train_or_resume(trainer: Trainer) -> None:
    """Trains, from the last whole checkpoint in `output_dir` where there is one; halves of others are removed."""
    args, folder, checkpoint = trainer.args, Path(trainer.args.output_dir), None
    with args.main_process_first():
        for path in folder.glob("checkpoint-*"):
            # Trainer writes its state last, but each process its own random state.
            try:
                TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
                whole = len(list(path.glob("rng_state*"))) == args.world_size
            except (OSError, ValueError):
                whole = False
            if not whole:
                shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and (checkpoint := get_last_checkpoint(str(folder))):
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        print(f"Resuming after {state.global_step:,} updates, from {shown(folder)}", flush=True)
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            args.num_train_epochs = round(state.epoch)  # only the result is missing: Trainer would go on
    trainer.resumed = checkpoint is not None  # then the seconds of all its sittings are not known
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        # Or later forward passes stay under autocast, and a training that starts again is not put under it.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        trainer.model._is_accelerate_prepared = False
    trainer.accelerator.wait_for_everyone()  # each process reads the best checkpoint, which goes next


class Watcher(TrainerCallback):
    """Gives each epoch its order, has a checkpoint saved every minute, and ends a training whose loss is not finite."""

    saved = 0.0

    def on_epoch_begin(self, args, state, control, train_dataloader, **_) -> None:
        # Else the order follows from torch's generator, which is in another state where a training goes on.
        batches = train_dataloader.batch_sampler
        epoch = int((state.epoch or 0) + 1e-6)
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + epoch)
        getattr(batches, "batch_sampler", batches).sampler.generator = generator

    def on_step_end(self, args, state, control, **_) -> None:
        self.saved = self.saved or perf_counter()
        # Several processes would have to agree on the step: they save at the end of an epoch alone.
        if perf_counter() - self.saved > 60 and args.world_size == 1 and args.save_strategy != "no":
            # What is logged first is looked at: no checkpoint holds weights that are no numbers.
            control.should_save, control.should_log, self.saved = True, True, perf_counter()

    def on_log(self, args, state, control, logs, **_) -> None:
        # fp16's scaler meets infinite gradients as a matter of course, and leaves those updates out.
        for name in ("loss", "eval_loss", "train_loss") + (() if args.fp16 else ("grad_norm",)):
            if not isfinite(logs.get(name, 0)):
                kept = "" if get_last_checkpoint(args.output_dir) is None else " Its last checkpoint is kept."
                raise ValueError(
                    f"{name} is {logs[name]} after {state.global_step:,} updates: the training has diverged. Try a "
                    f"lower learning_rate, or PRECISION=fp32.{kept}"
                )


def weighted_loss(labels: list[int]):
    """A loss for Trainer in which each class counts the same, however few its rows (scikit-learn's "balanced")."""
    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels).tolist()

    def loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        logits = outputs["logits"]
        # Divided by rows, not by the batch's weights, which would cancel where a batch holds a single class.
        total = cross_entropy(logits, labels, logits.new_tensor(weights), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss
