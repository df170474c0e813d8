"""Runs with a name, which is what decides their result: a run whose row is in its record is not run again."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from hashlib import sha256
from time import perf_counter

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from helpers.baselines import bag_of_words, frozen_encoder, mean_embeddings
from helpers.checkpoints import checkpoint_revision
from helpers.data import dataset_revision, load_splits, tokenize
from helpers.fitting.loop import fit
from helpers.models import build_model, count_parameters, load_tokenizer
from helpers.profiles import PROFILES, Execution
from helpers.recipe import Recipe
from helpers.recipes import RECIPES
from helpers.results import RunRecord
from helpers.studies.compare import scores
from helpers.training import class_probabilities, fine_tune

# Of the code that decides what a run gives: data, splits, models, training. Raise it when the test of it fails
# (tests/test_runs.py), and everything is measured anew. Numbers of another version are never mixed with these.
# (Runs on 512 tokens were made before batches of long texts were padded to a multiple, which changes roundings alone.)
VERSION = 1
SPLIT_SEED = 42  # of the test and validation rows, the same for all runs


@dataclass(frozen=True)
class Run:
    """One training, or one baseline, and the rows it is scored on.

    `study` names the record that its row goes to, `labels` what sets the row apart there, such as `(("r", 8),)`.
    `n_validation` and `n_test` are drawn first and the same for all runs, `scored_on` is one of the two names;
    `seed` fixes which of the other rows are the `recipe.n_train` training rows, and head, adapter and order. The last
    step counts. With `at_scale` the run has a RunRecord and an adapter of its own, and its best epoch counts.
    `cut_text` gives a bag of words no more of a text than the encoder's tokens. With `averaged` the mean of the weights
    over the last epoch counts.
    """

    study: str
    labels: tuple[tuple[str, object], ...]
    recipe: Recipe
    base_model: str
    n_validation: int
    n_test: int
    seed: int
    scored_on: str = "test"
    at_scale: bool = False
    cut_text: bool = False
    averaged: bool = False

    @property
    def decisive(self) -> dict[str, object]:
        """All that decides the result but for the device, which moves it by its number format."""
        settings = asdict(self.recipe)
        for name in ("name", "source", "base_model", "method", "assumed", "overrides"):
            del settings[name]
        settings["variant"] = self.recipe.method  # as runs were named before `method` was a field of its own
        if settings["class_weights"] is None:  # which came later, and leaves the names of earlier runs alone
            del settings["class_weights"]
        names = ("n_validation", "n_test", "seed", "scored_on", "at_scale", "cut_text")
        rows = {name: getattr(self, name) for name in names} | ({"averaged": True} if self.averaged else {})
        versions = {**checkpoint_revision(self.base_model), **dataset_revision(self.recipe.dataset, FULL)}
        return {"settings": settings, "rows": rows, "loaded": versions, "version": VERSION}

    @property
    def id(self) -> str:
        """The run's name: the first 16 digits of the sha256 of `decisive`."""
        return sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The run as a progress line names it."""
        labels = " ".join(f"{name} {_short(value)}" for name, value in self.labels)
        return f"{self.study}: {labels}, seed {self.seed}"


FULL = replace(PROFILES["full"], max_length=None)  # whose token limits are the runs' own


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@lru_cache(maxsize=2)
def splits_of(dataset: str, n_validation: int, n_test: int) -> DatasetDict:
    """The corpus without duplicates, its validation and test rows the same for all runs, the others to train on."""
    profile = replace(FULL, n_validation=n_validation, n_test=n_test, seed=SPLIT_SEED)
    return load_splits(replace(RECIPES["lora_bert_sst2"], dataset=dataset, n_train=None), profile)


@lru_cache(maxsize=4)
def _tokens(
    dataset: str, n_validation: int, n_test: int, base_model: str, max_length: int, truncation: str
) -> DatasetDict:
    return tokenize(splits_of(dataset, n_validation, n_test), load_tokenizer(base_model), max_length, truncation)


@lru_cache(maxsize=4)
def _embeddings(*key) -> dict[str, np.ndarray]:
    execution, *of_tokens = key
    base_model = of_tokens[3]
    tokenizer = load_tokenizer(base_model)
    return {
        name: mean_embeddings(base_model, tokenizer, list(rows["input_ids"]), execution)
        for name, rows in _tokens(*of_tokens).items()
    }


def drawn(n_rows: int, n_train: int | None, seed: int) -> np.ndarray:
    """Which of `n_rows` training rows a run with `seed` takes; None: all, in their order."""
    if n_train is None or n_train >= n_rows:
        return np.arange(n_rows)
    return np.random.default_rng(seed).permutation(n_rows)[:n_train]


def row_of(run: Run, execution: Execution) -> dict[str, object]:
    """Does `run` and returns its row: labels, seed, rows, updates, accuracy, `correct`, and the run's name.

    Its `seconds` are the clock's, whatever else the machine did meanwhile: for the forecast, not for a comparison.
    """
    recipe = run.recipe
    key = (recipe.dataset, run.n_validation, run.n_test)
    tokens_key = (*key, run.base_model, recipe.max_length, recipe.truncation)
    splits, tokens = splits_of(*key), _tokens(*tokens_key)
    rows = drawn(len(splits["train"]), recipe.n_train, run.seed)
    start = perf_counter()
    extra: dict[str, object] = {}
    if recipe.method == "bag_of_words":
        tokenizer = load_tokenizer(run.base_model)
        texts = _cut(splits, tokens, tokenizer) if run.cut_text else splits
        model = bag_of_words(texts["train"].select(rows), texts["validation"])
        predictions = model.predict(list(texts[run.scored_on]["text"]))
        extra = {"trainable_params": model[-1].coef_.size, "C": model[-1].C}
    elif recipe.method == "frozen_encoder":
        vectors = _embeddings(execution, *tokens_key)
        labels = {name: np.array(part["label"]) for name, part in splits.items()}
        train = vectors["train"][rows], labels["train"][rows]
        model = frozen_encoder(train, (vectors["validation"], labels["validation"]))
        predictions = model.predict(vectors[run.scored_on])
        extra = {"trainable_params": model[-1].coef_.size, "C": model[-1].C}
    else:
        tokenizer = load_tokenizer(run.base_model)
        model = build_model(recipe, run.base_model, execution, run.seed)
        recipe = replace(recipe, num_train_epochs=recipe.epochs(len(rows)))
        train = tokens["train"].select(rows)
        fitted = fit(model, tokenizer, recipe, train, None, execution, run.seed, averaged=run.averaged)
        predictions = class_probabilities(model, tokenizer, tokens[run.scored_on], execution).argmax(axis=1)
        losses = [entry["loss"] for entry in fitted.history["train"]]
        extra = {
            "trainable_params": count_parameters(model)[0],
            "epochs": recipe.num_train_epochs,
            "updates": -(-len(rows) // recipe.per_device_train_batch_size) * recipe.num_train_epochs,
            "last_loss": round(losses[-1], 4) if losses else None,
        }
    seconds = round(perf_counter() - start, 1)
    row = {**dict(run.labels), "seed": run.seed, "n_train": len(rows), **extra, "seconds": seconds}
    return {**row, **scores(predictions, splits[run.scored_on]), "run": run.id, "device": execution.device_name}


def train_at_scale(run: Run, execution: Execution, at_once: int = 1) -> RunRecord:
    """Does an `at_scale` run: its record goes to `Data/full/results`, its adapter to `Data/full/checkpoints`.

    The record's settings name how many runs shared the device, where it was not this one `at_once`.
    """
    recipe, profile = run.recipe, replace(FULL, seed=run.seed)
    splits = splits_of(recipe.dataset, run.n_validation, run.n_test)
    rows = drawn(len(splits["train"]), recipe.n_train, run.seed)
    splits = DatasetDict({**splits, "train": splits["train"].select(rows)})
    model = build_model(recipe, run.base_model, execution, run.seed)
    record = replace(fine_tune(model, recipe, splits, profile, execution).record, run=run.id)
    if at_once > 1:
        record.settings["runs_at_once"] = at_once
    record.save(profile.results)
    return record


def row_or_metrics(run: Run, execution: Execution, at_once: int = 1) -> tuple[dict, float]:
    """Does `run`: its row, of one at scale the metrics, as that has its record; and the seconds it took."""
    start = perf_counter()
    if run.at_scale:
        return train_at_scale(run, execution, at_once).metrics, perf_counter() - start
    row = row_of(run, execution)
    row["at"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return row, perf_counter() - start


def record_of(run: Run) -> RunRecord | None:
    """The committed record of an `at_scale` run; None where it is another run's, or there is none."""
    path = FULL.results / f"{run.recipe.name}-{run.recipe.variant}-seed{run.seed}.json"
    record = RunRecord.load(path) if path.exists() else None
    return record if record and record.run == run.id else None


def _cut(splits: DatasetDict, tokens: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """The texts as the encoder reads them: cut to its tokens, and these put together again."""

    def decode(rows: Dataset) -> Dataset:
        texts = tokenizer.batch_decode(list(rows["input_ids"]), skip_special_tokens=True)
        return Dataset.from_dict({"text": texts, "label": rows["label"]})

    return DatasetDict({name: decode(rows) for name, rows in tokens.items()})
