"""What claims are decided on: the records in `Data/`, and the form of a verdict."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from helpers import profiles
from helpers.base.paths import shown
from helpers.benchmarks.records import COMMAND, find_benchmarks
from helpers.evaluation import PairedComparison
from helpers.profiles import Profile
from helpers.results import RunRecord, StudyRecord, load_records
from helpers.studies.ledger import Ledger

AT_SCALE = profiles.COMMITTED / "full" / "results"  # what `make full` measured
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "not decided here"
ONLY_WHEN = "confirmed only when"


KEPT = ("hub", "quick")  # the profiles that `make run` writes anew anywhere; what `full` measures is in git as it is


def kept(profile: str) -> Path:
    """The folder of a profile's records that are in git; what a run writes lies in results/, which is not."""
    return profiles.COMMITTED / profile / "evidence"


class Missing(Exception):
    """A record that a claim needs is not there; the message is the command that makes it."""


class Bar(NamedTuple):
    """A claim's number on one of four axes, for the figure: the range that is stated, and what was measured.

    `axis` is "accuracy", "difference" (of accuracies), "times" (as fast) or "share" (of parameters, bytes); `low` and
    `high` are the ends of the 95 % interval of `value`, or of a range (over shapes, formats or seeds), which has none.
    A claim of "more" states up to infinity.
    """

    axis: str
    stated: tuple[float, float]
    low: float
    high: float
    label: str = ""
    value: float | None = None


class Verdict(NamedTuple):
    """What was measured (value, interval, n, profile, device), the verdict, one sentence, the records' paths, bars."""

    measured: str
    verdict: str
    sentence: str
    records: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()

    @property
    def kind(self) -> str:
        """Which of the four kinds of verdict it is, without its condition."""
        return next(kind for kind in (ONLY_WHEN, CONFIRMED, REFUTED, UNDECIDED) if self.verdict.startswith(kind))


@dataclass(frozen=True)
class Claim:
    """A statement of one of `recipes.WRITE_UPS`, when it holds, and what decides it.

    `rule` says what confirms the claim, as it was written down before the measurement.
    """

    id: str
    source: str
    text: str
    rule: str
    decide: Callable[["Evidence"], Verdict]


class Evidence:
    """The records claims are decided on: `profile`'s in the data folder where it has any, else the committed ones.

    Without a profile only the committed ones.
    """

    def __init__(self, profile: Profile | None = None):
        self.roots = [profiles.COMMITTED] if profile is None else [profiles.COMMITTED, profiles.DATA_DIR]
        self.folders = [AT_SCALE, *map(kept, KEPT)]
        if profile is not None:
            self.folders.insert(0, profiles.DATA_DIR / profile.name / "results")

    def run(self, recipe: str, variant: str) -> tuple[RunRecord, str]:
        """The record of a recipe's run, and its path from the repository's root. Raises Missing."""
        name = f"{recipe}-{variant}-seed42.json"
        for folder in self.folders:
            if (folder / name).exists():
                return RunRecord.load(folder / name), relative_path(folder / name)
        raise Missing(f"make run, for {name}")

    def seeds(self, recipe: str, variant: str) -> list[tuple[RunRecord, str]]:
        """The records of a run with every seed there is, from the first folder that has the run. Raises Missing."""
        for folder in self.folders:
            if paths := sorted(folder.glob(f"{recipe}-{variant}-seed*.json")):
                return [(RunRecord.load(path), relative_path(path)) for path in paths]
        raise Missing(f"make run, for {recipe}-{variant}-seed42.json")

    def study(self, name: str) -> tuple[StudyRecord, str]:
        """The record of one of `make full`'s studies and its path. Raises Missing."""
        path = AT_SCALE / "studies" / f"{name}.json"
        if not path.exists():
            raise Missing(f"make full ONLY={name}")
        return StudyRecord.load(path), relative_path(path)

    def ledger(self) -> Ledger:
        """The rows of all studies of `make full`."""
        return Ledger(AT_SCALE / "studies")

    def at_scale(self, recipe: str, variant: str) -> tuple[RunRecord, str]:
        """The record of a run of `make full` and its path. Raises Missing."""
        path = AT_SCALE / f"{recipe}-{variant}-seed42.json"
        if not path.exists():
            raise Missing(f"make full, for {path.name}")
        return RunRecord.load(path), relative_path(path)

    def all_at_scale(self) -> list[RunRecord]:
        """The records of all runs of `make full` that have one of their own, by name."""
        return load_records(AT_SCALE)

    def benchmark(
        self, name: str, enough: Callable[[StudyRecord], bool] = lambda record: True
    ) -> tuple[StudyRecord, str]:
        """The first device's record `name` that has `enough`, and its path: GPUs first, by name. Raises Missing."""
        for path, record in find_benchmarks(name, self.roots):
            if enough(record):
                return record, relative_path(path)
        raise Missing(f"{COMMAND} {name}")


def relative_path(path: Path) -> str:
    """`path` from the repository's root; one outside of it as it is."""
    return Path(shown(path)).as_posix()


def shown_rows(record: RunRecord) -> str:
    rows = f"n = {record.n_test:,}, {record.n_train:,} training rows"
    return f"{rows}, {record.base_model}, {record.profile}, {record.device}"


def shown_difference(test: PairedComparison) -> str:
    return f"{test.points}, p = {test.p_value:.2g}"
