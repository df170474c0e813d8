"""How much memory this process holds, and held at most, and what becomes of what it frees."""

import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: str) -> None:
    """Starts a new peak-memory reading for `device` ("cuda" or "cpu"), where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        gc.collect()
        return_freed_memory()  # or it would count as held
        _CLEAR.write_text("5")  # Linux: resets VmHWM, see proc(5)


def peak_memory(device: str) -> tuple[int, str]:
    """(bytes, how they were measured): the peak since `reset_peak_memory`, as far as the system tells it.

    On CUDA it is what torch's allocator handed out. On CPU it is the resident memory of the whole process: Python, the
    libraries and the data included. Only Linux can start anew; macOS and Windows give the peak since the process began.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), "torch.cuda.max_memory_allocated"
    if _CLEAR.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"))):
        return int(peak[1]) * 1024, "peak resident set of the process during training (VmHWM)"
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset, "peak working set of the process since its start (peak_wset)"
    if resource is None:
        return memory.rss, "resident set of the process at the end of training, not its peak (rss)"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "peak resident set of the process since its start (ru_maxrss)"


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def keep_freed_memory(wanted: bool = True) -> None:
    """Has this process keep what it frees, for what it allocates next, where its C library is glibc; or no longer.

    Of itself glibc gives every block above 32 MB back and asks for the next anew, which the system hands out in pages
    that it has to zero: for activations, at every step. A process keeps its peak until `return_freed_memory`, and the
    peak is somewhat higher, as free blocks lie between others. `python -m helpers.benchmarks ladder` measures it.
    """
    global _kept
    if wanted != _kept and (libc := _glibc()):
        libc.mallopt(_MMAP_MAX, 0 if wanted else 65_536)
        libc.mallopt(_TRIM_THRESHOLD, -1 if wanted else 64 * 2**20)
        if not wanted:  # where glibc's own threshold ends after blocks of that size
            libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
            libc.malloc_trim(0)
        _kept = wanted


_kept = False


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, where the C library is glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except TypeError:  # Windows
        return None
    return libc if hasattr(libc, "malloc_trim") else None
