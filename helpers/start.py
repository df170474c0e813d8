"""What each notebook's first cell runs: it finds the series, installs what is missing, and sets the process up.

The kernel's own packages stay as they are, torch and numpy included: what is installed in its range is a constraint on
pip. Only what is out of range, as transformers is on Kaggle, is exchanged, before its first import.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import VERSION_PATTERN

ROOT = Path(__file__).resolve().parent.parent


def installed_versions(distributions: Iterable[metadata.Distribution] | None = None) -> dict[str, str]:
    """Normalized name -> version of every installed package; of a name that is there twice, the one that imports."""
    found = list(metadata.distributions() if distributions is None else distributions)
    return {canonicalize_name(one.name): one.version for one in reversed(found) if one.name}


def unmet(requirements_file: Path, installed: dict[str, str]) -> list[Requirement]:
    """The requirements of a file that are not installed, or in a version that is out of their range."""
    lines = (line.split("#")[0].strip() for line in requirements_file.read_text(encoding="utf-8").splitlines())
    wanted = {canonicalize_name(one.name): one for one in map(Requirement, filter(None, lines))}
    return [
        requirement
        for name, requirement in wanted.items()
        if name not in installed or not requirement.specifier.contains(installed[name], prereleases=True)
    ]


def constraints(installed: dict[str, str], wrong: list[Requirement]) -> list[str]:
    """`name==version` lines that keep every installed package as it is, but those of `wrong`."""
    free = {canonicalize_name(requirement.name) for requirement in wrong}
    readable = re.compile(VERSION_PATTERN, re.VERBOSE | re.IGNORECASE)  # pip stops at any other version
    kept = sorted(name for name, version in installed.items() if readable.fullmatch(version))
    return [f"{name}=={installed[name]}" for name in kept if name not in free]


def install_missing(requirements_file: Path) -> None:
    """Installs what of `requirements_file` is missing or out of range beside everything that is installed.

    Raises RuntimeError, in one line, where a package that is out of range has been imported by now, or pip fails.
    """
    installed = installed_versions()
    wrong = unmet(requirements_file, installed)
    if not wrong:
        return
    names = ", ".join(map(str, wrong))
    packages = metadata.packages_distributions()  # by the modules that they hold
    used = {canonicalize_name(name) for module in packages.keys() & sys.modules.keys() for name in packages[module]}
    if stale := used & {canonicalize_name(requirement.name) for requirement in wrong}:
        raise RuntimeError(
            f"{', '.join(stale)} is in use but out of range ({names}). Restart the runtime and run this cell first."
        )
    print(f"Installing {names}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "constraints.txt"
        keep.write_text("\n".join(constraints(installed, wrong)), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        command += ["-r", str(requirements_file), "-c", str(keep)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            "pip could not install what is missing. Is the internet on? On Kaggle: Settings > Turn on internet. "
            f"pip says: {' '.join(done.stderr.splitlines()[-2:])}"
        )
    importlib.invalidate_caches()


def prepare_process() -> None:
    """Sets up this process: one GPU, no torchao, no progress bars of loading, no warnings that concern no result."""
    # On two GPUs Trainer's DataParallel doubles the batch and breaks 4 bits; under torchrun each process has its own.
    if "LOCAL_RANK" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unset, it warns at each process that is started
    sys.modules["torchao"] = None  # peft raises for the old version that Colab and Kaggle preinstall
    warnings.filterwarnings("ignore", message="IProgress not found")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Could not find a config file in")  # peft without a network
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # notebook 03 says so

    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    # Its warnings are shown, but for two that are no news: a new head's (see models.load_classifier), and of merging.
    known = re.compile("LOAD REPORT|modules are dequantized in")
    transformers_logging.get_logger().handlers[0].addFilter(lambda record: not known.search(record.getMessage()))
    transformers_logging.disable_progress_bar()


def say_what_hub_is() -> None:
    """Says, where a GPU alone makes the profile `hub`, what that is and which other one takes minutes."""
    from helpers.profiles import current_profile, setting

    if not setting("PROFILE") and current_profile().name == "hub":
        print(
            "There is a GPU, so the profile is hub: the checkpoints and data of the sources, which may train for hours."
            "\nPROFILE=quick takes minutes, on a CPU, too: run %env PROFILE=quick before the next cell."
        )


def command(run: Callable, stopped: str = "Stopped.") -> Callable[[Sequence[str] | None], int]:
    """`run` as a command: a function of its arguments that returns the exit status (see `exit_status`).

    Parameters become arguments, or options where they have a default; the docstring is the help. Where Python runs the
    module itself (`python -m`), the command runs at once, so it is the module's last line.
    """
    from typer import Typer

    app = Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(run)

    def main(arguments: Sequence[str] | None = None) -> int:
        prepare_process()
        return exit_status(lambda: app(arguments), stopped)

    if run.__module__ == "__main__":
        sys.exit(main())
    return main


def exit_status(run: Callable[[], object], stopped: str = "Stopped.", says: bool = True) -> int:
    """Runs a command and returns its exit status: 0, or after one line on stderr 2 for bad input, 1 where memory or a
    disk ran out or a notebook failed, 130 where it was stopped. Without `says` the line of an error is left out."""
    if hasattr(sys.stdout, "reconfigure"):  # for a label that this terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run()
        return 0
    except (ValueError, OSError, MemoryError, ImportError) as error:
        if says:
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return 1 if isinstance(error, (MemoryError, ChildProcessError)) or getattr(error, "errno", None) else 2
    except (SystemExit, KeyboardInterrupt) as ended:
        status = getattr(ended, "code", 130)
        if status == 130:  # which typer ends with, too, where it is stopped
            print(stopped, file=sys.stderr)
        return status


def one_line(error: Exception) -> str:
    """An error's message in one line; of a setting that pydantic refuses, its name and why."""
    if hasattr(error, "errors"):
        return "; ".join(f"{one['loc'][0]}={one['input']!r}: {one['msg']}" for one in error.errors())
    return " ".join(str(error).split())


if __name__ == "__main__":
    install_missing(ROOT / "requirements.txt")
    os.chdir(ROOT / "notebooks")
    sys.path.insert(0, str(ROOT))
    prepare_process()
    say_what_hub_is()
