"""Studies: many runs that answer one question. Each is a list in lab/runs, and this command does what has no row yet.

Rows go to Data/full/results/studies as each run ends. The runs of `at_scale` have a record and an adapter each. Stop it
whenever you like: the same command goes on with what is left. With PROFILE=hub the checkpoints are the hub's, and the
rows go to Data/hub.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.special import softmax
from sklearn import metrics
from typer import Argument

from helpers.data import load_splits, split_reviews, tokenize
from helpers.evaluation import bag_of_words, fitted_temperature, frozen_encoder, mean_embeddings, predict_logits
from helpers.models import build_model, load_tokenizer
from helpers.profiles import COMMITTED, PROFILES, Profile, current_precision, device_name, setting
from helpers.recipes import RECIPES, Recipe
from helpers.results import RunRecord, StudyRecord, make_record, now
from helpers.start import command
from helpers.tasks import label_names
from helpers.training import FineTuned, fine_tune
from lab.methods import METHODS, build_method
from lab.news import HEADLINES, load_headlines
from lab.rivals import contrastive_encoder, nearest_centroid

LISTS = Path(__file__).parent / "runs"
NAMES = sorted(path.stem for path in LISTS.glob("*.json"))
FULL = replace(PROFILES["full"], max_length=None, records="results")  # the recipes' own token limits count
SPLIT_SEED = 42  # of the test and validation rows, the same for all runs
BASELINES = ("bag_of_words", "frozen_encoder", "nearest_centroid", "contrastive_encoder")
OWN_FIELDS = ("base_model", "scored_on", "at_scale", "cut_text", "frozen", "peft")  # of a run, not of its recipe
SETTING_LABELS = ("r", "learning_rate", "n_train")  # labels that also set the recipe's field of that name


@dataclass(frozen=True)
class StudyRun:
    """One training, or one baseline, and the rows it is scored on. `labels` and `seed` are its name in the study.

    `n_validation` and `n_test` rows are drawn first and the same for all runs; `scored_on` is "validation" or "test".
    `seed` fixes which of the other rows are the `recipe.n_train` training rows, and head, adapter and order. The last
    step counts. A run `at_scale` has a record and an adapter of its own, and its best epoch counts. `base_model` is
    another checkpoint than the profile's for the recipe. With `cut_text` a bag of words reads what is left of a text
    when it is cut to the encoder's tokens. `frozen` is that of `models.build_model`, `peft` one of
    `methods.METHODS` in place of the recipe's.
    """

    study: str
    recipe: Recipe
    seed: int
    n_validation: int
    n_test: int
    scored_on: str = "test"
    labels: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None
    at_scale: bool = False
    cut_text: bool = False
    frozen: str | None = None
    peft: str | None = None

    def __str__(self) -> str:
        """As a line of progress names it."""
        labels = self.labels or {"recipe": self.recipe.name, "variant": self.recipe.variant}
        return f"{self.study}: {', '.join(f'{name} {value}' for name, value in labels.items())}, seed {self.seed}"

    def checkpoint(self, profile: Profile) -> str:
        """What it trains, or reads."""
        return self.base_model or profile.base_model(self.recipe.base_model)

    def is_done(self, rows: Iterable[dict[str, Any]], profile: Profile = FULL) -> bool:
        """Whether one of `rows` is this run's, or its record is there."""
        if self.at_scale:
            return (profile.results / f"{self.recipe.name}-{self.recipe.variant}-seed{self.seed}.json").exists()
        return any(self.labels.items() <= row.items() and row["seed"] == self.seed for row in rows)


def read_runs(name: str) -> list[StudyRun]:
    """The runs of the study `name`, in the order of its list (its form is in lab/README.md)."""
    listed = json.loads((LISTS / f"{name}.json").read_text(encoding="utf-8"))
    return [run for group in listed["runs"] for run in _runs_of(name, listed, group)]


def _runs_of(name: str, shared: dict[str, Any], group: dict[str, Any]) -> Iterator[StudyRun]:
    entry, labels = {**shared, **group}, group.get("labels", {})
    recipe = RECIPES[entry["recipe"]]
    recipe = recipe.improved() if entry.get("improved") else recipe
    labelled = {key: labels[key] for key in SETTING_LABELS if key in labels}
    recipe = replace(recipe, **shared.get("changes", {}) | labelled | group.get("changes", {}))
    own = {key: entry[key] for key in OWN_FIELDS if key in entry}
    for seed in group["seeds"]:
        yield StudyRun(name, recipe, seed, entry["n_validation"], entry["n_test"], labels=labels, **own)


