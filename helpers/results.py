"""Records: one JSON file a run or study. Everything the figures, the tables and the README state is read from here."""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin

from helpers.base.paths import shown
from helpers.base.writing import write_json
from helpers.profiles import Profile

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn")
COMMAND = "SERIES_COMMAND"  # the environment variable that tells a notebook's kernel what started it
LATER_FIELDS = {"revisions", "run"}  # that earlier records do not have


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """The commit of this checkout, with `-dirty` when `helpers` differs from it; None outside a checkout.

    Records and stored outputs, which a run changes itself, make it no other code.
    """

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def running_commit() -> str | None:
    """`git_commit` when this process first asked for it, as its code stays what it was, whatever is committed later."""
    return git_commit()


def running_command() -> str | None:
    """The command of this series that this process runs, to be typed again; None in a notebook that was opened by hand.

    The home folder is written as `~`.
    """
    if command := os.environ.get(COMMAND):
        return command
    words = [word for word in sys.orig_argv[1:] if word != "-u"]  # which torchrun adds
    if len(words) < 2 or words[0] != "-m" or not words[1].startswith("helpers."):
        return None
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    start = ["torchrun", f"--nproc_per_node={processes}"] if processes else ["python"]
    return shlex.join([*start, *words]).replace(f"{Path.home()}{os.sep}", f"~{os.sep}")


Kind = TypeVar("Kind", bound="_Record")


class _Record:
    """What both kinds of record have: a place in a folder, by their name."""

    def save(self, folder: Path) -> Path:
        """Writes `<folder>/<name>.json` whole or not at all, and returns its path."""
        return write_json(Path(folder) / f"{self.name}.json", asdict(self))

    @classmethod
    def load(cls: type[Kind], path: Path) -> Kind:
        """The record in `path`. Raises ValueError, naming the file, for what is no JSON object, and for a field that it
        does not know, that is missing or of another type."""
        name = Path(path).name
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError, too
            raise ValueError(f"{name} is no JSON that can be read: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{name} holds a {type(data).__name__}, not an object with a record's fields.")
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"{name} has unknown fields: {', '.join(unknown)}.")
        if missing := sorted(known - set(data) - LATER_FIELDS):
            raise ValueError(f"{name} lacks fields: {', '.join(missing)}.")
        if wrong := [entry for entry in fields(cls) if entry.name in data and not _fits(data[entry.name], entry.type)]:
            found, kind = repr(data[wrong[0].name])[:60], wrong[0].type
            expected = kind if get_args(kind) else kind.__name__
            raise ValueError(f"{name}: {wrong[0].name} is {found}; it must be {expected}.")
        return cls(**data)


@dataclass
class RunRecord(_Record):
    """One run: what was trained, on what, how it scored and what it cost.

    Sizes are bytes, times seconds, `max_length` tokens; `confusion_matrix` has true classes as rows. `history` holds
    "train" (step, epoch, loss) and "validation" (step, epoch, loss, accuracy) lists. A field that does not apply to
    the run, such as `adapter_bytes` of a bag of words, is None. `correct` has one character a test row, in their order:
    1 where the prediction is right; it makes paired tests between runs on the same rows possible. `revisions` says
    which version of checkpoint and data was loaded, by name: the hub's commit, a sha256 or a package's version.
    `command`, under `profile`, does it again (see `running_command`).
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
    created_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    git_commit: str | None = field(default_factory=running_commit)

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
    def best_validation_accuracy(self) -> float:
        """The highest of all epochs."""
        return max(epoch["accuracy"] for epoch in self.history["validation"])

    @property
    def above_largest_class(self) -> bool:
        """Whether the accuracy's interval lies above what always naming the test rows' largest class would score."""
        rows = [sum(row) for row in self.confusion_matrix]
        return self.accuracy_ci95[0] > max(rows) / sum(rows)


@dataclass
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
    created_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    git_commit: str | None = field(default_factory=running_commit)


def load_records(folder: Path) -> list[RunRecord]:
    """Every record in `folder`, by file name; an empty list where there is none."""
    return [RunRecord.load(path) for path in sorted(Path(folder).glob("*.json"))]


def summary(records: list[RunRecord], profile: Profile) -> str:
    """The runs of a profile as a text table: what was trained, its accuracy, and the bag of words on the same rows."""

    def rows_of(record: RunRecord) -> tuple:
        return record.dataset, record.n_train, record.n_validation, record.n_test, record.seed

    baselines = {rows_of(record): record for record in records if record.variant == "bag_of_words"}
    rows = [("recipe", "variant", "n test", "accuracy [95 % interval]", "bag of words", "train s")]
    for record in records:
        if record.variant in ("bag_of_words", "untrained"):
            continue
        baseline = baselines.get(rows_of(record))
        rows.append(
            (
                record.recipe,
                record.variant,
                f"{record.n_test:,}",
                record.score,
                f"{baseline.metrics['accuracy']:.1%}" if baseline else "",
                f"{record.train_seconds:.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    place = shown(profile.figures)
    return "\n".join([*lines, "", f"Figures: {place}/*.png   Records: {place}/results/*.json"])


def _fits(value: object, kind: object) -> bool:
    """Whether a value from JSON is of a field's type, down to what lists and dicts hold."""
    if kind is object:
        return True
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in parts)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if isinstance(value, bool):  # which Python counts as a number
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
