"""What the notebooks say of their time: measured on a CPU, estimated from counted operations on a T4."""

from dataclasses import replace

import nbformat
import pytest

from helpers.base.paths import ROOT
from helpers.benchmarks.estimate import SHARES, T4_PEAK, Run, hub_runs, operations
from helpers.profiles import COMMITTED
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.series.__main__ import takes, write_times

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def records() -> tuple[StudyRecord, StudyRecord]:
    return tuple(
        StudyRecord.load(COMMITTED / "quick" / "evidence" / f"{name}.json")
        for name in ("notebook_times", "estimate_t4")
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_s_head_says_its_times_as_the_records_have_them(path, records):
    head = nbformat.read(path, as_version=4).cells[0].source
    assert f"\n{takes(path.stem[:2], *records)}" in head, "run: python -m helpers.series --times"


def test_times_are_written_into_the_heads_and_nothing_else(tmp_path, records):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 02\n\nTakes: ages.\n\nTakes long.")])
    nbformat.write(notebook, tmp_path / "02_lora.ipynb")
    write_times(tmp_path)
    written = nbformat.read(tmp_path / "02_lora.ipynb", as_version=4).cells[0].source
    assert written == f"# 02\n\n{takes('02', *records)}\n\nTakes long."
    assert "measured" in written and "estimated" in written


def test_operations_grow_with_rows_passes_and_predictions(tiny_checkpoints):
    recipe = replace(RECIPES["lora_bert_sst2"], base_model=tiny_checkpoints["bert"], max_length=32)
    folder = tiny_checkpoints["bert"]
    once = operations(Run(recipe, 10, 1, 0, "rotten_tomatoes"), folder)
    assert operations(Run(recipe, 20, 3, 0, "rotten_tomatoes"), folder) == pytest.approx(6 * once)
    predicted = operations(Run(recipe, 0, 0, 10, "rotten_tomatoes"), folder)
    assert 0.3 * once < predicted < 0.6 * once  # LoRA's backward pass skips the frozen weights' own gradients


def test_the_estimate_is_what_the_counted_operations_give(records):
    for row in records[1].rows:
        assert row["runs"] == len(hub_runs()[row["notebook"]])
        for minutes, share in zip(row["minutes"], reversed(SHARES), strict=True):
            assert minutes == round(row["operations"] / (share * T4_PEAK) / 60)