def read_study(name: str, results: Path = COMMITTED / "full" / "results") -> StudyRecord:
    """The record of a study's rows in a folder of results, the repository's unless another is named.

    Raises FileNotFoundError, naming the command that makes it.
    """
    path = results / "studies" / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not there yet: python -m lab.studies {name}")
    return StudyRecord.load(path)


@lru_cache(maxsize=2)
def splits_of(dataset: str, n_validation: int, n_test: int, profile: Profile = FULL) -> DatasetDict:
    """The corpus without duplicates, its validation and test rows the same for all runs, the others to train on."""
    if dataset == HEADLINES:
        return split_reviews(load_headlines(), None, n_validation, n_test, SPLIT_SEED)
    sized = replace(profile, n_train=None, n_validation=n_validation, n_test=n_test, seed=SPLIT_SEED)
    return load_splits(replace(RECIPES["lora_bert_sst2"], dataset=dataset, n_train=None), sized)


def drawn(n_rows: int, n_train: int | None, seed: int) -> np.ndarray:
    """Which of `n_rows` training rows a run with `seed` takes; None: all, in their order."""
    if n_train is None or n_train >= n_rows:
        return np.arange(n_rows)
    return np.random.default_rng(seed).permutation(n_rows)[:n_train]


def do_run(run: StudyRun, profile: Profile) -> dict[str, Any]:
    """Does `run` and returns its row: labels, seed, rows, updates, accuracy, its interval, and `correct`.

    A run at scale also leaves its record and adapter in the profile's folders. `seconds` are the clock's, whatever else
    the machine did meanwhile: not for a comparison.
    """
    splits = splits_of(run.recipe.dataset, run.n_validation, run.n_test, profile)
    rows = drawn(len(splits["train"]), run.recipe.n_train, run.seed)
    splits = DatasetDict({**splits, "train": splits["train"].select(rows)})
    start = perf_counter()
    record, found = (_baseline if run.recipe.method in BASELINES else _trained)(run, splits, profile)
    scores = {"accuracy": record.metrics["accuracy"], "accuracy_ci95": record.accuracy_ci95, "correct": record.correct}
    ended = {"seconds": round(perf_counter() - start, 1), "device": record.device, "at": now()}
    return {**run.labels, "seed": run.seed, "n_train": len(rows), **found, **scores, **ended}


def _trained(run: StudyRun, splits: DatasetDict, profile: Profile) -> tuple[RunRecord, dict[str, Any]]:
    recipe, checkpoint = run.recipe, run.checkpoint(profile)
    if run.peft:
        model = build_method(run.peft, checkpoint, profile.precision, run.seed, run.labels.get("r"))
    else:
        labels = tuple(label_names(splits["train"]))
        model = build_model(recipe, checkpoint, profile.precision, run.frozen, seed=run.seed, labels=labels)
    validation = splits["validation"]
    if not run.at_scale:
        splits = DatasetDict(train=splits["train"], test=splits[run.scored_on])
    how = {"save": run.at_scale, "prepare": METHODS[run.peft].prepare if run.peft else None}
    result = fine_tune(model, recipe, splits, replace(profile, seed=run.seed), **how)
    record = result.record
    epochs = recipe.epochs(record.n_train)
    a_batch = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    return record, {
        "trainable_params": record.trainable_params,
        "epochs": epochs,
        "updates": ceil(record.n_train / a_batch) * epochs,
        "last_loss": record.history["train"][-1]["loss"],
        **(_calibrated(result, validation, splits["test"], profile) if run.scored_on == "test" else {}),
    }


def _calibrated(result: FineTuned, validation: Dataset, test: Dataset, profile: Profile) -> dict[str, float]:
    """`evaluation.calibration` of the test rows, before and after one temperature that is fitted on validation rows."""
    length, truncation = result.record.max_length, result.record.settings["truncation"]
    tokens = list(tokenize(validation, result.tokenizer, length, truncation)["input_ids"])
    temperature = fitted_temperature(
        predict_logits(result.model, result.tokenizer, tokens, profile.precision), np.array(validation["label"])
    )
    logits, right = np.log(result.probabilities), np.array(test["label"])
    scaled = calibration(logits, right, temperature)
    found = calibration(logits, right) | {f"{name}_scaled": value for name, value in scaled.items()}
    return {"temperature": temperature, **found}


def calibration(
    logits: np.ndarray, references: np.ndarray, temperature: float = 1.0, bins: int = 15
) -> dict[str, float]:
    """Negative log-likelihood and expected calibration error of logits, (n, n_labels), over `temperature`.

    The error is how far accuracy is from the mean probability of the answers, in `bins` of equal width, weighted by
    their rows (Guo et al. 2017, arXiv 1706.04599).
    """
    probabilities = softmax(logits / temperature, axis=1)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == references
    of_bin = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = np.bincount(of_bin, right - sure, bins)
    nll = metrics.log_loss(references, probabilities, labels=range(logits.shape[1]))
    return {"nll": float(nll), "ece": float(np.abs(gaps).sum() / len(references))}


