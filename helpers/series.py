"""The whole series, or some of its notebooks, in fresh kernels."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import nbformat
import psutil
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from typer import Argument

from helpers.files import shown, write_text
from helpers.profiles import ROOT, current_profile, device
from helpers.results import COMMAND, load_records, summary
from helpers.start import command

NOTEBOOKS = ROOT / "notebooks"
ALONE = ("04", "10")  # the one measures speed, the other shows the records of those before it


def run_notebooks(paths: list[Path], folder: Path, at_once: int) -> None:
    """Executes the notebooks, `at_once` at a time, with as many threads in all as torch takes.

    Raises as `run_notebook` does for the first that fails. Then, or where it is stopped, the others' kernels end.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // at_once))}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            list(pool.map(partial(run_notebook, folder=folder, environment=threads), paths))
        except BaseException:
            for kernel in psutil.Process().children():
                kernel.kill()
            raise


def run_notebook(path: Path, folder: Path, environment: dict[str, str]) -> None:
    """Executes `path` in a fresh kernel and writes it with its outputs to `folder`.

    Raises ChildProcessError, in one line, where a cell fails or the kernel dies. The outputs so far are written, too.
    """
    start, notebook, copy = perf_counter(), nbformat.read(path, as_version=4), folder / path.name
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
        client.execute(env={**os.environ, **environment, COMMAND: f"python -m helpers.series {path.stem[:2]}"})
    except (CellExecutionError, DeadKernelError, AssertionError) as error:  # nbclient's last is for a dead kernel
        said = "its kernel died, most likely because memory ran out; with PROFILE=quick it takes less"
        if isinstance(error, CellExecutionError):
            said = f"{error.ename}: {' '.join(error.evalue.split())[:300]}"
        raise ChildProcessError(f"{path.name} failed: {said} [outputs so far: {shown(copy)}]") from error
    finally:
        write_text(copy, nbformat.writes(notebook) + "\n")
    print(f"{path.stem:28s}done in {timedelta(seconds=round(perf_counter() - start))}", flush=True)


def series(notebooks: Annotated[list[str] | None, Argument()] = None, store: bool = False) -> None:
    """Runs the notebooks that begin with these numbers or names, for example 02, in fresh kernels, all when none is
    given, and sums up what they measured.

    The copies with their outputs go to Data/<profile>/notebooks; --store also stores them in notebooks/, for a commit.
    """
    profile, names = current_profile(), tuple(notebooks or ())
    chosen = [path for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) if not names or path.stem.startswith(names)]
    if not chosen:
        raise ValueError(f"no notebook starts with {' or '.join(names)}")
    at_once = 2 if device() == "cpu" and profile.name == "quick" else 1  # two trainings of half the threads are faster
    print(f"Profile: {profile.name}, notebooks: {len(chosen)}, at a time: {at_once}", flush=True)
    start, folder = perf_counter(), profile.figures / "notebooks"
    together = [path for path in chosen if not path.stem.startswith(ALONE)]
    for paths, number in ((together, at_once), (sorted(set(chosen) - set(together)), 1)):
        run_notebooks(paths, folder, number)
        for path in paths if store else ():
            write_text(path, (folder / path.name).read_text(encoding="utf-8"))
    print(f"\nAll done in {timedelta(seconds=round(perf_counter() - start))}\n")
    print(summary(load_records(profile.results)))
    print(f"\nFigures: {shown(profile.figures)}/*.png   Records: {shown(profile.results)}/*.json")


main = command(series, "Stopped; started again, a training goes on where it was")
