import os
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from datasets import Dataset

from helpers import profiles
from helpers.base.paths import ROOT
from helpers.data import FEATURES, split_reviews
from helpers.models import build_model
from helpers.profiles import PROFILES, Execution, Profile
from helpers.recipes import RECIPES
from helpers.results import summary
from helpers.series import __main__ as series_command
from helpers.series import executing
from helpers.training import fine_tune


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A series of its own in `tmp_path`, run under `quick`; returns a function that writes a notebook of cells."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(series_command, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(profiles, "DATA_DIR", tmp_path / "Data")
    monkeypatch.setenv("PROFILE", "quick")

    def write(name, *cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")

    return write


def test_notebooks_run_in_order_in_fresh_kernels(notebooks, tmp_path, capsys):
    notebooks("02_b", "print('x' in dir())", "import os\nprint(os.environ['SERIES_COMMAND'])")
    notebooks("01_a", "x = 1", "x + 1")
    assert series_command.main([]) == 0
    output = capsys.readouterr().out
    assert output.index("01_a") < output.index("02_b") < output.index("All done in 0:")
    copy = nbformat.read(tmp_path / "Data/quick/notebooks/02_b.ipynb", 4)
    assert copy.cells[0].outputs[0].text == "False\n"
    assert copy.cells[1].outputs[0].text == "python -m helpers.series 02\n"
    assert nbformat.read(tmp_path / "notebooks/01_a.ipynb", 4).cells[1].outputs == []


def test_a_failing_notebook_stops_the_series_in_one_line(notebooks, tmp_path, capsys):
    notebooks("01_a", "1", "reviews = []\nreviews[0]")
    notebooks("02_b", "2")
    assert series_command.main([]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("01_a.ipynb, cell 2 of 2 (reviews = []) failed: IndexError: list index out of range [")
    assert last.endswith("01_a.ipynb]")
    cells = nbformat.read(tmp_path / "Data/quick/notebooks/01_a.ipynb", 4).cells
    assert cells[0].outputs and "IndexError" in str(cells[1].outputs)
    assert not (tmp_path / "Data/quick/notebooks/02_b.ipynb").exists()


def test_a_kernel_that_dies_ends_the_series_in_one_line_and_keeps_what_it_wrote(notebooks, tmp_path, capsys):
    (tmp_path / "figure.png").write_text("before")
    notebooks("01_a", "print('written')", f"open({str(tmp_path / 'record.json')!r}, 'w').write('done')",
              "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "1")  # fmt: skip
    stored = (tmp_path / "notebooks/01_a.ipynb").read_text()
    assert series_command.main(["--store"]) == 1
    out, err = capsys.readouterr()
    last = out.strip().splitlines()[-1]
    assert last.startswith("01_a.ipynb, cell 3 of 4 (import os, signal): the kernel died, most likely because memory")
    assert "python -m helpers.series 01" in last and "Traceback" not in out + err
    assert (tmp_path / "record.json").read_text() == "done"
    assert nbformat.read(tmp_path / "Data/quick/notebooks/01_a.ipynb", 4).cells[0].outputs[0].text == "written\n"
    assert (tmp_path / "notebooks/01_a.ipynb").read_text() == stored, (
        "a stored notebook is replaced by a whole one only"
    )


def test_a_kernel_that_does_not_start_is_one_line(notebooks, monkeypatch, capsys):
    def execute(self, **options):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    notebooks("01_a", "1")
    monkeypatch.setattr(executing.NotebookClient, "execute", execute)
    assert series_command.main([]) == 1
    assert "01_a.ipynb: its kernel did not start (Kernel didn't respond in 60 seconds). Jup" in capsys.readouterr().out


def train_a_little(checkpoint, rows, seed):
    """Fine-tunes a tiny BERT with dropout for 48 updates."""
    recipe = replace(
        RECIPES["lora_bert_sst2"], base_model=checkpoint, learning_rate=1e-2, max_length=16, num_train_epochs=4,
        per_device_train_batch_size=4,
    )  # fmt: skip
    fp32, profile = Execution("cpu", "fp32", "eager"), Profile("tiny", False, 48, 32, 64, max_length=16, seed=seed)
    splits = split_reviews(Dataset.from_json(str(rows), features=FEATURES), 48, 32, 64)
    return fine_tune(build_model(recipe, checkpoint, fp32, seed), recipe, splits, profile, fp32)


CELL = """
import signal, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_resuming, test_series
from helpers.fitting import resuming
torch.set_num_threads({threads})
folder = Path({folder!r})
if (folder / "step.txt").exists():
    resuming.SECONDS_BETWEEN_SAVES = 0
    resuming.Saver.on_step_end = test_resuming.signal_at(int((folder / "step.txt").read_text()), signal.SIGKILL)
    (folder / "step.txt").unlink()
test_series.train_a_little({checkpoint!r}, folder / "rows.jsonl", 1)
"""


def test_a_notebook_whose_kernel_is_killed_goes_on_to_the_same_weights(
    notebooks, tmp_path, monkeypatch, capsys, tiny_checkpoints, toy_reviews
):
    toy_reviews.to_json(tmp_path / "rows.jsonl")
    (tmp_path / "step.txt").write_text(str(13 + os.getpid() % 30))  # a random one, of 48
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "Data"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    values = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "threads": torch.get_num_threads()}
    notebooks("01_a", CELL.format(checkpoint=tiny_checkpoints["bert"], **values))
    assert series_command.main([]) == 1
    assert "the kernel died" in capsys.readouterr().out and not (tmp_path / "step.txt").exists()
    assert series_command.main([]) == 0
    assert "Resuming after" in (tmp_path / "Data/quick/notebooks/01_a.ipynb").read_text()
    resumed = next((tmp_path / "Data/tiny/checkpoints").glob("*/adapter_model.safetensors")).read_bytes()
    monkeypatch.setattr(profiles, "DATA_DIR", tmp_path / "another")
    whole = train_a_little(tiny_checkpoints["bert"], tmp_path / "rows.jsonl", 1)
    assert (whole.adapter / "adapter_model.safetensors").read_bytes() == resumed


def test_chosen_notebooks_are_stored_in_place(notebooks, tmp_path):
    notebooks("01_a", "1 / 0")
    notebooks("02_b", "40 + 2")
    assert series_command.main(["02", "--store"]) == 0
    cell = nbformat.read(tmp_path / "notebooks/02_b.ipynb", 4).cells[0]
    assert cell.outputs[0].data["text/plain"] == "42" and cell.execution_count == 1
    assert "execution" not in cell.metadata


def test_a_notebook_that_is_not_there_is_an_error(notebooks, capsys):
    notebooks("01_a", "1")
    with pytest.raises(SystemExit) as error:
        series_command.main(["09"])
    assert error.value.code == 2
    assert "no notebook starts with 09" in capsys.readouterr().err


def test_the_summary_puts_the_bag_of_words_beside_each_run(record):
    record = replace(record, train_seconds=61.4)
    bag = replace(record, variant="bag_of_words", metrics={"accuracy": 0.5})
    same_rows = replace(record, recipe="lora_distilbert_q")
    fewer_rows = replace(record, recipe="lora_bert_cased", n_train=record.n_train - 1)
    runs = [record, bag, same_rows, fewer_rows]
    lines = summary(runs, PROFILES["quick"]).splitlines()
    assert lines[1].split() == ["qlora_bert", "improved", "4", "75.0%", "[50.0%,", "100.0%]", "50.0%", "61"]
    assert lines[2].split()[-2] == "50.0%" and "50.0%" not in lines[3].split()
    assert lines[-1] == "Figures: Data/quick/*.png   Records: Data/quick/results/*.json"