def _baseline(run: StudyRun, splits: DatasetDict, profile: Profile) -> tuple[RunRecord, dict[str, Any]]:
    """A bag of words, or a classifier on mean embeddings; its C is chosen on validation rows."""
    recipe, tokenizer, tuned = run.recipe, load_tokenizer(run.checkpoint(profile)), 0
    tokens = tokenize(splits, tokenizer, recipe.max_length, recipe.truncation)
    ids = {name: list(rows["input_ids"]) for name, rows in tokens.items()}
    if recipe.method == "bag_of_words":
        texts = {name: rows["text"][:] for name, rows in splits.items()}
        if run.cut_text:
            texts = {name: tokenizer.batch_decode(rows, skip_special_tokens=True) for name, rows in ids.items()}
        train, validation = (
            splits[name].remove_columns("text").add_column("text", texts[name]) for name in ("train", "validation")
        )
        model, scored = bag_of_words(train, validation), texts[run.scored_on]
    else:
        checkpoint, precision, own = run.checkpoint(profile), profile.precision, recipe.method
        with tempfile.TemporaryDirectory() as folder:
            if own == "contrastive_encoder":
                tuned = contrastive_encoder(splits["train"], checkpoint, run.seed, precision, Path(folder))
                checkpoint = folder
            vectors = {name: mean_embeddings(checkpoint, tokenizer, rows, precision) for name, rows in ids.items()}
        train, validation = ((vectors[name], splits[name]["label"][:]) for name in ("train", "validation"))
        model = nearest_centroid(train) if own == "nearest_centroid" else frozen_encoder(train, validation)
        scored = vectors[run.scored_on]
    splits = DatasetDict(train=splits["train"], test=splits[run.scored_on])
    last = model[-1]
    found = {"trainable_params": tuned + getattr(last, "coef_", getattr(last, "centroids_", None)).size}
    found |= {"C": last.C} if hasattr(last, "C") else {}
    return make_record(recipe, splits, profile, model.predict(scored)), found


def add_row(run: StudyRun, row: dict[str, Any], profile: Profile) -> StudyRecord:
    """Writes `row` to its study's record, after those that are there, which keep their own devices and days."""
    listed = [_shown_settings(one, profile) for one in read_runs(run.study)]
    settings = {"precision": profile.precision}
    for name in listed[0]:
        values = dict.fromkeys(one[name] for one in listed)
        settings[name] = next(iter(values)) if len(values) == 1 else " and ".join(map(str, values))
    rows = [*_rows_there(run.study, profile), row]
    command = f"python -m lab.studies {run.study}"
    record = StudyRecord(run.study, command, profile.name, device_name(), settings, rows)
    record.save(profile.results / "studies")
    return record


def _shown_settings(run: StudyRun, profile: Profile) -> dict[str, object]:
    settings = {name: getattr(run, name) for name in ("scored_on", "n_validation", "n_test")}
    recipe = {"dataset": run.recipe.dataset, "max_length": run.recipe.max_length}
    return {"base_model": run.checkpoint(profile), **settings, **recipe}


def _rows_there(name: str, profile: Profile) -> list[dict[str, Any]]:
    path = profile.results / "studies" / f"{name}.json"
    return StudyRecord.load(path).rows if path.exists() else []


def studies(names: Annotated[list[str] | None, Argument()] = None, list: bool = False) -> None:
    """Does the runs of some studies, of all when none is named, that have no row yet; with --list it says how many."""
    if unknown := sorted({*(names or ())} - {*NAMES}):
        raise ValueError(f"no study {', '.join(unknown)}; there is {', '.join(NAMES)}")
    profile = PROFILES["hub"] if setting("PROFILE") == "hub" else FULL
    for name in names or NAMES:
        _sitting(name, replace(profile, precision=current_precision()), only_list=list)


def _sitting(name: str, profile: Profile, only_list: bool) -> None:
    runs, rows = read_runs(name), _rows_there(name, profile)
    left = [run for run in runs if not run.is_done(rows, profile)]
    print(f"{name:22s} {len(runs) - len(left):4d} of {len(runs):4d} done", flush=True)
    for run in left if not only_list else ():
        with nullcontext() if run.at_scale else redirect_stdout(None):  # Trainer's losses of a short run are noise
            row = do_run(run, profile)
        if not run.at_scale:
            add_row(run, row, profile)
        print(f"{datetime.now():%H:%M} {run}: {row['accuracy']:.1%} in {row['seconds']:.0f} s", flush=True)


main = command(studies, "Stopped. The same command goes on with what is left.")
