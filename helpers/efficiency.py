"""What a run costs, measured, and what makes it cheaper on a CPU without changing what it learns."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: str) -> None:
    """Starts a new peak-memory reading for `device` ("cuda" or "cpu"), where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # Linux: resets VmHWM, see proc(5)


def peak_memory(device: str) -> tuple[int, str]:
    """(bytes, how they were measured): the peak since `reset_peak_memory`.

    On CUDA it is what torch's allocator handed out. On CPU it is the resident memory of the whole process: Python, the
    libraries and the data included.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), "torch.cuda.max_memory_allocated"
    if _CLEAR.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024, "peak resident set of the process during training (VmHWM)"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "peak resident set of the process since its start (ru_maxrss)"


@contextmanager
def fast_dropout(device: str) -> Iterator[None]:
    """Dropout on CPU from 16 random bits an element; elsewhere, and in evaluation, torch's own.

    torch draws CPU masks with one Bernoulli call an element on one thread, over a third of a step at BERT's rates.
    Four 16-bit numbers cut from each 64-bit draw give the same distribution (rates rounded to 1/65536) from the same
    generator and seed.
    """
    if device != "cpu":
        yield
        return
    original = functional.dropout

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or inplace or not 0 < p < 1:
            return original(input, p, training, inplace)
        count = input.numel()
        bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
        keep = bits.view(input.shape) >= round(p * 2**16) - 2**15
        return input * keep.to(input.dtype).mul_(1 / (1 - p))

    functional.dropout = dropout
    try:
        yield
    finally:
        functional.dropout = original
