"""`python -m helpers.series` on notebooks that are made here."""

import os
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import Dataset

from helpers import series
from helpers.data import FEATURES, split_reviews
from helpers.models import build_model
from helpers.profiles import ROOT, Profile
from helpers.recipes import RECIPES
from helpers.training import fine_tune


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
def test_notebooks_run_in_order_each_in_a_fresh_kernel(notebooks, tmp_path, capsys):
    notebooks("02_b", "print('x' in dir())", "import os\nprint(os.environ['SERIES_COMMAND'])")
    notebooks("01_a", "x = 1", "x + 1")
    assert series.main([]) == 0
    output = capsys.readouterr().out
    assert output.index("01_a") < output.index("02_b") < output.index("All done in 0:")
    cells = cells_of(tmp_path / "Data/quick/notebooks/02_b.ipynb")
    assert [cell.outputs[0].text for cell in cells] == ["False\n", "python -m helpers.series 02\n"]
    assert cells_of(tmp_path / "notebooks/01_a.ipynb")[1].outputs == [], "nothing is stored unasked"


@pytest.mark.slow
def test_a_chosen_notebook_is_stored_in_place(notebooks, tmp_path):
    notebooks("01_a", "1 / 0")
    notebooks("02_b", "40 + 2")
    assert series.main(["02", "--store"]) == 0
    (cell,) = cells_of(tmp_path / "notebooks/02_b.ipynb")
    assert cell.outputs[0].data["text/plain"] == "42" and cell.execution_count == 1
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
    notebooks("02_b", "2")
    stored = (tmp_path / "notebooks/01_a.ipynb").read_text()
    assert series.main(["--store"]) == 1
    out, err = capsys.readouterr()
    last = out.strip().splitlines()[-1]
    assert last.startswith("01_a.ipynb") and said in last and last.endswith("Data/quick/notebooks/01_a.ipynb]")
    assert "Traceback" not in out + err
    assert cells_of(tmp_path / "Data/quick/notebooks/01_a.ipynb")[0].outputs[0].text == "written\n"
    assert (tmp_path / "notebooks/01_a.ipynb").read_text() == stored, "only a whole one replaces a stored notebook"
    assert not (tmp_path / "Data/quick/notebooks/02_b.ipynb").exists()


def test_ctrl_c_is_one_line_and_status_130(notebooks, monkeypatch, capsys):
    def execute(*_, **__):
        raise KeyboardInterrupt

    notebooks("01_a", "1")
    monkeypatch.setattr(series.NotebookClient, "execute", execute)
    assert series.main([]) == 130
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("Stopped; started again")


def test_a_notebook_that_is_not_there_is_an_error(notebooks, capsys):
    notebooks("01_a", "1")
    with pytest.raises(SystemExit) as error:
        series.main(["09"])
    assert error.value.code == 2 and "no notebook starts with 09" in capsys.readouterr().err


def train_a_little(checkpoint: str, rows: Path):
    """Fine-tunes a tiny BERT with dropout for 48 updates in 4 epochs."""
    short = {"learning_rate": 1e-2, "max_length": 16, "num_train_epochs": 4, "per_device_train_batch_size": 4}
    recipe = replace(RECIPES["lora_bert_sst2"], base_model=checkpoint, **short)
    splits = split_reviews(Dataset.from_json(str(rows), features=FEATURES), 48, 32, 64)
    return fine_tune(build_model(recipe, checkpoint, seed=1), recipe, splits, Profile("tiny", embedded=False, seed=1))


CELL = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers.trainer import Watcher
import test_series
torch.set_num_threads({threads})
mark, plain = Path({folder!r}) / "step.txt", Watcher.on_step_end
def on_step_end(self, args, state, control, **rest):
    if mark.exists() and state.global_step == int(mark.read_text()):
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, args, state, control, **rest)
Watcher.on_step_end = on_step_end
test_series.train_a_little({checkpoint!r}, Path({folder!r}) / "rows.jsonl")
"""


@pytest.mark.slow
def test_a_training_goes_on_where_its_kernel_was_killed(
    notebooks, tmp_path, monkeypatch, capsys, tiny_checkpoints, toy_reviews
):
    toy_reviews.to_json(tmp_path / "rows.jsonl")
    (tmp_path / "step.txt").write_text(str(13 + os.getpid() % 34))  # a random one behind the first epoch's 12
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    values = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "threads": torch.get_num_threads()}
    notebooks("01_a", CELL.format(checkpoint=tiny_checkpoints["bert"], **values))
    assert series.main([]) == 1
    assert "kernel died" in capsys.readouterr().out and not (tmp_path / "step.txt").exists()
    assert series.main([]) == 0
    assert "Resuming after" in (tmp_path / "Data/quick/notebooks/01_a.ipynb").read_text()
    resumed = next((tmp_path / "Data/tiny/checkpoints").glob("*/adapter_model.safetensors")).read_bytes()
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "another"))
    whole = train_a_little(tiny_checkpoints["bert"], tmp_path / "rows.jsonl")
    assert (whole.adapter / "adapter_model.safetensors").read_bytes() == resumed
