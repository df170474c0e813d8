"""Two processes of this machine stand for two GPUs or two machines: torchrun and gloo in place of NCCL."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
import two_processes
from filelock import FileLock

from helpers.inference import SentimentClassifier
from helpers.results import load_records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv, which torch's Windows builds may lack")

SCRIPT = str(Path(two_processes.__file__))
COMMAND = [*two_processes.TORCHRUN, "--nproc_per_node=2", SCRIPT]


@pytest.fixture
def torchrun(tmp_path):
    """`torchrun(*arguments)` runs two_processes.py in two processes under `quick`; returns what was printed and rc."""

    def run(*arguments) -> subprocess.CompletedProcess:
        own = {"PROFILE": "quick", "DATA_DIR": str(tmp_path / "Data"), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        own["CUDA_VISIBLE_DEVICES"] = ""  # two processes cannot share a GPU under NCCL
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], cwd=tmp_path, env={**os.environ, **own},
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    return run


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(torchrun, tmp_path, tiny_checkpoints):
    """Weights to 1e-5, where an update moves them by up to 1e-2 and the two differed by 1e-7 when this was written: two
    processes add the rows' gradients in another order, and AdamW divides by their size, however small they are.

    Validation counts every row once, 33 in batches of 16 included. Its loss alone is Trainer's, to 1e-2: the batch that
    is filled up with rows seen before weighs in with the mean loss of all its rows."""
    done = torchrun("weights", tiny_checkpoints["bert"], tmp_path)
    assert done.returncode == 0, done.stderr
    one = two_processes.train_tiny(tiny_checkpoints["bert"], tmp_path / "one", 16)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(one["weights"]) == 10
    for name, weight in one["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    assert [len(first["history"][part]) for part in ("train", "validation")] == [12, 3]
    for alone, together in zip(one["history"]["train"], first["history"]["train"], strict=True):
        assert together == pytest.approx(alone, abs=1e-5)
    for alone, together in zip(one["history"]["validation"], first["history"]["validation"], strict=True):
        assert together == pytest.approx(alone, abs=1e-2) and together["accuracy"] == alone["accuracy"]


def test_torchrun_trains_a_recipe_into_a_folder_that_predicts(torchrun, tmp_path, fp32):
    done = torchrun("train", "lora_bert_sst2", "--improved", "--output", "model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Profile quick: lora_bert_sst2, improved, 64 reviews") == 1
    assert done.stdout.count("Adapter: model") == 1 and done.stdout.count("train_runtime") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Data", "model"]
    assert not list((tmp_path / "Data" / "quick" / "checkpoints").iterdir())
    bag, record = load_records(tmp_path / "Data" / "quick" / "results")
    assert (bag.variant, record.variant) == ("bag_of_words", "improved")
    assert record.device.startswith("2 x ")
    batches = ("per_device_train_batch_size", "gradient_accumulation_steps", "effective_batch_size")
    assert [record.settings[name] for name in batches] == [16, 1, 32]
    assert record.history["validation"][-1]["step"] == 4, "two epochs of two updates, not of four"
    # 64 rows, two epochs: the rows of both processes count
    assert record.train_samples_per_second == pytest.approx(128 / record.train_seconds)
    classifier = SentimentClassifier.from_pretrained(tmp_path / "model", fp32)
    assert {answer.label for answer in classifier.predict(["Wonderful.", "Awful."])} <= {"NEGATIVE", "POSITIVE"}


def test_bad_input_is_said_once_and_ends_both(torchrun, tmp_path):
    (tmp_path / "bad.csv").write_text("text,stars\nfine,5\n")
    arguments = ("--data", "bad.csv", "--text-column", "text", "--label-column", "label", "--output", "model")
    done = torchrun("train", *arguments)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("error: bad.csv has no column 'label'") == 1
    assert "exitcode  : 2" in done.stderr  # of both, or the other is ended before it has said it
    assert not (tmp_path / "model").exists()


def test_a_run_that_is_under_way_is_said_once_and_ends_both(torchrun, tmp_path):
    checkpoints = tmp_path / "Data" / "quick" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with FileLock(checkpoints / ".lora_bert_sst2-as_written-seed42.lock"):
        done = torchrun("train", "lora_bert_sst2")
    assert done.stderr.count("error: Another process is training now") == 1
    assert "exitcode  : 2" in done.stderr  # of both, or the other is ended before it has said it
    assert [path.name for path in checkpoints.iterdir()] == [".lora_bert_sst2-as_written-seed42.lock"]


def test_a_killed_process_ends_the_other_and_is_named(torchrun, tmp_path):
    done = torchrun("killed", tmp_path / "note", "lora_bert_sst2", "--batch-size", 4, "--output", "model")
    assert time.time() - float((tmp_path / "note").read_text()) < 30, "the other process went on or hung"
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr and "rank      : 1" in done.stderr
    assert "Adapter:" not in done.stdout and not (tmp_path / "model").exists()
    results = tmp_path / "Data" / "quick" / "results"
    assert [json.loads(path.read_text())["variant"] for path in results.iterdir()] == ["bag_of_words"]


def test_two_processes_of_which_one_was_killed_go_on_to_the_same_weights(torchrun, tmp_path, tiny_checkpoints):
    """Bit for bit: of two summands the order does not matter, and each process goes on with its own dropout."""
    step = 3 + os.getpid() % 9  # a random one, of twelve
    killed = torchrun("resumed", tiny_checkpoints["bert"], tmp_path, step)
    assert killed.returncode != 0 and "Signal 9 (SIGKILL)" in killed.stderr and "rank      : 1" in killed.stderr
    assert not (tmp_path / "rank0.pt").exists(), "the other went on alone"
    done = torchrun("resumed", tiny_checkpoints["bert"], tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"Resuming after {step - 1} updates") == 1, "a half checkpoint, or an old one"
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(first["whole"]) == 10
    for name, weight in first["whole"].items():
        assert torch.equal(first["resumed"][name], weight) and torch.equal(second["resumed"][name], weight), name
    assert not (tmp_path / "run.lock").exists()
