"""Two hundred runs in one process: trained, scored, saved, loaded and asked, they leave nothing behind in it."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from datasets import Dataset

from helpers.data import FEATURES, split_reviews
from helpers.inference import SentimentClassifier
from helpers.models import build_model
from helpers.profiles import Profile, fastest_execution
from helpers.recipes import RECIPES
from helpers.training import fine_tune

CYCLES, WARM_UP, EVERY = 200, 50, 5
# KB that the process may grow by in a cycle. Loading takes 6 of them: safetensors 0.8 loses two numbers with every
# tensor. A tiny model that stayed would be 600.
LIMIT = 40


def run_cycles(checkpoint: str, rows: str, held: str) -> None:
    """What the process below does. It writes (KB of memory, open files, threads, children) every few cycles."""
    splits = split_reviews(Dataset.from_json(rows, features=FEATURES, cache_dir=f"{rows}-cache"), 16, 8, 8)
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(), base_model=checkpoint, num_train_epochs=1, min_updates=None,
        per_device_train_batch_size=8, max_length=16,
    )  # fmt: skip
    profile, execution, process = Profile("tiny", False, 16, 8, 8, 16), fastest_execution(), psutil.Process()
    for cycle in range(1, CYCLES + 1):
        adapter = fine_tune(build_model(recipe, checkpoint, execution), recipe, splits, profile, execution).adapter
        assert len(SentimentClassifier.from_pretrained(adapter, execution).predict(splits["test"]["text"][:])) == 8
        if cycle % EVERY == 0:
            gc.collect()
            counts = process.num_fds(), process.num_threads(), len(process.children(recursive=True))
            with open(held, "a") as file:
                print(json.dumps([process.memory_info().rss / 1024, *counts]), file=file)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory and open files in other ways")
def test_two_hundred_runs_leave_no_memory_file_thread_or_process(tiny_checkpoints, toy_reviews, tmp_path):
    rows, held = str(tmp_path / "rows.jsonl"), tmp_path / "held.jsonl"
    toy_reviews.to_json(rows)
    script = "import sys; from test_soak import run_cycles; run_cycles(*sys.argv[1:])"
    settings = {"PYTHONPATH": str(Path(__file__).parent), "DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, tiny_checkpoints["bert"], rows, str(held)],
        capture_output=True, text=True, env={**os.environ, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    memory, *counts = np.array([json.loads(line) for line in held.read_text().splitlines()][WARM_UP // EVERY :]).T
    slope = np.polyfit(EVERY * np.arange(len(memory)), memory, 1)[0]
    print(f"{slope:.1f} KB a cycle, {memory[-1] / 1024:.0f} MB at the end")
    assert slope < LIMIT
    for count in counts:
        assert count[-1] <= count[0]
    assert counts[-1][-1] == 0
