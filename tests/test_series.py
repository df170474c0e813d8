"""`python -m helpers.series` on notebooks that are made here."""

import signal
from pathlib import Path

import nbformat
import pytest

from helpers import series


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """`notebooks(name, *cells)` writes a notebook into the series, which lies in `tmp_path` and runs under `quick`."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(series, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "Data"))

    def write(name, *cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")

    return write


def cells_of(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


@pytest.mark.slow
def test_each_notebook_runs_in_a_fresh_kernel_and_is_stored_when_asked(notebooks, tmp_path, capsys):
    notebooks("02_b", "print('x' in dir())", "import os\nprint(os.environ['SERIES_COMMAND'])")
    notebooks("01_a", "x = 1", "x + 1")
    assert series.main([]) == 0
    output = capsys.readouterr().out
    assert "notebooks: 2, at a time: 2" in output and output.index("02_b") < output.index("All done in 0:")
    cells = cells_of(tmp_path / "Data/quick/notebooks/02_b.ipynb")
    assert [cell.outputs[0].text for cell in cells] == ["False\n", "python -m helpers.series 02\n"]
    assert cells_of(tmp_path / "notebooks/01_a.ipynb")[1].outputs == [], "nothing is stored unasked"
    assert series.main(["01", "--store"]) == 0
    cell = cells_of(tmp_path / "notebooks/01_a.ipynb")[1]
    assert (cell.outputs[0].data["text/plain"], cell.execution_count) == ("2", 2)
    assert "execution" not in cell.metadata, "times of day differ from run to run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("reviews = []\nreviews[0]", "IndexError: list index out of range"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "kernel died, most likely because memory ran out"),
    ],
    ids=["error", "death"],
)
def test_a_notebook_that_fails_ends_the_series_in_one_line(notebooks, tmp_path, capsys, fault, said):
    notebooks("01_a", "print('written')", fault, "1")
    notebooks("02_b", "import time\ntime.sleep(600)")
    notebooks("10_c", "3")
    stored = (tmp_path / "notebooks/01_a.ipynb").read_text()
    assert series.main(["--store"]) == 1
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 01_a.ipynb") and said in last and last.endswith("Data/quick/notebooks/01_a.ipynb]")
    assert "Traceback" not in out + err
    assert cells_of(tmp_path / "Data/quick/notebooks/01_a.ipynb")[0].outputs[0].text == "written\n"
    assert (tmp_path / "notebooks/01_a.ipynb").read_text() == stored, "only a whole one replaces a stored notebook"
    assert not (tmp_path / "Data/quick/notebooks/10_c.ipynb").exists()


@pytest.mark.slow
def test_ctrl_c_ends_all_kernels_in_one_line_with_status_130(notebooks, capsys):
    notebooks("01_a", "import time\ntime.sleep(600)")
    notebooks("02_b", "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(600)")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which pytest-xdist takes away
    assert series.main([]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("Stopped; started again")
