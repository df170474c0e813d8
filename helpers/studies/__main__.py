"""`make full`: every run that `Data/full` and the README rest on, in any number of sittings.

A run that has its row, or its record, is not run again; each is written as it ends. `ONLY="few_rows ranks"` does a
part, `python -m helpers.studies --list` says what is left.
"""

import argparse
import sys
from datetime import datetime, timedelta, timezone
from time import perf_counter

from filelock import FileLock, Timeout

from helpers.profiles import fastest_execution
from helpers.results import running_commit
from helpers.studies.adapters import keep_if_best, write_cards
from helpers.studies.ledger import Ledger, clock, work
from helpers.studies.plan import STUDIES
from helpers.studies.runs import FULL, row_of, train_at_scale


def main(arguments: list[str] | None = None) -> int:
    """Does what is left of the chosen studies; the exit status is 2 for an unknown one, 1 where one is under way."""
    parser = argparse.ArgumentParser(prog="python -m helpers.studies", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; all when none is given")
    parser.add_argument("--list", action="store_true", help="run nothing: say what is left")
    parser.add_argument("--minutes", type=float, help="start no run that should not end within so many minutes")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(STUDIES)):
        parser.error(f"no study {', '.join(unknown)}; there is {', '.join(STUDIES)}")
    chosen = [name for name in STUDIES if name in options.only or not options.only]
    running_commit()  # now, as it may be another one when the first run ends
    ledger = Ledger()
    if options.list:
        for name in chosen:
            runs = list(STUDIES[name](ledger.rows))
            left = [run for run in runs if not ledger.has(run)]
            print(f"{name:12s} {len(runs) - len(left):4d} of {len(runs):4d} done, {clock(ledger.seconds(left))} left")
        return 0
    try:
        with FileLock(FULL.results / ".lock", timeout=0):
            _do(chosen, ledger, options.minutes)
            study = ledger.records.get("baselines")
            write_cards(study.rows if study else [])
            return 0
    except Timeout:
        print("error: another `make full` writes to this folder", file=sys.stderr)
        return 1


def _do(chosen: list[str], ledger: Ledger, minutes: float | None) -> None:
    execution = fastest_execution()
    end = datetime.now() + timedelta(minutes=minutes) if minutes else None
    for name in chosen:
        while True:
            runs = list(STUDIES[name](ledger.rows))  # anew, as the searches decide what comes after them
            left = [run for run in runs if not ledger.has(run)]
            for run in (run for run in runs if run.at_scale and run not in left):
                keep_if_best(run)  # here, as a process may end between a run and this
            if not left:
                break
            run = left[0]
            if end and datetime.now() + timedelta(seconds=ledger.seconds([run])) > end:
                print(f"stopped: {run.shown} should take {clock(ledger.seconds([run]))}")
                return
            start = perf_counter()
            if run.at_scale:
                accuracy = train_at_scale(run, execution).metrics["accuracy"]
            else:
                row = row_of(run, execution)
                row["at"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                ledger.add(run, row, execution, runs)
                accuracy = row["accuracy"]
            seconds = perf_counter() - start
            if run.recipe.method not in ("bag_of_words", "frozen_encoder"):
                ledger.paces.append(seconds / work(run))
            after = [other for later in chosen[chosen.index(name) :] for other in STUDIES[later](ledger.rows)]
            after = [other for other in after if not ledger.has(other)]
            print(
                f"{datetime.now():%H:%M} {run.shown}: {accuracy:.1%} in {seconds:.0f} s; "
                f"{len(after)} runs left, {clock(ledger.seconds(after))} h",
                flush=True,
            )
    print("nothing is left to run")


if __name__ == "__main__":
    sys.exit(main())
