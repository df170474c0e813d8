"""Records: one JSON file a run or study. Everything the figures, the tables and the README state is read from here."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, field
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import DatasetDict
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from sklearn import metrics

from helpers.checkpoints import loaded_revision
from helpers.data import dataset_name, dataset_revision
from helpers.evaluation import correct_rows, resampled
from helpers.files import write_json
from helpers.models import count_parameters, weight_bytes
from helpers.profiles import Profile, current_profile, device_name
from helpers.recipes import Recipe
from helpers.tasks import TASKS, Task, label_names, targets

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn")
COMMAND = "SERIES_COMMAND"  # the environment variable that tells a notebook's kernel what started it


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in PACKAGES}}


@cache
def git_commit() -> str | None:
    """The commit of this checkout when first asked, with `-dirty` when its code differs; None outside a checkout."""
    options = {"cwd": Path(__file__).parent, "text": True, "stderr": subprocess.DEVNULL}
    try:
        commit = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], **options).strip()
        return commit + ("-dirty" if subprocess.check_output(["git", "status", "--porcelain", "."], **options) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def running_command() -> str | None:
    """The command of this series that this process runs; None in a notebook that was opened by hand."""
    words = sys.orig_argv[1:]
    if any(word.startswith(("helpers.", "lab.")) for word in words):
        return shlex.join(["python", *words]).replace(f"{Path.home()}{os.sep}", f"~{os.sep}")
    return os.environ.get(COMMAND)


def now() -> str:
    """The date and time, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class _Record:
    def save(self, folder: Path) -> Path:
        """Writes `<folder>/<name>.json` whole or not at all, and returns its path."""
        return write_json(Path(folder) / f"{self.name}.json", asdict(self))

    @classmethod
    def load(cls, path: Path):
        """The record in `path`. Raises ValueError, naming the file and the field, for what is no such record."""
        try:
            return TypeAdapter(cls).validate_json(Path(path).read_bytes())
        except ValidationError as error:
            raise ValueError(f"{Path(path).name} is no record: {error}") from error


@dataclass(config=ConfigDict(extra="forbid"))
class RunRecord(_Record):
    """One run: what was trained, on what, how it scored and what it cost.

    Sizes are bytes, times seconds, `max_length` tokens; `confusion_matrix` has true classes as rows. `history` holds
    "train" (step, epoch, loss) and "validation" (step, epoch, loss, accuracy) lists. `correct` has one character a
    test row, 1 where the prediction is right. `command`, under `profile`, does it again. `score_ci95` is the interval
    of what leads for several labels a text or a number; the accuracy's and the matrix are empty there, and for numbers
    `correct`.
    """

    recipe: str
    variant: str
    profile: str
    base_model: str
    dataset: str
    n_train: int
    n_validation: int
    n_test: int
    max_length: int | None
    seed: int
    device: str
    precision: str | None
    trainable_params: int
    total_params: int
    weights_bytes: int
    metrics: dict[str, float]
    accuracy_ci95: list[float]
    confusion_matrix: list[list[int]]
    correct: str
    train_seconds: float | None = None
    train_samples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_method: str | None = None
    history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    adapter_bytes: int | None = None
    settings: dict[str, object] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    score_ci95: list[float] = field(default_factory=list)
    run: str | None = None
    command: str | None = field(default_factory=running_command)
    versions: dict[str, str] = field(default_factory=versions)
    created_at: str = field(default_factory=now)
    git_commit: str | None = field(default_factory=git_commit)

    @property
    def name(self) -> str:
        """The record's file name without `.json`."""
        return f"{self.recipe}-{self.variant}-seed{self.seed}"

    @property
    def task(self) -> Task:
        """What its labels are."""
        return TASKS[self.settings.get("task", "single")]

    @property
    def score(self) -> str:
        """The accuracy, or what leads for the task, with its interval, such as `75.0% [71.2%, 78.8%]`."""
        form, interval = self.task.form, self.score_ci95 or self.accuracy_ci95
        return f"{form} [{form}, {form}]".format(self.metrics[self.task.headline], *interval)


