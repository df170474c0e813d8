"""One seed gives one run: the same record and the same adapter, in another process and on another number of threads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from helpers import profiles
from helpers.data import FEATURES, split_reviews
from helpers.models import build_model
from helpers.profiles import EMBEDDED_BERT, Execution, Profile
from helpers.recipes import RECIPES
from helpers.training import fine_tune

# Of a record: what is measured, when it was made, and whether somebody edits the checkout meanwhile.
MEASURED = ("train_seconds", "train_samples_per_second", "peak_memory_bytes", "created_at", "git_commit", "command")
EXECUTIONS = {"fp32": Execution("cpu", "fp32", "sdpa"), "bf16": Execution("cpu", "bf16", "lean")}


def train(rows: str, folder: str, threads: int) -> None:
    """A short run of the embedded encoder, with dropout, in each number format; it writes below `folder`."""
    before = profiles.DATA_DIR, torch.get_num_threads()
    profiles.DATA_DIR = Path(folder)
    torch.set_num_threads(threads)
    try:
        splits = split_reviews(Dataset.from_json(rows, features=FEATURES, cache_dir=f"{rows}-cache"), 64, 32, 32)
        recipe = replace(
            RECIPES["lora_bert_sst2"], learning_rate=1e-3, num_train_epochs=2, lora_dropout=0.1,
            target_modules=("query", "key", "value"),
        )  # fmt: skip
        for name, execution in EXECUTIONS.items():
            model = build_model(recipe, EMBEDDED_BERT, execution)
            fine_tune(model, recipe, splits, Profile(name, True, 64, 32, 32, 32), execution)
    finally:
        profiles.DATA_DIR = before[0]
        torch.set_num_threads(before[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, toy_reviews) -> dict[str, Path]:
    """Where a run on two threads wrote, the same one in another process, and one there on a single thread."""
    root = tmp_path_factory.mktemp("runs")
    rows, where = str(root / "rows.jsonl"), {name: root / name for name in ("here", "there", "one thread")}
    toy_reviews.to_json(rows)
    train(rows, str(where["here"]), 2)
    script = """if True:
        import sys
        from test_determinism import train
        train(sys.argv[1], sys.argv[2], 2)
        train(sys.argv[1], sys.argv[3], 1)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, rows, str(where["there"]), str(where["one thread"])],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    return where


def _run(folder: Path, name: str) -> tuple[dict, Path]:
    """The record of the run in that number format as it was saved, without what is measured; its adapter's folder."""
    (path,) = (folder / name / "results").iterdir()
    record = {key: value for key, value in json.loads(path.read_text()).items() if key not in MEASURED}
    return record, folder / name / "checkpoints" / path.stem


@pytest.mark.parametrize("name", EXECUTIONS)
def test_another_process_gives_the_same_record_and_the_same_bytes(folders, name):
    (record, adapter), (again, copy) = (_run(folders[place], name) for place in ("here", "there"))
    assert record == again
    files = sorted(path.name for path in adapter.iterdir())
    assert "adapter_model.safetensors" in files and files == sorted(path.name for path in copy.iterdir())
    assert not [file for file in files if (adapter / file).read_bytes() != (copy / file).read_bytes()]


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-3)])
def test_another_number_of_threads_gives_the_same_but_for_rounding(folders, name, tolerance):
    """Weights and losses to `tolerance`: updates move weights by up to 8e-3. Sums may be taken in another order."""
    (record, adapter), (other, copy) = (_run(folders[place], name) for place in ("here", "one thread"))
    weights, moved = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, copy))
    torch.testing.assert_close(moved, weights, atol=tolerance, rtol=0)
    for part in ("train", "validation"):
        losses = ([row["loss"] for row in one["history"][part]] for one in (record, other))
        assert next(losses) == pytest.approx(next(losses), abs=tolerance)
    scored = {"device", "history", "metrics", "accuracy_ci95", "confusion_matrix", "correct"}
    assert {key for key in record if record[key] != other[key]} <= scored
    assert record["device"] != other["device"]
