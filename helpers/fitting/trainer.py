"""`transformers.Trainer` over tokenized rows, with the few things set right that it gets wrong here."""

import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset
from peft import PeftModel
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import ParameterList, functional
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers.base.writing import NotWritten, saying_no_room
from helpers.evaluation import classification_metrics
from helpers.fitting.resuming import Clock, Saver
from helpers.models import positions
from helpers.profiles import Execution
from helpers.recipe import Recipe

EVAL_BATCH_SIZE = 16  # larger batches fall out of a CPU's caches and are slower
LOGS_PER_EPOCH = 10
# Batches of every length seem to leave holes of every size in a CPU's memory; with few, one fits where another was.
# Short texts take little memory, and padding would cost them time (`python -m helpers.benchmarks padding`).
LONG, MULTIPLE = 256, 32  # tokens


def process_state(device: str) -> PartialState:
    """This process's place among those that `torchrun` or `accelerate launch` started; without them it is the only one.

    `device` is "cuda" or "cpu". On CUDA each process gets a GPU of its own, and "cuda" means that one from here on:
    call it before anything is loaded. They wait up to two hours for one another: the first may download and prepare
    alone. One that ends, or is killed, ends the others at once.
    """
    return PartialState(cpu=device == "cpu", timeout=timedelta(hours=2))


