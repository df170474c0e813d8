"""A recipe, data and a model in; a trained model, its history and its record out. A thin layer over Trainer."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from scipy.special import softmax
from sklearn.metrics import confusion_matrix
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.adapters import WEIGHTS, save_adapter
from helpers.base import tracking
from helpers.baselines import bag_of_words
from helpers.data import dataset_name, tokenize
from helpers.evaluation import accuracy_interval, classification_metrics, correct_rows, predict_logits
from helpers.fitting.loop import fit
from helpers.fitting.trainer import class_weights, effective_batch_size, process_state
from helpers.models import check_tokenizer, count_parameters, load_tokenizer, revisions, weight_bytes
from helpers.profiles import Execution, Profile
from helpers.recipe import Recipe
from helpers.results import RunRecord


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
    that is set up. While it trains, its checkpoints lie in `checkpoints` (None: a hidden folder beside the profile's
    adapters, named after the run, or after `output`). A run that was stopped or killed goes on from there, `restart`
    begins it anew (see `fit`). They are gone when the results are written; with `keep` the caller removes them.

    Among several processes (torchrun) each trains on its share of every update, the batch of `recipe` being that of
    one process; the first alone scores, writes and prints, and all others get None.
    """
    state = process_state(execution.device)
    of_one = -(-len(splits["train"]) // state.num_processes)  # the rows that one process trains on
    recipe = replace(recipe, num_train_epochs=profile.epochs(recipe.epochs(of_one)))
    tokenizer, tokens = tokenize_splits(recipe, splits, profile)
    held = sum(weight_bytes(model).values())
    labels = splits["test"].features["label"].names
    track = track and state.is_main_process
    name = output.name if output else f"{recipe.name}-{recipe.variant}-seed{profile.seed}"
    checkpoints = checkpoints or profile.checkpoints / f".{name}"
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
        record.adapter_bytes = (adapter / WEIGHTS).stat().st_size
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
    return tokenizer, tokenize(splits, tokenizer, max_length, recipe.truncation)


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
    settings = json.loads(json.dumps(recipe.stated()))  # lists for tuples, as the record comes back from its file
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
