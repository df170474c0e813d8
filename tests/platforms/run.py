"""`make platforms`: what a first cell does to Colab's and Kaggle's packages, and whether notebooks run there.

For each list beside this file: a new environment with those versions, an empty folder with a notebook alone, and this
checkout as the repository that its first cell clones. The cell may add packages and exchange those that are out of
range; anything else fails. Then notebooks 02, 03 and 07 run from there under `quick`, on the environment's own Jupyter.
With pyenv: PYENV_VERSION=3.12:3.13 make platforms.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name

from helpers.start import unmet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / ".venv-platforms"
PYTHONS = {"colab": "3.13", "kaggle": "3.12"}
NOTEBOOKS = ("02", "03", "07")


def call(*command: str, **options) -> str:
    """Runs a command and returns what it wrote to stdout. Raises RuntimeError with its errors when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2_000:]}{done.stderr[-6_000:]}")
    return done.stdout


def build(platform: str) -> Path:
    """Creates the environment of a platform's list, some minutes; its interpreter."""
    folder, found = ENVIRONMENTS / platform, shutil.which(f"python{PYTHONS[platform]}")
    if not found:
        raise SystemExit(f"python{PYTHONS[platform]} is not on PATH. Install it.")
    print(f"{platform}: building {folder.relative_to(ROOT)}", flush=True)
    call(found, "-m", "venv", "--clear", str(folder))
    python = folder / "bin" / "python"
    lines = (HERE / f"{platform}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("+")[0] for line in lines if line[:1] not in ("", "#")]  # an index has no 2.11.0+cu128
    call(str(python), "-m", "pip", "install", "-q", *pins)
    return python


def installed(python: Path) -> dict[str, str]:
    """Normalized name -> version of what an environment holds."""
    listed = json.loads(call(str(python), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    return {canonicalize_name(entry["name"]): entry["version"] for entry in listed}


def snapshot(folder: Path) -> str:
    """A Git repository in `folder` that holds this checkout as it is, changes included; its address."""
    for name in call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    who = ["-c", "user.name=platforms", "-c", "user.email=platforms@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "the checkout under test"]):
        call("git", *command, cwd=folder)
    return folder.as_uri()


def copy_notebook(number: str, folder: Path, address: str, cells: int | None = None) -> Path:
    """Notebook `number` in `folder`, alone, with `address` in its first cell; of its cells the first `cells`."""
    (source,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    text = re.sub(r'ADDRESS = \\"[^"]*\\"', f'ADDRESS = \\\\"{address}\\\\"', source.read_text(encoding="utf-8"))
    notebook = json.loads(text)
    notebook["cells"] = notebook["cells"][:cells]
    target = folder / source.name
    target.write_text(json.dumps(notebook), encoding="utf-8")
    return target


def execute(python: Path, notebook: Path) -> str | None:
    """Runs a notebook in place, from its folder, with the environment's own nbconvert; what went wrong, if anything."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "DATA_DIR", "JUPYTER_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PROFILE": "quick", "JUPYTER_PREFER_ENV_PATH": "1", "WANDB_MODE": "disabled"}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    options = ["--to", "notebook", "--execute", "--inplace", "--ExecutePreprocessor.timeout=-1"]
    try:
        call(str(python), "-m", "nbconvert", *options, notebook.name, cwd=notebook.parent, env=environment)
    except RuntimeError as error:
        return str(error)
    print(f"{notebook.name} passed", flush=True)
    return None


def check(platform: str, address: str, folder: Path) -> list[str]:
    """What failed on one platform."""
    python = build(platform)
    before = installed(python)
    out_of_range = {canonicalize_name(r.name) for r in unmet(ROOT / "requirements.txt", before)}
    if error := execute(python, copy_notebook(NOTEBOOKS[0], folder, address, cells=2)):
        return [f"{platform}, first cell: {error}"]
    after = installed(python)
    print(f"{platform}: {len(before)} packages, and the first cell added {sorted(after.keys() - before)}", flush=True)
    changed = {name for name, version in before.items() if after.get(name) != version}
    if not changed <= out_of_range:
        return [f"{platform}: the first cell exchanged {changed - out_of_range}, which it may not"]
    errors = {number: execute(python, copy_notebook(number, folder, address)) for number in NOTEBOOKS}
    return [f"{platform}, {number}: {error}" for number, error in errors.items() if error]


def main() -> int:
    """The exit status is 1 when the first cell changed more than it may, or when a notebook failed."""
    parser = argparse.ArgumentParser(prog="make platforms", description=__doc__)
    parser.add_argument("platform", nargs="?", choices=PYTHONS, help="both when none is given")
    chosen, failed = parser.parse_args().platform, []
    with tempfile.TemporaryDirectory() as temporary:
        address = snapshot(Path(temporary, "repository"))
        for platform in [chosen] if chosen else PYTHONS:
            (folder := Path(temporary, platform)).mkdir()
            failed += check(platform, address, folder)
    print("\n".join(failed) if failed else "\nAll passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
