"""What a verdict on a claim is, how cases make one, and the records that it rests on."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

from helpers.files import shown
from helpers.profiles import COMMITTED, Profile, data_dir
from helpers.results import RunRecord, StudyRecord
from lab.at_scale import RECORDS
from lab.devices import COMMAND, find_records
from lab.studies import read_study

CONFIRMED, ONLY_WHEN, REFUTED, UNDECIDED = KINDS = "confirmed", "confirmed only when", "refuted", "not decided here"
HOLDS, FAILS, OPEN = "holds", "fails", "open"
# Of these profiles the runs that claims rest on are in git; `full` has its own folder, RECORDS.
COMMITTED_RUNS = {name: COMMITTED / name / "evidence" for name in ("hub", "quick")}


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


@dataclass(frozen=True)
class Verdict:
    """One of `KINDS` and what it rests on.

    `numbers` maps what was measured, in words, to its value: shares and accuracies are fractions, sizes in the unit
    that the words name. `cases` maps what was varied (device, layers, shape, rows, ...) to whether the claim HOLDS,
    FAILS or is OPEN there; where the kind is ONLY_WHEN, it is confirmed for those that hold. `records` are paths from
    the repository's root. `needs` is what would decide an undecided claim.
    """

    kind: str
    numbers: dict[str, float]
    cases: dict[str, str]
    bars: tuple[Bar, ...] = ()
    records: tuple[str, ...] = ()
    needs: str = ""


def in_range(low: float, high: float, at_least: float, at_most: float = inf) -> str:
    """Whether an interval or a range lies in what is stated: a range that reaches over a limit is OPEN."""
    if low >= at_least and high <= at_most:
        return HOLDS
    return FAILS if high < at_least or low > at_most else OPEN


def all_of(*cases: str) -> str:
    """A claim that says several things HOLDS where all of them do, and FAILS where one does."""
    return FAILS if FAILS in cases else OPEN if OPEN in cases else HOLDS


def verdict_on(
    cases: Mapping[str, str], numbers: Mapping[str, float], bars: tuple[Bar, ...] = (), needs: str = ""
) -> Verdict:
    """The kind that `cases` make: all of one sort, or confirmed only when; what is open and nowhere holds is undecided.

    Without a case nothing is decided.
    """
    found = set(cases.values())
    kind = {frozenset({HOLDS}): CONFIRMED, frozenset({FAILS}): REFUTED}.get(frozenset(found))
    kind = kind or (ONLY_WHEN if HOLDS in found else UNDECIDED)
    return Verdict(kind, dict(numbers), dict(cases), bars, needs=needs if kind == UNDECIDED else "")


class Evidence:
    """The records that claims are decided on, and in `read` the paths of those that were asked for.

    They are the committed ones; with a `profile` its own runs and studies, and the data folder's devices, come before
    them.
    """

    def __init__(self, profile: Profile | None = None):
        self.roots = [COMMITTED] if profile is None else [COMMITTED, data_dir()]
        own = [profile.results] if profile else []
        self.folders = [*own, COMMITTED_RUNS["hub"], RECORDS, COMMITTED_RUNS["quick"]]
        self.read: list[str] = []

    def runs(self, recipe: str, variant: str, folder: Path | None = None) -> list[RunRecord]:
        """A record for each seed of a run, from `folder` or the first that has any. Raises FileNotFoundError."""
        for place in [folder] if folder else self.folders:
            if paths := sorted(place.glob(f"{recipe}-{variant}-seed*.json")):
                return [RunRecord.load(self._noted(path)) for path in paths]
        raise FileNotFoundError(f"a run of {recipe}, {variant.replace('_', ' ')}")

    def folder(self, study: str) -> Path:
        """The first folder that has the record of a study, RECORDS where none has."""
        return next((one for one in self.folders if (one / "studies" / f"{study}.json").exists()), RECORDS)

    def study(self, name: str) -> StudyRecord:
        """The record of a study. Raises FileNotFoundError."""
        record = read_study(name, folder := self.folder(name))
        self._noted(folder / "studies" / f"{name}.json")
        return record

    def devices(self, name: str) -> list[StudyRecord]:
        """The record `name` of every device that has one, GPUs first. Raises FileNotFoundError where none has."""
        found = find_records(name, self.roots)
        if not found:
            raise FileNotFoundError(f"{COMMAND} {name}")
        return [record for path, record in found if self._noted(path)]

    def _noted(self, path: Path) -> Path:
        if (name := Path(shown(path)).as_posix()) not in self.read:
            self.read.append(name)
        return path
