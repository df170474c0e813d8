"""What a process is like after the imports, and on other systems. test_platforms.py has what a first cell installs."""

import logging
import subprocess
import sys

import pytest

from helpers.profiles import ROOT

MODULES = sorted(f"helpers.{path.stem}" for path in (ROOT / "helpers").glob("*.py"))
IMPORTS_ONLY = """
import importlib, matplotlib, os, seaborn, sys

def around():
    settings = {**os.environ, **{key: str(value) for key, value in matplotlib.rcParams.items() if key != "backend"}}
    return settings, sorted(os.listdir(".")), sorted(os.listdir(sys.argv[1]))

before = around()
for name in sys.argv[2:]:
    importlib.import_module(name)
after = around()
changed = {key for key in before[0].keys() | after[0].keys() if before[0].get(key) != after[0].get(key)}
# torch sets some variables of its own, as it does wherever it is imported.
print(sorted(key for key in changed if not key.startswith(("KMP_", "TORCH", "PYTORCH", "CUDA_MODULE"))))
print(before[1:] == after[1:], "torchao" in sys.modules)
"""
# As on Windows: no `resource`, no /proc.
ELSEWHERE = """
import importlib, pathlib, sys
import psutil  # its own Linux part needs `resource`

sys.modules["resource"] = None  # "import resource" raises ImportError
there = pathlib.Path.exists
pathlib.Path.exists = lambda self, **k: not self.as_posix().startswith("/proc") and there(self, **k)
for name in sys.argv[2:]:
    importlib.import_module(name)

from helpers.profiles import device_name
from helpers.results import peak_memory, reset_peak_memory

assert device_name().endswith("threads)") and len(device_name()) > len("(2 threads)"), device_name()
reset_peak_memory("cpu")
print(*peak_memory("cpu"))
"""


def _said(script: str, folder) -> list[str]:
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(folder), "DATA_DIR": str(folder / "Data")}
    command = [sys.executable, "-c", script, str(ROOT), *MODULES]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout.splitlines()


def test_warnings_of_transformers_are_shown_but_those_that_are_no_news():
    logger = logging.getLogger("transformers")
    said = ("There were missing keys in the checkpoint", "BertModel LOAD REPORT from: x")
    shown = [logger.handlers[0].filter(logging.makeLogRecord({"msg": message})) for message in said]
    assert logger.level <= logging.WARNING and [bool(one) for one in shown] == [True, False]


@pytest.mark.slow
def test_an_import_of_helpers_does_nothing_but_import(tmp_path):
    assert _said(IMPORTS_ONLY, tmp_path) == ["[]", "True False"]


@pytest.mark.slow
def test_helpers_work_on_other_systems(tmp_path):
    assert _said(ELSEWHERE, tmp_path)[-1].startswith("None not measured: only Linux")