def training_arguments(
    recipe: Recipe,
    n_train: int,
    execution: Execution,
    output_dir: str,
    seed: int,
    report_to: str = "none",
    validate: bool = True,
    resumable: bool = False,
) -> TrainingArguments:
    """`recipe` and `execution` in Trainer's words; `n_train` (rows) sets how often the training loss is logged.

    Without `validate` there are no passes over validation rows, no checkpoints and no bars. The checkpoints of a
    `resumable` run hold all that it needs to go on, those of others the weights.
    """
    steps_per_epoch = -(-n_train // effective_batch_size(recipe, execution))
    return TrainingArguments(
        output_dir=output_dir,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.num_train_epochs,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_ratio,  # a float below 1 is a share of all steps
        weight_decay=recipe.weight_decay,
        optim="adamw_torch_fused" if recipe.optim == "adamw_torch" else recipe.optim,  # the same, in one pass
        bf16=execution.precision == "bf16",
        fp16=execution.precision == "fp16",
        use_cpu=execution.device == "cpu",
        gradient_checkpointing=execution.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if validate else "no",
        save_strategy="epoch" if validate else "no",
        save_only_model=not resumable,
        save_total_limit=3 if resumable else 1,  # the best, the newest, which may be half written, and the one before
        restore_callback_states_from_checkpoint=True,  # or early stopping would forget how long it has waited
        load_best_model_at_end=validate,
        metric_for_best_model="balanced_accuracy" if recipe.class_weights else "accuracy",
        logging_steps=max(1, steps_per_epoch // LOGS_PER_EPOCH),
        report_to=report_to,
        disable_tqdm=not validate,  # False must be said: transformers hides it where its log level is above "warning"
        seed=seed,
        dataloader_pin_memory=execution.device == "cuda",
        ddp_find_unused_parameters=False,  # every weight that trains is used in every step
    )


def effective_batch_size(recipe: Recipe, execution: Execution) -> int:
    """Rows that one update sees: the batches of all processes, accumulated."""
    processes = process_state(execution.device).num_processes
    return recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * processes


def make_trainer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    train: Dataset,
    validation: Dataset | None,
    execution: Execution,
    output_dir: str,
    seed: int,
    report_to: str = "none",
    resumable: bool = False,
    averaged: bool = False,
) -> Trainer:
    """A `transformers.Trainer` over tokenized rows, stopping early where the recipe asks for it.

    With `validation=None` the last step counts: nothing is validated, saved or stopped early. `averaged`: see `fit`.
    """
    callbacks = [Clock(), *([Saver()] if resumable else []), *([_MeanOfLastEpoch()] if averaged else [])]
    if recipe.early_stopping_patience and validation is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = _Trainer(
        model=model,
        args=training_arguments(
            recipe, len(train), execution, output_dir, seed, report_to, validation is not None, resumable
        ),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=_multiple(model, train)),
        compute_loss_func=partial(_mean_loss, weights=class_weights(recipe, train)),
        compute_metrics=_balanced_metrics if recipe.class_weights else _compute_metrics,
        callbacks=callbacks,
    )
    # BERT's forward takes **kwargs, so Trainer believes that it averages over accumulated batches. It does not.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def _multiple(model: torch.nn.Module, train: Dataset) -> int | None:
    """What batches are padded to a multiple of: `MULTIPLE` tokens where there are rows of more than `LONG`.

    Else None, to their longest; so also where a padded batch could be longer than the encoder has positions.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    limit = positions(base.base_model)
    fits = limit == float("inf") or limit % MULTIPLE == 0
    return MULTIPLE if fits and max(train["length"]) > LONG else None


class _LengthGroups(LengthGroupedSampler):
    """transformers' groups of like lengths in an order that follows from seed and epoch alone.

    Its own order hangs on the state of torch's generator, so a run that is resumed would see other rows.
    """

    def __init__(self, sampler: LengthGroupedSampler, trainer: Trainer):
        super().__init__(sampler.batch_size, lengths=sampler.lengths)
        self.trainer = trainer

    def __iter__(self):
        epoch = int((self.trainer.state.epoch or 0) + 1e-6)
        self.generator = torch.Generator().manual_seed(1_000_003 * self.trainer.args.seed + epoch)
        return super().__iter__()


class _Trainer(Trainer):
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        return _LengthGroups(sampler, self) if isinstance(sampler, LengthGroupedSampler) else sampler

    def _save_checkpoint(self, *arguments, **options) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with saying_no_room(folder, "TMPDIR" if self.args.save_only_model else "DATA_DIR"):
                super()._save_checkpoint(*arguments, **options)
        except NotWritten:
            shutil.rmtree(folder, ignore_errors=True)  # half a checkpoint is of no use
            raise


class _MeanOfLastEpoch(TrainerCallback):
    """Leaves the weights that train at their mean over the updates of the last epoch."""

    def __init__(self):
        self.mean: AveragedModel | None = None

    def on_step_end(self, args, state, control, model=None, **_) -> None:
        if state.max_steps - state.global_step < state.max_steps // state.num_train_epochs:
            weights = _weights_that_train(model)
            self.mean = self.mean or AveragedModel(weights)
            self.mean.update_parameters(weights)

    def on_train_end(self, args, state, control, model=None, **_) -> None:
        with torch.no_grad():
            for weight, mean in zip(_weights_that_train(model), self.mean.module, strict=True):
                weight.copy_(mean)


def _weights_that_train(model: torch.nn.Module) -> ParameterList:
    return ParameterList(weight for weight in model.parameters() if weight.requires_grad)


def _mean_loss(
    outputs: dict[str, torch.Tensor],
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | None = None,
    weights: list[float] | None = None,
) -> torch.Tensor:
    """Cross-entropy over (rows, n_labels) logits, each row counting the same in its update (`num_items_in_batch` rows),
    or as its class's weight says.

    The mean of the batches' own means, which Trainer takes otherwise, counts a row of an epoch's short last batch more.
    """
    logits = outputs["logits"]
    if weights is not None:
        # Divided by rows, not by the batch's weights, which would cancel where a batch holds a single class.
        loss = functional.cross_entropy(logits, labels, logits.new_tensor(weights), reduction="sum")
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
    if num_items_in_batch is None:
        return functional.cross_entropy(logits, labels)
    return functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def class_weights(recipe: Recipe, train: Dataset) -> list[float] | None:
    """What a row of each class counts in the loss, shape (n_labels,); None: the same in all.

    "balanced" is scikit-learn's: rows / (n_labels x the class's rows), over all training rows 1 in the mean. Raises
    ValueError where a class has none.
    """
    if recipe.class_weights is None:
        return None
    label = train.features["label"]
    labels = np.array(train["label"][:])
    n_labels = label.num_classes if isinstance(label, ClassLabel) else int(labels.max()) + 1
    if missing := sorted(set(range(n_labels)) - set(labels.tolist())):
        raise ValueError(
            f"class_weights={recipe.class_weights!r} needs rows of every class; class {missing[0]} has none."
        )
    return compute_class_weight(recipe.class_weights, classes=np.arange(n_labels), y=labels).tolist()


def _compute_metrics(output: EvalPrediction) -> dict[str, float]:
    return classification_metrics(output.predictions.argmax(axis=-1), output.label_ids)


def _balanced_metrics(output: EvalPrediction) -> dict[str, float]:
    balanced = float(balanced_accuracy_score(output.label_ids, output.predictions.argmax(axis=-1)))
    return {**_compute_metrics(output), "balanced_accuracy": balanced}
