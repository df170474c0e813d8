"""A recipe, data and a model in; a trained model, its history and its record out. A thin layer over Trainer."""

import gc
import json
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import ClassLabel, Dataset, DatasetDict
from peft import PeftModel
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from torch.utils.data import Sampler
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers import tracking
from helpers.baselines import bag_of_words
from helpers.data import dataset_name, tokenize
from helpers.efficiency import fast_dropout, peak_memory, reset_peak_memory
from helpers.evaluation import (
    accuracy_interval,
    classification_metrics,
    correct_rows,
    predict_logits,
)
from helpers.models import (
    check_tokenizer,
    count_parameters,
    keep_4bit_layout,
    load_tokenizer,
    revisions,
    save_adapter,
    weight_bytes,
)
from helpers.profiles import Execution, Profile, shown
from helpers.recipes import Recipe
from helpers.results import NotWritten, RunRecord, saying_no_room
from helpers.resuming import COMPLETE, Clock, Saver, alone, begin, clear_halves, ended_after, identity, unfinished

EVAL_BATCH_SIZE = 16  # larger batches fall out of a CPU's caches and are slower
LOGS_PER_EPOCH = 10

# Each training makes full garbage collections, which walk every object there is, those of the imported libraries too.
# Frozen objects are passed over: a short training would spend seconds on them.
gc.freeze()


