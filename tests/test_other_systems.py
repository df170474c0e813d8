"""helpers without what only Linux and macOS have, as on Windows, in a process of its own."""

import subprocess
import sys

from helpers.base.paths import ROOT

SCRIPT = """
import ctypes, importlib, pathlib, pkgutil, sys
import psutil  # its own Linux part needs `resource`

sys.modules["resource"] = None  # "import resource" raises ImportError
library = ctypes.CDLL

class Library(library):  # Windows cannot open the process itself, and its C library has no malloc_trim
    def __init__(self, name, *args, **kwargs):
        if name is None:
            raise TypeError("bad argument type")
        super().__init__(name, *args, **kwargs)

ctypes.CDLL = Library
there, read = pathlib.Path.exists, pathlib.Path.read_text
pathlib.Path.exists = lambda self, **k: not self.as_posix().startswith("/proc") and there(self, **k)

def read_text(self, *args, **kwargs):
    if self.as_posix().startswith("/proc"):
        raise FileNotFoundError(self)
    return read(self, *args, **kwargs)

pathlib.Path.read_text = read_text

import helpers
for module in pkgutil.walk_packages(helpers.__path__, "helpers."):
    if module.name != "helpers.start":  # not imported but run, in a notebook's first cell
        importlib.import_module(module.name)

from helpers.benchmarks.steps import StepSpec, measure_step
from helpers.base.memory import peak_memory, reset_peak_memory, resident_memory
from helpers.profiles import fastest_execution

execution = fastest_execution()
assert execution.device_name.endswith("threads)") and len(execution.device_name) > len("(2 threads)"), execution
reset_peak_memory("cpu")
peak, method = peak_memory("cpu")
assert peak > 50e6 and resident_memory() > 50e6 and "VmHWM" not in method and "ru_maxrss" not in method, (peak, method)
row = measure_step(StepSpec("tiny", "lora", 2, 16, "fp32", "lean"), "cpu", sys.argv[1], min_seconds=0)
assert row["samples_per_second"] > 0 and row["peak_memory_method"] == method, row
print(method)
"""


def test_helpers_work_without_resource_proc_and_malloc_trim(tiny_checkpoints):
    command = [sys.executable, "-c", SCRIPT, tiny_checkpoints["bert"]]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.splitlines()[-1] == "resident set of the process at the end of training, not its peak (rss)"
