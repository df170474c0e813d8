"""`python -m helpers.series`: executes the notebooks in order and ends with a table of what they measured."""

import argparse
import re
import sys
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from helpers.profiles import COMMITTED, ROOT, current_profile, fastest_execution, shown
from helpers.results import StudyRecord, load_records, summary, write_text

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
            print(f"\r{source.stem:28s} cell {done + 1}/{total}  {_clock(perf_counter() - start)}", end="", flush=True)

    if not sys.stdout.isatty():
        print(f"{source.stem:28s} ...", flush=True)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        on_cell_start=show,
    )
    try:
        client.execute()
    except (CellExecutionError, DeadKernelError, AssertionError) as error:  # the last: nbclient, of a kernel that died
        settle_progress_bars(notebook)
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
    settle_progress_bars(notebook)
    write_text(target, nbformat.writes(notebook) + "\n")
    seconds = perf_counter() - start
    print(f"{chr(13) if sys.stdout.isatty() else ''}{source.stem:28s} done in {_clock(seconds)}          ", flush=True)
    return seconds


def settle_progress_bars(notebook: nbformat.NotebookNode) -> None:
    """Leaves of each progress bar in the outputs what a terminal shows at the end: its last state, once."""
    for cell in notebook.cells:
        settled = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                if settled and settled[-1].get("name") == "stderr":
                    output.text = settled.pop().text + output.text
                output.text = "\n".join(line.rsplit("\r", 1)[-1] for line in output.text.split("\n"))
            settled.append(output)
        if cell.cell_type == "code":
            cell.outputs = settled


def takes(number: str, times: StudyRecord, estimate: StudyRecord) -> str:
    """What notebook `number` says of its time: measured on a CPU under `quick`, estimated on a T4 under `hub`."""
    seconds = next(row["seconds"] for row in times.rows if row["notebook"] == number)
    device = times.device.replace("(", "").replace(")", "")
    t4 = "no longer, downloads aside"
    for row in estimate.rows:
        if row["notebook"] == number:
            low, high = row["minutes"]
            t4 = f"{low} to {high} minutes" if high > 1 else "a minute at most"
    return f"Takes: {_clock(seconds)} minutes under `quick` ({device}, measured); on a T4 under `hub` {t4} (estimated)."


def write_times(folder: Path = NOTEBOOKS, records: Path = COMMITTED / "evidence") -> None:
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
    print(f"\nAll done in {_clock(perf_counter() - start)}\n\n{summary(load_records(profile.results), profile)}")
    return 0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
