"""What a process is like after the imports, and on other systems. test_platforms.py has what a first cell installs."""

import subprocess
import sys

import pytest

from helpers.profiles import ROOT

MODULES = sorted(f"helpers.{path.stem}" for path in (ROOT / "helpers").glob("*.py"))
# Only imported: each is loaded by itself, and nothing around it may look other than before.
IMPORTS_ONLY = """
import importlib, json, os, pathlib, sys
import matplotlib, seaborn  # whose own import registers colours and their like
before = [dict(os.environ), dict(matplotlib.rcParams), sorted(os.listdir(".")), sorted(os.listdir(sys.argv[1]))]
for name in sys.argv[2:]:
    importlib.import_module(name)
after = [dict(os.environ), dict(matplotlib.rcParams), sorted(os.listdir(".")), sorted(os.listdir(sys.argv[1]))]
for was, now in zip(before[:2], after[:2]):
    was.pop("backend", None), now.pop("backend", None)
    changed = {key for key in was.keys() | now.keys() if was.get(key) != now.get(key)}
    # torch and its like set some of their own, as they do wherever they are imported.
    print(sorted(key for key in changed if not key.startswith(("KMP_", "TORCH", "CUDA_MODULE", "PYTORCH", "TF2"))))
print(before[2:] == after[2:], sys.modules.get("torchao", "not hidden"))
"""

# As on Windows: no `resource`, no /proc, no C library to be opened as the process itself.
ELSEWHERE = """
import ctypes, importlib, pathlib, sys
import psutil  # its own Linux part needs `resource`

sys.modules["resource"] = None  # "import resource" raises ImportError
library = ctypes.CDLL

class Library(library):
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
for name in sys.argv[2:]:
    importlib.import_module(name)

from helpers.profiles import device_name
from helpers.results import peak_memory, reset_peak_memory

assert device_name().endswith("threads)") and len(device_name()) > len("(2 threads)"), device_name()
reset_peak_memory("cpu")
print(*peak_memory("cpu"))
"""


def _process(script: str, folder) -> list[str]:
    command = [sys.executable, "-c", script, str(ROOT), *MODULES]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=_environment(folder))
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout.splitlines()


def _environment(folder) -> dict[str, str]:
    return {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(folder), "DATA_DIR": str(folder / "Data")}


def test_an_import_of_helpers_does_nothing_but_import(tmp_path):
    assert _process(IMPORTS_ONLY, tmp_path) == ["[]", "[]", "True not hidden"]


@pytest.mark.slow
def test_helpers_work_on_other_systems(tmp_path):
    assert _process(ELSEWHERE, tmp_path)[-1].startswith("None not measured: only Linux")
