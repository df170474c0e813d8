"""Two processes of this machine stand for two GPUs or two machines: torchrun and gloo in place of NCCL."""

import os
import subprocess
import sys

import pytest
import torch
import two_processes

from helpers.profiles import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv, which torch's Windows builds may lack"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture
def torchrun(tmp_path):
    """`torchrun(*arguments)` runs them in two processes; returns what was printed and the status."""

    def run(*arguments) -> subprocess.CompletedProcess:
        own = {"DATA_DIR": str(tmp_path / "Data"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        own["CUDA_VISIBLE_DEVICES"] = ""  # two processes cannot share a GPU under NCCL
        command = [*TORCHRUN, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True)

    return run


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(torchrun, tmp_path, tiny_checkpoints):
    """Weights to 1e-5, where an update moves them by up to 1e-2: two processes add gradients in another order."""
    done = torchrun(two_processes.__file__, tmp_path, tiny_checkpoints["bert"])
    assert done.returncode == 0, done.stderr[-3_000:]
    one = two_processes.train_tiny(tiny_checkpoints["bert"], 16, in_order=True, save=False)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(one["weights"]) > 8 and second["history"] is None, "the first alone scores"
    for name, weight in one["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    for alone, together in zip(one["history"]["train"], first["history"]["train"], strict=True):
        assert together == pytest.approx(alone, abs=1e-5)
    for alone, together in zip(one["history"]["validation"], first["history"]["validation"], strict=True):
        assert together["accuracy"] == alone["accuracy"], "33 rows in two processes: each counts once"


def test_two_processes_of_which_one_was_killed_go_on_to_the_same_weights(torchrun, tmp_path, tiny_checkpoints):
    """Bit for bit: of two summands the order does not matter, and each process goes on with its own dropout."""
    arguments = two_processes.__file__, tmp_path, tiny_checkpoints["bert"]
    killed = torchrun(*arguments, 8)
    assert killed.returncode != 0 and "Signal 9 (SIGKILL)" in killed.stderr and "rank      : 1" in killed.stderr
    assert not (tmp_path / "rank0.pt").exists(), "the other went on alone"
    done = torchrun(*arguments, 0)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "Resuming after 4 updates" in done.stdout, "a half checkpoint, or none"
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for name, weight in first["whole"]["weights"].items():
        assert torch.equal(first["resumed"]["weights"][name], weight), name
        assert torch.equal(second["resumed"]["weights"][name], weight), name


def test_torchrun_trains_from_a_terminal_and_says_what_is_wrong_once(torchrun, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nfine,good\n")
    own = ["-m", "helpers.train", "--data", "rows.csv", "--text-column", "text", "--output", "model"]
    bad = torchrun(*own, "--label-column", "stars")
    assert bad.returncode != 0 and bad.stderr.count("error: ") == 1 and "'stars'" in bad.stderr
    assert "exitcode  : 2" in bad.stderr and not (tmp_path / "model").exists()
