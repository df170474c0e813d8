"""One notebook in a fresh kernel, and one line where it fails."""

import os
import sys
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from helpers.base.paths import ROOT, shown
from helpers.base.writing import write_text
from helpers.results import COMMAND

NOTEBOOKS = ROOT / "notebooks"


class NotebookFailed(Exception):
    """A notebook did not run to its end; the message says in one line where, why, and what to do."""


def run_notebook(source: Path, target: Path, unfinished: Path | None = None) -> float:
    """Executes `source` in a fresh kernel and writes it with its outputs to `target`.

    Shows the cell in progress on a terminal. Returns the seconds it took. Where a cell fails or the kernel dies, the
    outputs so far go to `unfinished` (None: to `target`, too), and NotebookFailed is raised.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    start = perf_counter()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done, total = 0, len(code)

    def show(cell, cell_index):
        nonlocal done
        done = sum(other.cell_type == "code" for other in notebook.cells[:cell_index])
        if sys.stdout.isatty():
            print(f"\r{source.stem:28s} cell {done + 1}/{total}  {clock(perf_counter() - start)}", end="", flush=True)

    if not sys.stdout.isatty():
        print(f"{source.stem:28s} ...", flush=True)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        record_timing=False,
        coalesce_streams=True,  # and a progress bar is what a terminal shows of it at the end
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        on_cell_start=show,
    )
    try:
        client.execute(env={**os.environ, COMMAND: f"python -m helpers.series {source.stem[:2]}"})
    except (CellExecutionError, DeadKernelError, AssertionError) as error:  # the last is nbclient's for a dead kernel
        written = write_text(unfinished or target, nbformat.writes(notebook) + "\n")
        first = code[done].source.strip().partition("\n")[0][:60]
        where = f"{source.name}, cell {done + 1} of {total} ({first})"
        if isinstance(error, CellExecutionError):
            raised = f"{error.ename}: {' '.join(error.evalue.split())[:300]}"
            raise NotebookFailed(f"{where} failed: {raised} [traceback in {shown(written)}]") from error
        raise NotebookFailed(
            f"{where}: the kernel died, most likely because memory ran out or something killed it. Close other "
            f"programs and start it again (python -m helpers.series {source.stem[:2]}): a training goes on where it "
            f"was. With PROFILE=quick it takes less memory. Its outputs so far: {shown(written)}"
        ) from error
    except RuntimeError as error:
        raise NotebookFailed(
            f"{source.name}: its kernel did not start ({' '.join(str(error).split())[:300]}). Jupyter talks to it "
            "through 127.0.0.1, which has to be up and open to this program."
        ) from error
    write_text(target, nbformat.writes(notebook) + "\n")
    seconds = perf_counter() - start
    print(f"{chr(13) if sys.stdout.isatty() else ''}{source.stem:28s} done in {clock(seconds)}          ", flush=True)
    return seconds


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 2:09."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
