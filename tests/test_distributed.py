"""Two processes of this machine stand for two GPUs or two machines: torchrun and gloo in place of NCCL."""

import os
import subprocess
import sys

import pytest
import torch
import two_processes

from helpers.profiles import ROOT


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torchrun needs libuv, which torch's Windows builds may lack")
def test_two_processes_of_which_one_was_killed_go_on_to_the_same_weights(tmp_path, tiny_checkpoints, toy_reviews):
    """Bit for bit: of two summands the order does not matter, and each process goes on with its own dropout."""
    toy_reviews.to_json(tmp_path / "rows.jsonl")

    def torchrun(killed_at: int) -> subprocess.CompletedProcess:
        own = {"DATA_DIR": str(tmp_path / "Data"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        own["CUDA_VISIBLE_DEVICES"] = ""  # two processes cannot share a GPU under NCCL
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += [two_processes.__file__, str(tmp_path), tiny_checkpoints["bert"], str(killed_at)]
        return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)

    killed = torchrun(8)
    assert killed.returncode != 0 and "Signal 9 (SIGKILL)" in killed.stderr and "rank      : 1" in killed.stderr
    assert not (tmp_path / "rank0.pt").exists(), "the other went on alone"
    done = torchrun(0)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert "Resuming after 4 updates" in done.stdout, "a half checkpoint, or none"
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert len(first["whole"]) > 8
    for name, weight in first["whole"].items():
        assert torch.equal(first["resumed"][name], weight) and torch.equal(second["resumed"][name], weight), name
