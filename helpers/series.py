"""`python -m helpers.series [02 ...]`: runs the notebooks in order, in fresh kernels, and sums up what they measured.

The copies with their outputs go to `Data/<profile>/notebooks`; `--store` also stores them in notebooks/, for a commit.
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from helpers.files import shown, write_text
from helpers.profiles import ROOT, current_profile, device_name
from helpers.results import COMMAND, StudyRecord, load_records, summary
from helpers.start import prepare_process

NOTEBOOKS = ROOT / "notebooks"


def run_notebook(path: Path, copy: Path) -> int:
    """Executes `path` in a fresh kernel and writes it with its outputs to `copy`; returns the seconds it took.

    Where a cell fails or the kernel dies, the outputs so far go there too. Raises as nbclient does.
    """
    print(f"{path.stem:28s}", end="", flush=True)
    start, notebook = perf_counter(), nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,  # and a progress bar is what a terminal shows of it at the end
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    try:
        client.execute(env={**os.environ, COMMAND: f"python -m helpers.series {path.stem[:2]}"})
    finally:
        write_text(copy, nbformat.writes(notebook) + "\n")
    seconds = round(perf_counter() - start)
    print(f"done in {timedelta(seconds=seconds)}", flush=True)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Runs the series under the profile in force; the exit status is 1 when a notebook fails, 130 when stopped."""
    prepare_process()
    parser = argparse.ArgumentParser(prog="python -m helpers.series", description=__doc__)
    parser.add_argument("notebooks", nargs="*", help="numbers or names to run, for example 02; all when none is given")
    parser.add_argument("--store", action="store_true", help="also store the outputs in notebooks/ (for a commit)")
    options = parser.parse_args(arguments)
    profile, names = current_profile(), tuple(options.notebooks)
    chosen = [path for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) if not names or path.stem.startswith(names)]
    if not chosen:
        parser.error(f"no notebook starts with {' or '.join(names)}")
    print(f"Profile {profile.name}: {len(chosen)} notebooks", flush=True)
    seconds = {}
    for path in chosen:
        copy = profile.figures / "notebooks" / path.name
        try:
            seconds[path.stem[:2]] = run_notebook(path, copy)
        except (CellExecutionError, DeadKernelError, AssertionError) as error:  # nbclient's last is for a dead kernel
            said = "its kernel died, most likely because memory ran out; with PROFILE=quick it takes less"
            if isinstance(error, CellExecutionError):
                said = f"{error.ename}: {' '.join(error.evalue.split())[:300]}"
            print(f"\n{path.name} failed: {said} [outputs so far: {shown(copy)}]", flush=True)
            return 1
        except KeyboardInterrupt:
            print("\nStopped; started again, a training goes on where it was", flush=True)
            return 130
        if options.store:
            write_text(path, copy.read_text(encoding="utf-8"))
    if not names:
        times = [{"notebook": number, "seconds": took} for number, took in seconds.items()]
        command = f"PROFILE={profile.name} python -m helpers.series"
        StudyRecord("notebook_times", command, profile.name, device_name(), {}, times).save(profile.results / "studies")
    print(f"\nAll done in {timedelta(seconds=sum(seconds.values()))}\n\n{summary(load_records(profile.results))}")
    print(f"\nFigures: {shown(profile.figures)}/*.png   Records: {shown(profile.results)}/*.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
