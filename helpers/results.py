"""The ledger: one JSON record a run. Everything the figures, the tables and the README state is read from here."""

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin
from uuid import uuid4
from zlib import crc32

import psutil

from helpers.profiles import Profile, shown

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn")
LATER_FIELDS = {"revisions", "run"}  # that earlier records do not have


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """The commit of this checkout, with `-dirty` when files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@dataclass
class RunRecord:
    """One run: what was trained, on what, how it scored and what it cost.

    Sizes are bytes, times seconds, `max_length` tokens; `confusion_matrix` has true classes as rows. `history` holds
    "train" (step, epoch, loss) and "validation" (step, epoch, loss, accuracy) lists. A field that does not apply to
    the run, such as `adapter_bytes` of a bag of words, is None. `correct` has one character a test row, in their order:
    1 where the prediction is right; it makes paired tests between runs on the same rows possible. `revisions` says
    which version of checkpoint and data was loaded, by name: the hub's commit, a sha256 or a package's version.
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
    versions: dict[str, str] = field(default_factory=versions)
    created_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    git_commit: str | None = field(default_factory=git_commit)

    @property
    def name(self) -> str:
        """The record's file name without `.json`."""
        return f"{self.recipe}-{self.variant}-seed{self.seed}"

    @property
    def above_largest_class(self) -> bool:
        """Whether the accuracy's interval lies above what always naming the test rows' largest class would score."""
        rows = [sum(row) for row in self.confusion_matrix]
        return self.accuracy_ci95[0] > max(rows) / sum(rows)

    def save(self, folder: Path) -> Path:
        """Writes `<folder>/<name>.json` whole or not at all, and returns its path."""
        return write_json(Path(folder) / f"{self.name}.json", asdict(self))

    @classmethod
    def load(cls, path: Path) -> "RunRecord":
        """The record in `path`. Raises ValueError, naming the file, for what is no JSON object, and for a field that it
        does not know, that is missing or of another type."""
        return _load(cls, path)


@dataclass
class StudyRecord:
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
    git_commit: str | None = field(default_factory=git_commit)

    def save(self, folder: Path) -> Path:
        """Writes `<folder>/<name>.json` whole or not at all, and returns its path."""
        return write_json(Path(folder) / f"{self.name}.json", asdict(self))

    @classmethod
    def load(cls, path: Path) -> "StudyRecord":
        """The record in `path`. Raises ValueError, naming the file, for what is no JSON object, and for a field that it
        does not know, that is missing or of another type."""
        return _load(cls, path)


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
        low, high = record.accuracy_ci95
        baseline = baselines.get(rows_of(record))
        rows.append(
            (
                record.recipe,
                record.variant,
                f"{record.n_test:,}",
                f"{record.metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
                f"{baseline.metrics['accuracy']:.1%}" if baseline else "",
                f"{record.train_seconds:.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    place = shown(profile.figures)
    return "\n".join([*lines, "", f"Figures: {place}/*.png   Records: {place}/results/*.json"])


def _load(cls, path: Path):
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


def write_json(path: Path, data: dict) -> Path:
    """Writes `data` to `path` whole or not at all (see `new_file`)."""
    return write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Writes `text` to `path` in UTF-8, whole or not at all (see `new_file`)."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


class NotWritten(OSError):
    """There was no room to write something; what was there before is as it was."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `path` is as it was. It has a name of its own, so that several runs may
    write one `path` at once: the last counts. A process that is killed leaves it behind, hidden, beside `path`, until
    this machine writes `path` again. Raises NotWritten where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _beside(path)
    try:
        with saying_no_room(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder`, in place of what was there, when the block ends without an error.

    After an error nothing is left of it, and `folder` is as it was. On Linux the two exchange their names in one step.
    Elsewhere the earlier one is set aside first, to `.<name>-before`: a process that is killed right then leaves it
    there, and `put_back` gives it its name again, which this function and whatever loads an adapter begin with. What
    else it leaves goes when this machine writes `folder` again. Several runs may write one `folder` at once: the last
    counts. Raises NotWritten where the disk is full.
    """
    folder = Path(folder)
    put_back(folder)
    _remove_leftovers(folder)
    created = [parent for parent in folder.parents if not parent.exists()]
    temporary = _beside(folder)
    try:
        with saying_no_room(folder):
            temporary.mkdir(parents=True)
            yield temporary
            for path in filter(Path.is_file, temporary.rglob("*")):
                _sync(path)
            _take_place(temporary, folder)
    except BaseException:
        put_back(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in created:
            with suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(temporary, ignore_errors=True)  # by now the earlier one, where there was one


def put_back(folder: Path) -> None:
    """Gives a folder its name again that `new_folder` had set aside when its process was killed; else does nothing."""
    if not folder.exists() and _aside(folder).is_dir():
        with suppress(OSError):  # another run was first
            os.rename(_aside(folder), folder)
            print(f"Put back {shown(folder)}, which a run that was killed had set aside", flush=True)


def _beside(path: Path) -> Path:
    """A new name beside `path`, which says who writes there: machine and process."""
    return path.with_name(f".{path.name}-{_machine()}-{os.getpid()}-{uuid4().hex[:8]}")


def _machine() -> str:
    """A name for this machine, or container: process numbers are its own, and folders may be shared."""
    return f"{crc32(platform.node().encode()):08x}"


def _remove_leftovers(path: Path) -> None:
    """Removes what processes of this machine that are gone had begun to write in place of `path`."""
    if not path.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(path.name)}-{_machine()}-(\d+)-[0-9a-f]{{8}}")
    for left in list(path.parent.iterdir()):
        if (found := name.fullmatch(left.name)) and not psutil.pid_exists(int(found[1])):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-before")


def _sync(path: Path) -> None:
    """Waits until the file is on the disk: without it a machine that vanishes may leave the new name on an empty file,
    and network file systems tell only now that they are full."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _take_place(new: Path, folder: Path) -> None:
    """Gives `new` the name `folder`; what has it by then is removed, or gets the name `new`."""
    while True:
        try:
            os.rename(new, folder)  # there is nothing, or an empty folder
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _exchange(new, folder):
            break
        shutil.rmtree(_aside(folder), ignore_errors=True)
        try:
            os.rename(folder, _aside(folder))
        except OSError as error:  # those are another run's doing, which is at the same place
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
    shutil.rmtree(_aside(folder), ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step (renameat2, Linux); False where system or file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library without it
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0


@contextmanager
def saying_no_room(path: Path, setting: str = "DATA_DIR") -> Iterator[None]:
    """Turns whatever a library raises on a full disk into NotWritten; `setting` says where `path` lies."""
    try:
        yield
    except NotWritten:
        raise
    except Exception as error:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors and tokenizers put it
        in_torch = re.search(r"inline_container\.cc|basic_ios::clear", str(error))  # which does not say why
        code = int(in_rust[1]) if in_rust else errno.ENOSPC if in_torch else getattr(error, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NotWritten(
            f"There is no room to write {shown(Path(path))} ({os.strerror(code)}). What was there before is as it was. "
            f"Free some space, or let {setting} name a folder on another disk."
        ) from error
