"""`make full`: every run that `Data/full` and the README rest on, in any number of sittings.

A run that has its row, or its record, is not run again; each is written as it ends. `ONLY="few_rows ranks"` does a
part, `python -m helpers.studies --list` says what is left.
"""

import argparse
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timedelta
from multiprocessing import get_context

from filelock import FileLock, Timeout

from helpers.profiles import fastest_execution
from helpers.results import COMMAND, running_command, running_commit
from helpers.studies.adapters import keep_if_best, write_cards
from helpers.studies.ledger import Ledger, clock, work
from helpers.studies.plan import STUDIES
from helpers.studies.runs import FULL, Run, row_or_metrics


def main(arguments: list[str] | None = None) -> int:
    """Does what is left of the chosen studies.

    The exit status is 2 for an unknown one, 1 where another command is under way or a run failed, 128 and the signal's
    number where it was stopped.
    """
    parser = argparse.ArgumentParser(prog="python -m helpers.studies", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; all when none is given")
    parser.add_argument("--list", action="store_true", help="run nothing: say what is left")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process; more than 1 for a GPU")
    parser.add_argument("--minutes", type=float, help="start no run that should not end within so many minutes")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - set(STUDIES)):
        parser.error(f"no study {', '.join(unknown)}; there is {', '.join(STUDIES)}")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} runs nothing; it must be 1 or more")
    chosen = [name for name in STUDIES if name in options.only or not options.only]
    running_commit()  # now, as it may be another one when the first run ends
    if command := running_command():
        os.environ[COMMAND] = command  # for the processes of --jobs, which could not tell
    ledger = Ledger()
    if options.list:
        for name in chosen:
            runs = list(STUDIES[name](ledger.rows))
            left = [run for run in runs if not ledger.has(run)]
            print(f"{name:12s} {len(runs) - len(left):4d} of {len(runs):4d} done, {clock(ledger.seconds(left))} left")
        return 0
    try:
        with FileLock(FULL.results / ".lock", timeout=0):
            failed = _do(chosen, ledger, options.minutes, options.jobs)
            study = ledger.records.get("baselines")
            write_cards(study.rows if study else [])
            return 1 if failed else 0
    except KeyboardInterrupt as stopped:
        said = str(stopped).partition(";")[0] or "Stopped. The same command goes on with what is left"
        print(f"{said}.", file=sys.stderr)
        return getattr(stopped, "status", 130)
    except Timeout:
        print("error: another `make full` writes to this folder", file=sys.stderr)
    except BrokenProcessPool:
        print(
            "error: a process died, most likely as memory ran out; what ended is kept. Try fewer jobs", file=sys.stderr
        )
    return 1


def _do(chosen: list[str], ledger: Ledger, minutes: float | None, jobs: int) -> dict[str, str]:
    """Runs what is left of the studies `chosen`; returns what failed, with its error."""
    execution = fastest_execution()
    end = datetime.now() + timedelta(minutes=minutes) if minutes else datetime.max
    for run in _runs(chosen, ledger):
        if run.at_scale and ledger.has(run):
            keep_if_best(run)  # here, as a process may end between a run and this
    going: dict[Future, Run] = {}
    failed: dict[str, str] = {}
    with ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 else _Here() as workers:
        while True:
            runs = _runs(chosen, ledger)  # anew, as the searches decide what comes after them
            aside = {*failed, *(run.id for run in going.values())}
            ready: dict[str, Run] = {}
            for run in runs:
                if run.id not in aside and not ledger.has(run):
                    ready.setdefault(run.id, run)  # of two studies that have a run, the first gets its row
            left = list(ready.values())
            if jobs > 1:
                left.sort(key=_first, reverse=True)
            in_time = [run for run in left if datetime.now() + timedelta(seconds=ledger.seconds([run])) <= end]
            for run in in_time[: jobs - len(going)]:
                going[workers.submit(row_or_metrics, run, execution, jobs)] = run
            if not going:
                break
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                run = going.pop(future)
                if jobs > 1 and (error := future.exception()):
                    failed[run.id] = f"{run.shown}: {error}"
                    print(f"failed: {failed[run.id]}", flush=True)
                    continue
                done, seconds = future.result()
                if run.at_scale:
                    keep_if_best(run)
                else:
                    ledger.add(run, done, execution, runs)
                if run.recipe.method not in ("bag_of_words", "frozen_encoder"):
                    ledger.paces.append(seconds / work(run))
                after = [other for other in _runs(chosen, ledger) if not ledger.has(other)]
                print(
                    f"{datetime.now():%H:%M} {run.shown}: {done['accuracy']:.1%} in {seconds:.0f} s; "
                    f"{len(after)} runs left, {clock(ledger.seconds(after) / jobs)} h",
                    flush=True,
                )
    if left:
        print(f"stopped: {left[0].shown} should take {clock(ledger.seconds(left[:1]))}")
    elif not failed:
        print("nothing is left to run")
    return failed


def _first(run: Run) -> tuple[bool, bool, float]:
    """Of several at a time the long ones come first, as none should be left over, then what others wait for."""
    return run.at_scale, run.scored_on == "validation", work(run)


def _runs(chosen: list[str], ledger: Ledger) -> list[Run]:
    return [run for name in chosen for run in STUDIES[name](ledger.rows)]


class _Here(Executor):
    """Runs one after the other, in this process."""

    def submit(self, function, /, *arguments, **named) -> Future:
        future = Future()
        future.set_result(function(*arguments, **named))
        return future


if __name__ == "__main__":
    sys.exit(main())