@dataclass(config=ConfigDict(extra="forbid"))
class StudyRecord(_Record):
    """Many runs or measurements that answer one question, a dict each; `settings` holds what they share."""

    name: str
    command: str
    profile: str | None
    device: str
    settings: dict[str, object]
    rows: list[dict[str, object]]
    versions: dict[str, str] = field(default_factory=versions)
    created_at: str = field(default_factory=now)
    git_commit: str | None = field(default_factory=git_commit)


def load_records(folder: Path) -> list[RunRecord]:
    """Every record in `folder`, by file name; an empty list where there is none."""
    return [RunRecord.load(path) for path in sorted(Path(folder).glob("*.json"))]


def summary(records: list[RunRecord]) -> str:
    """Runs as a text table: what was trained, its accuracy, and how long it took."""
    rows = [(run.recipe, run.variant, f"{run.n_test:,}", run.score, run.train_seconds) for run in records]
    columns = ["recipe", "variant", "n test", "accuracy [95 % interval]", "train s"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False, float_format="{:.0f}".format)


def check_stored(measured: Mapping[str, float], stored: Mapping[str, float], points: float = 4) -> str:
    """One line on whether accuracies are those that a notebook stores, to within `points` of a percent: another CPU or
    number format rounds otherwise. Raises AssertionError where they are not. Under another profile nothing is stored.
    """
    if current_profile().name != "quick":
        return "The stored accuracies are those of PROFILE=quick."
    away = {name: round(100 * (measured[name] - value), 1) for name, value in stored.items()}
    assert all(abs(gap) <= points for gap in away.values()), f"points away from what is stored: {away}"
    shown = ", ".join(f"{name} {value:.1%}" for name, value in stored.items())
    return f"Accuracy to within {points:g} points of what is stored: {shown}"


def make_record(
    recipe: Recipe, splits: DatasetDict, profile: Profile, predictions: np.ndarray, model: torch.nn.Module | None = None
) -> RunRecord:
    """The record of `predictions`, shape (n_test,), on the test rows; without a model what describes one is empty."""
    references, labels = targets(splits["test"]), range(len(label_names(splits["test"])))
    task, single = TASKS[recipe.task], recipe.task == "single"
    score = lambda rows: task.score(predictions[rows], references[rows])  # noqa: E731
    interval = list(resampled(score, len(references), 5_000 if single else 1_000)[:2])
    base_model = profile.base_model(recipe.base_model)
    trainable, total = count_parameters(model) if model else (0, 0)
    return RunRecord(
        recipe=recipe.name,
        variant=recipe.variant,
        profile=profile.name,
        base_model=base_model,
        dataset=dataset_name(recipe.dataset, profile),
        n_train=len(splits["train"]),
        n_validation=len(splits.get("validation", ())),
        n_test=len(references),
        max_length=profile.tokens(recipe.max_length) if model else None,
        seed=profile.seed,
        device=device_name(),
        precision=profile.precision if model else None,
        trainable_params=trainable,
        total_params=total,
        weights_bytes=sum(weight_bytes(model).values()) if model else 0,
        metrics=task.metrics(predictions, references),
        accuracy_ci95=interval if single else [],
        confusion_matrix=metrics.confusion_matrix(references, predictions, labels=labels).tolist() if single else [],
        correct="" if recipe.task == "regression" else correct_rows(predictions, references),
        score_ci95=[] if single else interval,
        settings=recipe.stated(),
        revisions=dataset_revision(recipe.dataset, profile) | (loaded_revision(base_model) if model else {}),
    )


def reset_peak_memory(device: str) -> None:
    """Starts a new peak-memory reading for `device` ("cuda" or "cpu"); of a process's memory, on Linux alone."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def peak_memory(device: str) -> tuple[int | None, str]:
    """(bytes, how they were measured): the GPU's memory, or the whole process's, since `reset_peak_memory`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), "torch.cuda.max_memory_allocated"
    if not Path("/proc/self/clear_refs").exists():
        return None, "not measured: only Linux tells the peak since a moment"
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(peak[1]) * 1024, "peak resident set of the process during training (VmHWM)"
