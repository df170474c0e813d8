"""Records: one JSON file a run or study. Everything the figures, the tables and the README state is read from here."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
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
from sklearn.metrics import confusion_matrix

from helpers.checkpoints import checkpoint_revision
from helpers.data import dataset_name, dataset_revision
from helpers.evaluation import accuracy_interval, classification_metrics, correct_rows
from helpers.files import shown, write_json
from helpers.models import count_parameters, weight_bytes
from helpers.profiles import Profile, device_name
from helpers.recipe import Recipe

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn")
COMMAND = "SERIES_COMMAND"  # the environment variable that tells a notebook's kernel what started it


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


@cache
def git_commit() -> str | None:
    """The commit of this checkout when first asked, with `-dirty` when its code differs; None outside a checkout."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def running_command() -> str | None:
    """The command of this series that this process runs, to be typed again, the home folder as `~`; None in a notebook
    that was opened by hand."""
    words = sys.orig_argv[1:]
    if not any(word.startswith(("helpers.", "lab.")) for word in words):
        return os.environ.get(COMMAND)
    return shlex.join(["python", *words]).replace(f"{Path.home()}{os.sep}", f"~{os.sep}")


def now() -> str:
    """Today's date and time, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class _Record:
    """What both kinds of record have: a place in a folder, by their name."""

    def save(self, folder: Path) -> Path:
        """Writes `<folder>/<name>.json` whole or not at all, and returns its path."""
        return write_json(Path(folder) / f"{self.name}.json", asdict(self))

    @classmethod
    def load(cls, path: Path):
        """The record in `path`. Raises ValueError, naming the file, for what is no such record."""
        try:
            return TypeAdapter(cls).validate_json(Path(path).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{Path(path).name} is no record: {where}: {first['msg']}") from error


@dataclass(config=ConfigDict(extra="forbid"))
class RunRecord(_Record):
    """One run: what was trained, on what, how it scored and what it cost.

    Sizes are bytes, times seconds, `max_length` tokens; `confusion_matrix` has true classes as rows. `history` holds
    "train" (step, epoch, loss) and "validation" (step, epoch, loss, accuracy) lists. A field that does not apply to
    the run, such as `adapter_bytes` of a bag of words, is None. `correct` has one character a test row, in their order:
    1 where the prediction is right; it makes paired tests between runs on the same rows possible. `revisions` says
    which version of checkpoint and data was loaded, by name: the hub's commit, a sha256 or a package's version.
    `command`, under `profile`, does it again; `run` is a name that earlier runs were given.
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
    def score(self) -> str:
        """The accuracy with its interval, such as `75.0% [71.2%, 78.8%]`."""
        low, high = self.accuracy_ci95
        return f"{self.metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]"

    @property
    def above_largest_class(self) -> bool:
        """Whether the accuracy's interval lies above what always naming the test rows' largest class would score."""
        rows = [sum(row) for row in self.confusion_matrix]
        return self.accuracy_ci95[0] > max(rows) / sum(rows)


@dataclass(config=ConfigDict(extra="forbid"))
class StudyRecord(_Record):
    """Many short runs, or many measurements, that answer one question: `rows` holds one dict for each.

    `command` reruns it. `settings` holds what all rows share; `profile` is None where the device alone decides.
    """

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


def summary(records: list[RunRecord], profile: Profile) -> str:
    """The runs of a profile as a text table: what was trained, its accuracy, and the bag of words on the same rows."""

    def rows_of(record: RunRecord) -> tuple:
        return record.dataset, record.n_train, record.n_validation, record.n_test, record.seed

    bags = {
        rows_of(record): f"{record.metrics['accuracy']:.1%}" for record in records if record.variant == "bag_of_words"
    }
    rows = [
        {
            "recipe": record.recipe,
            "variant": record.variant,
            "n test": f"{record.n_test:,}",
            "accuracy [95 % interval]": record.score,
            "bag of words": bags.get(rows_of(record), ""),
            "train s": "" if record.train_seconds is None else f"{record.train_seconds:.0f}",
        }
        for record in records
        if record.variant not in ("bag_of_words", "untrained")
    ]
    place = shown(profile.figures)
    table = pd.DataFrame(rows).to_string(index=False) if rows else "No runs yet."
    return f"{table}\n\nFigures: {place}/*.png   Records: {place}/results/*.json"


def make_record(
    recipe: Recipe, splits: DatasetDict, profile: Profile, predictions: np.ndarray, model: torch.nn.Module | None = None
) -> RunRecord:
    """The record of `predictions`, shape (n_test,), on the test rows; without a model what describes one is empty."""
    references = np.array(splits["test"]["label"])
    labels = range(len(splits["test"].features["label"].names))
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
        metrics=classification_metrics(predictions, references),
        accuracy_ci95=list(accuracy_interval(predictions, references)),
        confusion_matrix=confusion_matrix(references, predictions, labels=labels).tolist(),
        correct=correct_rows(predictions, references),
        settings=json.loads(json.dumps(recipe.stated())),  # lists for tuples, as the record comes back from its file
        revisions=dataset_revision(recipe.dataset, profile) | (checkpoint_revision(base_model) if model else {}),
    )


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: str) -> None:
    """Starts a new peak-memory reading for `device` ("cuda" or "cpu"), where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # Linux: resets VmHWM, see proc(5)


def peak_memory(device: str) -> tuple[int | None, str]:
    """(bytes, how they were measured): the peak since `reset_peak_memory`; None where the system does not tell it.

    On CUDA it is what torch's allocator handed out. On a CPU it is the resident memory of the whole process: Python,
    the libraries and the data included.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), "torch.cuda.max_memory_allocated"
    if _CLEAR.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"))):
        return int(peak[1]) * 1024, "peak resident set of the process during training (VmHWM)"
    return None, "not measured: only Linux tells the peak since a moment"