@dataclass
class FineTuned:
    """A trained model (best checkpoint on validation accuracy) and what is known of it.

    `probabilities` has shape (n_test, n_labels), in the order of the test rows. `adapter` is the saved adapter's
    folder, None for a model without one.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: RunRecord
    probabilities: np.ndarray
    adapter: Path | None

    @property
    def predictions(self) -> np.ndarray:
        """Predicted labels of the test rows, shape (n_test,)."""
        return self.probabilities.argmax(axis=1)


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
) -> Trainer:
    """A `transformers.Trainer` over tokenized rows, stopping early where the recipe asks for it.

    With `validation=None` the last step counts: nothing is validated, saved or stopped early.
    """
    callbacks = [Clock(), *([Saver()] if resumable else [])]
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
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=partial(_mean_loss, weights=class_weights(recipe, train)),
        compute_metrics=_balanced_metrics if recipe.class_weights else _compute_metrics,
        callbacks=callbacks,
    )
    # BERT's forward takes **kwargs, so Trainer believes that it averages over accumulated batches. It does not.
    trainer.model_accepts_loss_kwargs = False
    return trainer


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
            shutil.rmtree(folder, ignore_errors=True)  # a half of no use
            raise


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
    keep: bool = False,
) -> Fit:
    """Trains `model` in place on tokenized rows and restores its best epoch on `validation` (None: keeps the last).

    With `checkpoints`, a folder, and `validation` the run can be taken up again: called with the same arguments, it
    goes on at the last whole checkpoint there, which are made every minute and at the end of an epoch, and are gone
    when it has ended; with `keep` the caller removes them, once the result is written. `restart` begins anew. Raises
    Occupied where the folder holds another run's or another process trains there, NotWritten where the disk is full,
    the earlier checkpoints being as they were, and Stopped, with all saved, after Ctrl-C or SIGTERM.

    Where memory runs out it starts again from the same weights and the same seed, with smaller batches and as many more
    of them to an update. Raises MemoryError when that cannot help.
    """
    check_tokenizer(model, tokenizer)
    keep_4bit_layout(model)
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
                model, tokenizer, recipe, train, validation, execution, str(folder), seed, report_to, resumable
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
        if resumable and state.is_main_process and not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return fitted


def _identity(
    model: torch.nn.Module, recipe: Recipe, train: Dataset, validation: Dataset, execution: Execution, seed: int
) -> dict[str, object]:
    """All that must be the same for a run to go on (see `resuming.identity`)."""
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("assumed", "overrides")}
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
    reset_peak_memory(execution.device)
    main = process_state(execution.device).is_main_process
    if checkpoint and main:
        steps = checkpoint.name.rpartition("-")[2]
        print(f"Resuming after {int(steps):,} updates, from {shown(checkpoint.parent)}", flush=True)
    try:
        with fast_dropout(execution), saver.listening() if saver else nullcontext():
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
    return Fit(_history(log), seconds, rows / seconds, *peak_memory(execution.device), recipe)


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
            "(Execution.gradient_checkpointing); PROFILE=quick caps the tokens at 128."
        )
    if processes > 1:  # the others wait for this one's gradients and cannot be told
        raise MemoryError(
            f"Out of memory in one of {processes} processes, at batches of {size} in each. Start them again with "
            f"--batch-size {smaller}: updates stay as large."
        )
    accumulated = recipe.gradient_accumulation_steps * size // smaller
    print(f"Out of memory at batches of {size}: training again with batches of {smaller}, {accumulated} to an update")
    return replace(recipe, per_device_train_batch_size=smaller, gradient_accumulation_steps=accumulated)


def fine_tune(
    model: torch.nn.Module,
    recipe: Recipe,
    splits: DatasetDict,
    profile: Profile,
    execution: Execution,
    *,
    track: bool = False,
    output: Path | None = None,
    checkpoints: Path | None = None,
    restart: bool = False,
    keep: bool = False,
) -> FineTuned | None:
    """Trains `model` in place by the recipe (at most the profile's epochs), restores its best epoch, scores it on the
    test rows once.

    Writes the record to `Data/<profile>/results` and the adapter to `Data/<profile>/checkpoints`; with `output` the
    adapter to that folder and no record. `splits` holds reviews as text (data.load_splits). `track` logs to W&B where
    that is set up. While it trains, its checkpoints lie in `checkpoints` (None: a hidden folder, named after the run,
    beside the adapter's). A run that was stopped or killed goes on from there, `restart` begins it anew (see `fit`).
    They are gone when the results are written; with `keep` the caller removes them.

    Among several processes (torchrun) each trains on its share of every update, the batch of `recipe` being that of
    one process; the first alone scores, writes and prints, and all others get None.
    """
    state = process_state(execution.device)
    recipe = replace(recipe, num_train_epochs=profile.epochs(recipe.epochs(len(splits["train"]))))
    tokenizer, tokens = tokenize_splits(recipe, splits, profile)
    held = sum(weight_bytes(model).values())
    labels = splits["test"].features["label"].names
    track = track and state.is_main_process
    checkpoints = checkpoints or profile.checkpoints / f".{recipe.name}-{recipe.variant}-seed{profile.seed}"
    tracked = tracking.wandb_run(f"{recipe.name}-{recipe.variant}", asdict(recipe)) if track else nullcontext()
    with tracked as run:
        fitted = fit(
            model,
            tokenizer,
            recipe,
            tokens["train"],
            tokens["validation"],
            execution,
            profile.seed,
            report_to="wandb" if run else "none",
            checkpoints=checkpoints,
            restart=restart,
            keep=True,  # scoring takes its time, too
        )
        if not state.is_main_process:
            return None
        probabilities = class_probabilities(model, tokenizer, tokens["test"], execution)
        record = _record(fitted.recipe, splits, profile, probabilities.argmax(axis=1), execution, model)
        record = replace(
            record,
            device=record.device if state.num_processes == 1 else f"{state.num_processes} x {record.device}",
            settings={**record.settings, "effective_batch_size": effective_batch_size(fitted.recipe, execution)},
            weights_bytes=held,
            train_seconds=fitted.seconds,
            train_samples_per_second=fitted.samples_per_second,
            peak_memory_bytes=fitted.peak_memory_bytes,
            peak_memory_method=fitted.peak_memory_method,
            history=fitted.history,
        )
        if recipe.class_weights:
            record.settings["weight_of_class"] = dict(zip(labels, class_weights(recipe, splits["train"]), strict=True))
        tracking.log_results(run, record.metrics, splits["test"]["label"], probabilities.argmax(axis=1), labels)
    adapter = None
    if isinstance(model, PeftModel):
        adapter = save_adapter(
            model,
            tokenizer,
            output or profile.checkpoints / record.name,
            base_model=record.base_model,
            quantization=recipe.quantization,
            max_length=record.max_length,
            truncation=recipe.truncation,
        )
        record.adapter_bytes = (adapter / "adapter_model.safetensors").stat().st_size
    if output is None:
        record.save(profile.results)
    if not keep:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return FineTuned(model, tokenizer, record, probabilities, adapter)


def score_untrained(
    model: torch.nn.Module, recipe: Recipe, splits: DatasetDict, profile: Profile, execution: Execution
) -> RunRecord:
    """Scores `model` as it is, its head freshly drawn, on the test rows; writes and returns the record."""
    tokenizer, tokens = tokenize_splits(recipe, DatasetDict(test=splits["test"]), profile)
    predictions = class_probabilities(model, tokenizer, tokens["test"], execution).argmax(axis=1)
    untrained = replace(recipe, variant="untrained")
    record = _record(untrained, splits, profile, predictions, execution, model)
    record.n_train = record.n_validation = 0
    record.save(profile.results)
    return record


def score_bag_of_words(recipe: Recipe, splits: DatasetDict, profile: Profile) -> tuple[RunRecord, np.ndarray]:
    """Fits TF-IDF with logistic regression to the training rows, its C chosen on the validation rows, and scores it on
    the test rows.

    Writes the record; returns it with the predicted labels, shape (n_test,).
    """
    start = perf_counter()
    model = bag_of_words(splits["train"], splits["validation"])
    seconds = perf_counter() - start
    predictions = model.predict(list(splits["test"]["text"]))
    coefficients = model[-1].coef_
    record = replace(
        _record(replace(recipe, variant="bag_of_words"), splits, profile, predictions),
        base_model="TF-IDF (1-2 grams) + logistic regression",
        trainable_params=coefficients.size,
        total_params=coefficients.size,
        weights_bytes=coefficients.nbytes,
        train_seconds=seconds,
        train_samples_per_second=len(splits["train"]) / seconds,
        settings={"C": model[-1].C},
    )
    record.save(profile.results)
    return record, predictions


def class_probabilities(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, tokens: Dataset, execution: Execution
) -> np.ndarray:
    """Class probabilities of tokenized rows, shape (len(tokens), n_labels)."""
    check_tokenizer(model, tokenizer)
    return softmax(predict_logits(model, tokenizer, list(tokens["input_ids"]), execution), axis=1)


def tokenize_splits(
    recipe: Recipe, splits: DatasetDict, profile: Profile
) -> tuple[PreTrainedTokenizerBase, DatasetDict]:
    """The tokenizer of the recipe's checkpoint in this profile, and `splits` tokenized with it."""
    tokenizer = load_tokenizer(profile.base_model(recipe.base_model))
    max_length = profile.tokens(recipe.max_length)
    return tokenizer, DatasetDict(
        {name: tokenize(rows, tokenizer, max_length, recipe.truncation) for name, rows in splits.items()}
    )


def _record(
    recipe: Recipe,
    splits: DatasetDict,
    profile: Profile,
    predictions: np.ndarray,
    execution: Execution | None = None,
    model: torch.nn.Module | None = None,
) -> RunRecord:
    """The record of predictions on the test rows; without a model the fields that describe one stay empty."""
    references = np.array(splits["test"]["label"])
    labels = range(len(splits["test"].features["label"].names))
    trainable, total = count_parameters(model) if model else (0, 0)
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("assumed", "overrides")}
    settings = json.loads(json.dumps(settings))  # lists for tuples, as the record comes back from its file
    return RunRecord(
        recipe=recipe.name,
        variant=recipe.variant,
        profile=profile.name,
        base_model=profile.base_model(recipe.base_model),
        dataset=dataset_name(recipe.dataset, profile),
        n_train=len(splits["train"]),
        n_validation=len(splits["validation"]),
        n_test=len(references),
        max_length=profile.tokens(recipe.max_length) if model else None,
        seed=profile.seed,
        device=(execution or Execution("cpu", "fp32", "eager")).device_name,
        precision=execution.precision if execution else None,
        trainable_params=trainable,
        total_params=total,
        weights_bytes=sum(weight_bytes(model).values()) if model else 0,
        metrics=classification_metrics(predictions, references),
        accuracy_ci95=list(accuracy_interval(predictions, references)),
        confusion_matrix=confusion_matrix(references, predictions, labels=labels).tolist(),
        correct=correct_rows(predictions, references),
        settings=settings,
        revisions=revisions(recipe, profile, with_model=model is not None),
    )


def _history(log: list[dict]) -> dict[str, list[dict[str, float]]]:
    """Trainer's log as two lists: "train" (step, epoch, loss) and "validation" (step, epoch, loss, accuracy)."""
    train = [{key: row[key] for key in ("step", "epoch", "loss")} for row in log if "loss" in row]
    validation = [
        {"step": row["step"], "epoch": row["epoch"], "loss": row["eval_loss"], "accuracy": row["eval_accuracy"]}
        for row in log
        if "eval_loss" in row
    ]
    return {"train": train, "validation": validation}
