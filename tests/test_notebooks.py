"""The notebooks as files: run from the top, no errors, no author's machine, nothing a page cannot show."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|home|Users|tmp|work|content|kaggle)/|[A-Z]:\\\\Users")


def _texts(output) -> str:
    shown = [value for key, value in output.get("data", {}).items() if key.startswith("text/")]
    return "".join([output.get("text", ""), *map(str, shown)])


def test_the_series_is_numbered_without_gaps():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from the top"
    for cell in code:
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert set(cell.metadata.get("tags", [])) <= TAGS
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert not MACHINE_PATH.search(_texts(output)), cell.source
            assert "Warning" not in _texts(output), cell.source
            assert "\r" not in _texts(output), "a progress bar with all its states"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_rows_are_read_wherever_the_data_folder_is(path):
    assert "Ledger()" not in path.read_text(encoding="utf-8"), "those below DATA_DIR: Ledger(AT_SCALE / 'studies')"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_shown_is_said_as_well(path):
    notebook = nbformat.read(path, as_version=4)
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "cccc" not in kinds, "four code cells without a word between them"
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert all(len(output.metadata.get("image/png", {}).get("alt", "")) > 20 for output in shown), (
        "a figure without words"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_text(path):
    notebook = nbformat.read(path, as_version=4)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert prose[0].startswith(f"# {path.stem[:2]} · ")
    assert "## What we learned" in prose[-1]
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", "\n".join(prose)):
        assert (path.parent / link).exists(), link
    compared = [
        cell for cell in notebook.cells if cell.cell_type == "code" and not cell.metadata.get("tags") and cell.outputs
    ]
    assert len(compared) >= 5, "too little of this notebook is compared with its stored outputs"
