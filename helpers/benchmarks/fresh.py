"""A measurement in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable

from helpers.base.paths import ROOT

CODE = """\
import json, sys
from importlib import import_module

module, function, arguments = sys.argv[1:]
print(json.dumps(getattr(import_module(module), function)(**json.loads(arguments))))
"""


def in_fresh_process(function: Callable, **arguments) -> object:
    """`function(**arguments)` in a new Python process; arguments and result travel as JSON.

    Raises RuntimeError with the end of its error output when the process fails.
    """
    command = [sys.executable, "-c", CODE, function.__module__, function.__name__, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{function.__name__}({arguments}) failed:\n{done.stderr[-2_000:]}")
    return json.loads(done.stdout.splitlines()[-1])
