"""`python -m helpers.series`: executes the notebooks in order and ends with a table of what they measured."""

import argparse
import sys
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from helpers.profiles import DATA_DIR, Profile, current_profile
from helpers.results import RunRecord, load_records

NOTEBOOKS = DATA_DIR.parent / "notebooks"


def run_notebook(source: Path, target: Path) -> float:
    """Executes `source` in a fresh kernel and writes it with its outputs to `target`, also when a cell fails.

    Shows the cell in progress on a terminal. Returns the seconds it took; raises CellExecutionError as nbclient does.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    start = perf_counter()
    total = sum(cell.cell_type == "code" for cell in notebook.cells)

    def show(cell, cell_index):
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
    finally:
        settle_progress_bars(notebook)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
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


def summary(records: list[RunRecord], profile: Profile) -> str:
    """The runs of a profile as a text table: what was trained, its accuracy, and the bag of words on the same rows."""

    def rows_of(record: RunRecord) -> tuple:
        return record.dataset, record.n_train, record.n_validation, record.n_test, record.seed

    baselines = {rows_of(record): record for record in records if record.variant == "bag_of_words"}
    rows = [("recipe", "variant", "n test", "accuracy [95 % interval]", "bag of words", "train s")]
    for record in records:
        if record.variant in ("bag_of_words", "untrained"):
            continue
        low, high = record.accuracy_ci95
        baseline = baselines.get(rows_of(record))
        rows.append(
            (
                record.recipe,
                record.variant,
                f"{record.n_test:,}",
                f"{record.metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
                f"{baseline.metrics['accuracy']:.1%}" if baseline else "",
                f"{record.train_seconds:.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    place = profile.figures.relative_to(DATA_DIR.parent)
    return "\n".join([*lines, "", f"Figures: {place}/*.png   Records: {place}/results/*.json"])


def main(arguments: list[str] | None = None) -> int:
    """Runs the series under the profile in force; the exit status is 1 when a notebook fails."""
    parser = argparse.ArgumentParser(prog="python -m helpers.series", description=__doc__)
    parser.add_argument("notebooks", nargs="*", help="numbers or names to run, for example 02; all when none is given")
    parser.add_argument("--store", action="store_true", help="also store the outputs in notebooks/ (for a commit)")
    options = parser.parse_args(arguments)
    profile = current_profile()
    chosen = [
        path
        for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
        if not options.notebooks or any(path.stem.startswith(name) for name in options.notebooks)
    ]
    if not chosen:
        parser.error(f"no notebook starts with {' or '.join(options.notebooks)}")
    print(f"Profile {profile.name}: {len(chosen)} notebooks", flush=True)
    start = perf_counter()
    for path in chosen:
        target = path if options.store else profile.figures / "notebooks" / path.name
        try:
            run_notebook(path, target)
        except CellExecutionError as error:
            cells = nbformat.read(target, as_version=4).cells
            failed = next(cell for cell in cells if any(o.output_type == "error" for o in cell.get("outputs", [])))
            place = target.relative_to(DATA_DIR.parent)
            print(f"\n{path.name} failed in this cell (traceback in {place}):\n\n{failed.source}\n")
            print(f"{error.ename}: {error.evalue}")
            return 1
        except DeadKernelError:
            print(f"\n{path.name} failed: its kernel died, which most often means that memory ran out.")
            return 1
    print(f"\nAll done in {_clock(perf_counter() - start)}\n\n{summary(load_records(profile.results), profile)}")
    return 0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
