"""`python -m helpers.series`: executes the notebooks in order and ends with a table of what they measured."""

import argparse
import re
import sys
from pathlib import Path
from time import perf_counter

import nbformat

from helpers.base.writing import write_text
from helpers.profiles import COMMITTED, current_profile, fastest_execution
from helpers.results import StudyRecord, load_records, summary
from helpers.series.executing import NOTEBOOKS, NotebookFailed, clock, run_notebook


def takes(number: str, times: StudyRecord, estimate: StudyRecord) -> str:
    """What notebook `number` says of its time: measured on a CPU under `quick`, estimated on a T4 under `hub`."""
    seconds = next(row["seconds"] for row in times.rows if row["notebook"] == number)
    device = times.device.replace("(", "").replace(")", "")
    t4 = "no longer, downloads aside"
    for row in estimate.rows:
        if row["notebook"] == number:
            low, high = row["minutes"]
            t4 = f"{low} to {high} minutes" if high > 1 else "a minute at most"
    return f"Takes: {clock(seconds)} minutes under `quick` ({device}, measured); on a T4 under `hub` {t4} (estimated)."


def write_times(folder: Path = NOTEBOOKS, records: Path = COMMITTED / "quick" / "evidence") -> None:
    """Writes `takes` into the head of each notebook in `folder`, from the committed records."""
    times, estimate = (StudyRecord.load(records / f"{name}.json") for name in ("notebook_times", "estimate_t4"))
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        head = notebook.cells[0]
        head.source = re.sub(r"Takes: .*", lambda _: takes(path.stem[:2], times, estimate), head.source)  # noqa: B023
        write_text(path, nbformat.writes(notebook) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the series under the profile in force; the exit status is 1 when a notebook fails."""
    parser = argparse.ArgumentParser(prog="python -m helpers.series", description=__doc__)
    parser.add_argument("notebooks", nargs="*", help="numbers or names to run, for example 02; all when none is given")
    parser.add_argument("--store", action="store_true", help="also store the outputs in notebooks/ (for a commit)")
    parser.add_argument("--times", action="store_true", help="run nothing: write the measured times into the heads")
    options = parser.parse_args(arguments)
    if options.times:
        write_times()
        return 0
    profile = current_profile()
    chosen = [
        path
        for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
        if not options.notebooks or any(path.stem.startswith(name) for name in options.notebooks)
    ]
    if not chosen:
        parser.error(f"no notebook starts with {' or '.join(options.notebooks)}")
    print(f"Profile {profile.name}: {len(chosen)} notebooks", flush=True)
    start, seconds = perf_counter(), []
    for path in chosen:
        copy = profile.figures / "notebooks" / path.name
        try:
            took = run_notebook(path, path if options.store else copy, copy)
        except NotebookFailed as failed:
            print(f"\n{failed}", flush=True)
            return 1
        except KeyboardInterrupt:
            print(f"\nStopped in {path.name}; started again, a training goes on where it was", flush=True)
            return 130
        seconds.append({"notebook": path.stem[:2], "seconds": round(took)})
    if not options.notebooks:
        command = f"PROFILE={profile.name} python -m helpers.series"
        times = StudyRecord("notebook_times", command, profile.name, fastest_execution().device_name, {}, seconds)
        times.save(profile.results / "studies")
    print(f"\nAll done in {clock(perf_counter() - start)}\n\n{summary(load_records(profile.results), profile)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
