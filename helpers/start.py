"""What each notebook's first cell runs: it finds the series, installs what is missing, and sets the process up.

The kernel's own packages stay as they are, torch and numpy included: what is installed in its range is a constraint on
pip. Only what is out of range, as transformers is on Kaggle, is exchanged, before its first import.
"""

import importlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements that `path` lists, without comments, and those whose marker is about another machine."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return [requirement for requirement in found if not requirement.marker or requirement.marker.evaluate()]


def installed_versions(distributions: Iterable[metadata.Distribution] | None = None) -> dict[str, str]:
    """Normalized name -> version of every installed package; of a name that is there twice, the one that imports."""
    versions = {}
    for distribution in metadata.distributions() if distributions is None else distributions:
        if name := distribution.metadata["Name"]:
            versions.setdefault(canonicalize_name(name), distribution.version)
    return versions


def unmet(requirements: list[Requirement], installed: dict[str, str]) -> list[Requirement]:
    """The requirements that are not installed, or in a version that is out of their range."""

    def met(requirement: Requirement) -> bool:
        version = installed.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(version, prereleases=True)

    return [requirement for requirement in requirements if not met(requirement)]


def constraints(installed: dict[str, str], wrong: list[Requirement]) -> list[str]:
    """`name==version` lines that keep every installed package as it is, but those of `wrong`."""
    free = {canonicalize_name(requirement.name) for requirement in wrong}
    lines = []
    for name, version in sorted(installed.items()):
        line = f"{name}=={version}"
        try:
            Requirement(line)
        except InvalidRequirement:  # a version that pip could not read, either
            continue
        if name not in free:
            lines.append(line)
    return lines


def install_missing(requirements_file: Path) -> None:
    """Installs what of `requirements_file` is missing or out of range beside everything that is installed.

    Does nothing, and fast, where every requirement is met. Raises RuntimeError, in one line, where a package that is
    out of range has been imported by now, or where pip fails.
    """
    installed = installed_versions()
    wrong = unmet(read_requirements(requirements_file), installed)
    if not wrong:
        return
    names = ", ".join(str(requirement) for requirement in wrong)
    if stale := _imported({canonicalize_name(requirement.name) for requirement in wrong} & installed.keys()):
        raise RuntimeError(
            f"{', '.join(stale)} is in use but out of range ({names}). Restart the runtime and run this cell first."
        )
    print(f"Installing {names}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "constraints.txt"
        keep.write_text("\n".join(constraints(installed, wrong)), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "-r", str(requirements_file), "-c", str(keep)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RuntimeError(
            "pip could not install what is missing. Is the internet on? On Kaggle: Settings > Turn on internet. "
            f"pip says: {' '.join(errors[-2:])}"
        )
    importlib.invalidate_caches()


def _imported(names: set[str]) -> list[str]:
    """Those of the installed packages `names` that this process has imported a module of."""
    if not names:
        return []
    packages = metadata.packages_distributions()
    loaded = {module for module in list(sys.modules) if "." not in module}
    used = {canonicalize_name(name) for module in loaded for name in packages.get(module, ())}
    return sorted(names & used)


def hide_torchao() -> None:
    """Hides torchao from this process, which uses none of it.

    peft looks for it in every LoRA layer, and raises for a version older than it accepts, such as the one that Colab
    and Kaggle preinstall.
    """
    sys.modules["torchao"] = None


def prepare_process() -> None:
    """Sets up this process: one GPU, no torchao, no progress bars of loading, no warnings that concern no result."""
    # On two GPUs Trainer's DataParallel doubles the batch and breaks 4 bits; under torchrun each process has its own.
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hide_torchao()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # hints at the optional `kernels` package
    warnings.filterwarnings("ignore", message="IProgress not found")
    warnings.filterwarnings("ignore", message="Could not find a config file in")  # peft without a network
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # notebook 03 says so

    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    install_missing(ROOT / "requirements.txt")
    os.chdir(ROOT / "notebooks")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    prepare_process()
