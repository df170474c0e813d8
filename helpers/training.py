"""A recipe, data and a model in; a trained model, its history and its record out. A thin layer over Trainer."""

import gc
import json
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from scipy.special import softmax
from sklearn.metrics import confusion_matrix
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

from helpers import tracking
from helpers.data import dataset_name, tokenize
from helpers.efficiency import fast_dropout, peak_memory, reset_peak_memory
from helpers.evaluation import (
    accuracy_interval,
    bag_of_words,
    classification_metrics,
    correct_rows,
    predict_logits,
)
from helpers.models import count_parameters, keep_4bit_layout, load_tokenizer, save_adapter, weight_bytes
from helpers.profiles import Execution, Profile
from helpers.recipes import Recipe
from helpers.results import RunRecord

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
    """What training itself gave: Trainer's log as `RunRecord.history`, seconds without validation, peak memory."""

    history: dict[str, list[dict[str, float]]]
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    peak_memory_method: str


def training_arguments(
    recipe: Recipe,
    n_train: int,
    execution: Execution,
    output_dir: str,
    seed: int,
    report_to: str = "none",
    validate: bool = True,
) -> TrainingArguments:
    """`recipe` and `execution` in Trainer's words; `n_train` (rows) sets how often the training loss is logged.

    Without `validate` there are no passes over validation rows, no checkpoints and no bars.
    """
    steps_per_epoch = -(-n_train // (recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps))
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
        optim=recipe.optim,
        bf16=execution.precision == "bf16",
        fp16=execution.precision == "fp16",
        use_cpu=execution.device == "cpu",
        gradient_checkpointing=execution.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if validate else "no",
        save_strategy="epoch" if validate else "no",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=validate,
        metric_for_best_model="accuracy",
        logging_steps=max(1, steps_per_epoch // LOGS_PER_EPOCH),
        report_to=report_to,
        disable_tqdm=not validate,  # False must be said: transformers hides it where its log level is above "warning"
        seed=seed,
        dataloader_pin_memory=execution.device == "cuda",
    )


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
) -> Trainer:
    """A plain `transformers.Trainer` over tokenized rows, stopping early where the recipe asks for it.

    With `validation=None` the last step counts: nothing is validated, saved or stopped early.
    """
    callbacks = []
    if recipe.early_stopping_patience and validation is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer = Trainer(
        model=model,
        args=training_arguments(
            recipe, len(train), execution, output_dir, seed, report_to, validate=validation is not None
        ),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_compute_metrics,
        callbacks=callbacks,
    )
    # BERT's forward takes **kwargs, so Trainer believes that it averages over accumulated batches. It does not: without
    # this line gradients and logged losses are gradient_accumulation_steps times too large.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def _compute_metrics(output: EvalPrediction) -> dict[str, float]:
    return classification_metrics(output.predictions.argmax(axis=-1), output.label_ids)


def fit(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    train: Dataset,
    validation: Dataset | None,
    execution: Execution,
    seed: int,
    report_to: str = "none",
) -> Fit:
    """Trains `model` in place on tokenized rows and restores its best epoch on `validation` (None: keeps the last)."""
    keep_4bit_layout(model)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(model, tokenizer, recipe, train, validation, execution, scratch, seed, report_to)
        if validation is None:
            trainer.remove_callback(PrinterCallback)
        reset_peak_memory(execution.device)
        with fast_dropout(execution):
            trainer.train()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # or every later forward stays under autocast
        log = trainer.state.log_history
        seconds = _train_seconds(log)
        return Fit(_history(log), seconds, len(train) * trainer.state.epoch / seconds, *peak_memory(execution.device))


def fine_tune(
    model: torch.nn.Module,
    recipe: Recipe,
    splits: DatasetDict,
    profile: Profile,
    execution: Execution,
    *,
    track: bool = False,
    output: Path | None = None,
) -> FineTuned:
    """Trains `model` in place by the recipe (at most the profile's epochs), restores its best epoch, scores it on the
    test rows once.

    Writes the record to `Data/<profile>/results` and the adapter to `Data/<profile>/checkpoints`; with `output` the
    adapter to that folder and no record. `splits` holds reviews as text (data.load_splits). `track` logs to W&B where
    that is set up.
    """
    recipe = replace(recipe, num_train_epochs=profile.epochs(recipe.num_train_epochs))
    tokenizer, tokens = tokenize_splits(recipe, splits, profile)
    held = sum(weight_bytes(model).values())
    labels = splits["test"].features["label"].names
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
        )
        probabilities = class_probabilities(model, tokenizer, tokens["test"], execution)
        record = _record(recipe, splits, profile, probabilities.argmax(axis=1), execution, model)
        record = replace(
            record,
            weights_bytes=held,
            train_seconds=fitted.seconds,
            train_samples_per_second=fitted.samples_per_second,
            peak_memory_bytes=fitted.peak_memory_bytes,
            peak_memory_method=fitted.peak_memory_method,
            history=fitted.history,
        )
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
    """Fits TF-IDF with logistic regression to the training rows and scores it on the test rows.

    Writes the record; returns it with the predicted labels, shape (n_test,).
    """
    start = perf_counter()
    model = bag_of_words(splits["train"], profile.seed)
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
        settings={},
    )
    record.save(profile.results)
    return record, predictions


def class_probabilities(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, tokens: Dataset, execution: Execution
) -> np.ndarray:
    """Class probabilities of tokenized rows, shape (len(tokens), n_labels)."""
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
        device=execution.device_name if execution else "cpu",
        precision=execution.precision if execution else None,
        trainable_params=trainable,
        total_params=total,
        weights_bytes=sum(weight_bytes(model).values()) if model else 0,
        metrics=classification_metrics(predictions, references),
        accuracy_ci95=list(accuracy_interval(predictions, references)),
        confusion_matrix=confusion_matrix(references, predictions, labels=labels).tolist(),
        correct=correct_rows(predictions, references),
        settings=settings,
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


def _train_seconds(log: list[dict]) -> float:
    """Seconds of training proper: Trainer's whole run less its validation passes."""
    whole = next(row["train_runtime"] for row in log if "train_runtime" in row)
    return whole - sum(row.get("eval_runtime", 0.0) for row in log)
