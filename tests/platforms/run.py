"""`make platforms`: what a notebook does to Colab's and Kaggle's packages, and whether it runs on them.

For each list beside this file: an environment with those versions, an empty folder with a notebook alone, and this
checkout as the repository that its first cell clones. The cell may add packages and exchange those that are out of
range; anything else fails. Then notebooks 02, 03 and 07 run from there under `quick`, on the environment's own Jupyter.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from packaging.utils import canonicalize_name

from helpers.series.stamp import first_cell
from helpers.start import read_requirements, unmet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / ".venv-platforms"
PYTHONS = {"colab": "3.13", "kaggle": "3.12"}
NOTEBOOKS = ("02_lora_distilbert", "03_qlora_bert", "07_your_own_data")


def read_pins(path: Path) -> list[str]:
    """The `name==version` lines of a list. Of a CUDA build such as torch==2.11.0+cu128 the index has the version alone,
    which takes the CPU build where pip is set up to find one."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line.split("+")[0] for line in lines if line and not line.startswith("#")]


def find_python(version: str) -> str:
    """The interpreter of `version`, on PATH or in pyenv. Raises SystemExit where there is none."""
    pyenv = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    found = shutil.which(f"python{version}") or (str(pyenv[-1]) if pyenv else None)
    if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
        return found
    if pyenv:  # a pyenv shim of a version that is not switched on is on PATH and fails
        return str(pyenv[-1])
    raise SystemExit(
        f"Python {version} is neither on PATH (python{version}) nor in ~/.pyenv/versions. Install it first."
    )


def call(*command: str, **options) -> str:
    """Runs a command and returns what it wrote to stdout. Raises SystemExit with its errors when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2_000:]}{done.stderr[-6_000:]}")
    return done.stdout


@dataclass
class Platform:
    """One list and its environment; `python` is the environment's interpreter."""

    name: str

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def freeze(self) -> dict[str, str]:
        """Normalized name -> version of what is installed."""
        listed = json.loads(call(self.python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
        return {canonicalize_name(entry["name"]): entry["version"] for entry in listed}

    def build(self) -> dict[str, str]:
        """Creates the environment, or puts the one that is there back as it was built; what it holds."""
        pins = read_pins(HERE / f"{self.name}.txt")
        built = self.folder / "built.json"
        state = hashlib.sha256("\n".join([PYTHONS[self.name], *pins]).encode()).hexdigest()
        pip = [self.python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if built.is_file() and (before := json.loads(built.read_text()))["list"] == state:
            if added := sorted(self.freeze().keys() - before["packages"].keys()):
                call(self.python, "-m", "pip", "uninstall", "-q", "-y", *added)
            now = self.freeze()
            if changed := [f"{name}=={v}" for name, v in before["packages"].items() if now.get(name) != v]:
                call(*pip, "--no-deps", *changed)
        else:
            print(f"{self.name}: building {self.folder.relative_to(ROOT)}, some minutes", flush=True)
            call(find_python(PYTHONS[self.name]), "-m", "venv", "--clear", str(self.folder))
            call(*pip, "--upgrade", "pip")
            call(*pip, *pins)
            built.write_text(json.dumps({"list": state, "packages": self.freeze()}, indent=1))
        return json.loads(built.read_text())["packages"]

    def execute(self, notebook: Path) -> None:
        """Runs a notebook in place, from its folder, with the environment's own nbconvert. SystemExit when it fails."""
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "DATA_DIR", "JUPYTER_PATH")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= {"PROFILE": "quick", "JUPYTER_PREFER_ENV_PATH": "1", "WANDB_MODE": "disabled"}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        timeout = "--ExecutePreprocessor.timeout=-1"
        command = [self.python, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", timeout, notebook.name]
        call(*command, cwd=notebook.parent, env=environment)


def snapshot(folder: Path) -> str:
    """A Git repository in `folder` that holds this checkout as it is, changes included; its address."""
    files = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    call("git", "init", "-q", cwd=folder)
    call("git", "add", "-A", cwd=folder)
    who = ["-c", "user.name=platforms", "-c", "user.email=platforms@localhost"]
    call("git", *who, "commit", "-q", "-m", "the checkout under test", cwd=folder)
    return folder.as_uri()


def stamped(source: Path, target: Path, address: str, first_alone: bool = False) -> Path:
    """Writes `source` to `target` with `address` in its first cell, or that cell alone, and returns `target`."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["source"] = first_cell(address)
    if first_alone:
        notebook["cells"] = [code]
    target.write_text(json.dumps(notebook), encoding="utf-8")
    return target


def table(*rows: tuple) -> str:
    """A Markdown table with the first row as its head."""
    lines = [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("---" for _ in rows[0]), *lines[1:]])


def compare(before: dict[str, str], after: dict[str, str], allowed: set[str]) -> tuple[list[tuple], list[str]]:
    """Rows of (package, before, after, what it is) for each difference, and the names of those that are not allowed."""
    rows, wrong = [], []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        kind = "added" if was is None else "was out of range" if name in allowed and now else "NOT ALLOWED"
        if kind == "NOT ALLOWED":
            wrong.append(name)
        rows.append((name, was or "", now or "", kind))
    return rows, wrong


def check(platform: Platform, notebooks: list[str], address: str, folder: Path) -> tuple[list[tuple], list[str]]:
    """Result rows of one platform (platform, what ran, result, seconds), and what failed."""
    before = platform.build()
    allowed = {canonicalize_name(r.name) for r in unmet(read_requirements(ROOT / "requirements.txt"), before)}
    results, failed = [], []

    def timed(what: str, notebook: Path) -> None:
        start = perf_counter()
        try:
            platform.execute(notebook)
            outcome = "passed"
        except SystemExit as error:
            print(f"{platform.name}, {what}: {error}", flush=True)
            failed.append(f"{platform.name}: {what}")
            outcome = "FAILED"
        results.append((platform.name, what, outcome, f"{perf_counter() - start:.0f}"))
        print(*results[-1], "s", flush=True)

    first = ROOT / "notebooks" / f"{NOTEBOOKS[0]}.ipynb"
    timed("first cell", stamped(first, folder / "first.ipynb", address, first_alone=True))
    rows, wrong = compare(before, platform.freeze(), allowed)
    failed += [f"{platform.name}: the first cell changed {name}" for name in wrong]
    print(f"\n{platform.name}: {len(before)} packages before the first cell, and what it changed\n")
    print(table(("package", "before", "after", ""), *rows), "\n", flush=True)
    for name in [] if failed else notebooks:
        timed(name, stamped(ROOT / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", address))
    return results, failed


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 1 when the first cell changed more than it may, or when a notebook failed."""
    parser = argparse.ArgumentParser(prog="make platforms", description=__doc__)
    parser.add_argument("platforms", nargs="*", help=f"of {', '.join(PYTHONS)}; all when none is given")
    parser.add_argument("--notebooks", nargs="*", default=NOTEBOOKS, help="by name; none checks the first cell alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.platforms) - PYTHONS.keys():
        parser.error(f"no list for {', '.join(unknown)}; there are {', '.join(PYTHONS)}")
    results, failed = [], []
    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary) / "repository"
        repository.mkdir()
        address = snapshot(repository)
        for name in options.platforms or PYTHONS:
            folder = Path(temporary) / name
            folder.mkdir()
            rows, wrong = check(Platform(name), options.notebooks, address, folder)
            results, failed = results + rows, failed + wrong
    print(f"\n{table(('platform', 'what ran', 'result', 's'), *results)}")
    print("\n".join(["", *failed]) if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
