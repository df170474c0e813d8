"""`make full`: every run that `Data/full` and the README rest on, in any number of sittings.

A run that has its row, or its record, is not run again; each is written as it ends. `ONLY="few_rows ranks"` does a
part, `python -m helpers.full --list` says what is left.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from time import perf_counter

import numpy as np
from filelock import FileLock, Timeout

from helpers.plan import STUDIES, Rows
from helpers.profiles import Execution, fastest_execution
from helpers.results import StudyRecord
from helpers.runs import FULL, Run, record_of, row_of, train_at_scale

SECONDS_PER_TOKEN = 1.5e-4  # of a CPU with two cores; each sitting measures its own


def main(arguments: list[str] | None = None) -> int:
    """Does what is left of the chosen studies; the exit status is 2 for an unknown one, 1 where one is under way."""
    parser = argparse.ArgumentParser(prog="python -m helpers.full", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; all when none is given")
    parser.add_argument("--list", action="store_true", help="run nothing: say what is left")
    parser.add_argument("--minutes", type=float, help="start no run that should not end within so many minutes")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(STUDIES)):
        parser.error(f"no study {', '.join(unknown)}; there is {', '.join(STUDIES)}")
    chosen = [name for name in STUDIES if name in options.only or not options.only]
    ledger = Ledger()
    if options.list:
        for name in chosen:
            runs = list(STUDIES[name](ledger.rows))
            left = [run for run in runs if not ledger.has(run)]
            print(f"{name:12s} {len(runs) - len(left):4d} of {len(runs):4d} done, {_clock(ledger.seconds(left))} left")
        return 0
    try:
        with FileLock(FULL.results / ".lock", timeout=0):
            return _do(chosen, ledger, options.minutes)
    except Timeout:
        print("error: another `make full` writes to this folder", file=sys.stderr)
        return 1


class Ledger:
    """What is done: the rows of all studies by their run's name, read from and written to `Data/full/results`."""

    def __init__(self):
        self.records = {path.stem: StudyRecord.load(path) for path in (FULL.results / "studies").glob("*.json")}
        self.rows: Rows = {row["run"]: row for record in self.records.values() for row in record.rows if "run" in row}
        self.paces: list[float] = []

    def has(self, run: Run) -> bool:
        """Whether `run` is done."""
        return record_of(run) is not None if run.at_scale else run.id in self.rows

    def add(self, run: Run, row: dict, execution: Execution, current: Sequence[Run]) -> None:
        """Writes `row` to its study's record, from which rows of runs that are not among the `current` ones go."""
        kept = self.records[run.study].rows if run.study in self.records else []
        self.rows[run.id] = row
        study = {other.id: other for other in current if other.study == run.study}
        rows = [other for other in kept if other["run"] in study and other["run"] != run.id]
        settings = {"precision": execution.precision}
        for name in ("base_model", "scored_on", "n_validation", "n_test"):
            settings[name] = _all_of(getattr(other, name) for other in study.values())
        for name in ("dataset", "max_length"):
            settings[name] = _all_of(getattr(other.recipe, name) for other in study.values())
        command = f"make full ONLY={run.study.removesuffix('_search')}"
        record = StudyRecord(run.study, command, "full", execution.device_name, settings, [*rows, row])
        record.save(FULL.results / "studies")
        self.records[run.study] = record

    def seconds(self, runs: Iterable[Run]) -> float:
        """How long `runs` should take, by the pace of those that this sitting did."""
        pace = float(np.median(self.paces[-30:])) if self.paces else SECONDS_PER_TOKEN
        return pace * sum(map(_tokens, runs))


def _do(chosen: list[str], ledger: Ledger, minutes: float | None) -> int:
    execution = fastest_execution()
    end = datetime.now() + timedelta(minutes=minutes) if minutes else None
    for name in chosen:
        while True:
            runs = list(STUDIES[name](ledger.rows))  # anew, as the searches decide what comes after them
            left = [run for run in runs if not ledger.has(run)]
            if not left:
                break
            run = left[0]
            if end and datetime.now() + timedelta(seconds=ledger.seconds([run])) > end:
                print(f"stopped: {run.shown} should take {_clock(ledger.seconds([run]))}")
                return 0
            start = perf_counter()
            if run.at_scale:
                record = train_at_scale(run, execution)
                accuracy = record.metrics["accuracy"]
            else:
                row = row_of(run, execution)
                row["at"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                ledger.add(run, row, execution, runs)
                accuracy = row["accuracy"]
            seconds = perf_counter() - start
            if run.recipe.variant not in ("bag_of_words", "frozen_encoder"):
                ledger.paces.append(seconds / _tokens(run))
            after = [other for later in chosen[chosen.index(name) :] for other in STUDIES[later](ledger.rows)]
            after = [other for other in after if not ledger.has(other)]
            print(
                f"{datetime.now():%H:%M} {run.shown}: {accuracy:.1%} in {seconds:.0f} s; "
                f"{len(after)} runs left, {_clock(ledger.seconds(after))} h",
                flush=True,
            )
    print("nothing is left to run")
    return 0


def _tokens(run: Run) -> float:
    """Roughly, tokens that go through training, weighted by the work on each."""
    recipe, reviews = run.recipe, run.recipe.dataset != "rotten_tomatoes"
    length = min(recipe.max_length, 240) if reviews else 28
    n_train = recipe.n_train or (19_922 if reviews else 5_530)
    if recipe.variant in ("bag_of_words", "frozen_encoder"):
        return 0.01 * n_train * length
    weight = {"head_only": 0.35, "full_finetune": 1.1}.get(recipe.variant, 1.3 if recipe.quantization else 1.0)
    dropout = 1.0 if recipe.model_dropout == 0 else 1.3
    scored = run.n_test if run.scored_on == "test" else run.n_validation
    return length * (weight * dropout * n_train * recipe.epochs(n_train) + 0.3 * scored)


def _all_of(values: Iterable[object]) -> object:
    """The value, or "a and b" where the runs of a study differ in it."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else " and ".join(map(str, different))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
