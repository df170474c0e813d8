"""The notebooks as files, and the commands that README names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import train
from helpers.profiles import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "lab/README.md", "notebooks/settings.md")]
TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|home|Users|tmp|work|content|kaggle)/|[A-Z]:\\\\Users")
WORDS, CELLS, ALL_WORDS, README_WORDS = {"10": 1_400}, 25, 9_000, 1_200  # a notebook has 1,000 words, if not here
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def texts_of(output) -> str:
    shown = [value for key, value in output.get("data", {}).items() if key.startswith("text/")]
    return "".join([output.get("text", ""), *map(str, shown)])


def words_of(path: Path) -> int:
    cells = nbformat.read(path, as_version=4).cells
    return sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")


def lost_links(text: str, folder: Path) -> list[str]:
    """What `text` links to in this repository that is not there."""
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)
    return [link for link in links if not (folder / link).exists()]


@each_notebook
def test_a_notebook_is_stored_as_it_ran_from_the_top_and_compared_with_that(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from the top"
    for cell in code:
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert set(cell.metadata.get("tags", [])) <= TAGS
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert not MACHINE_PATH.search(texts_of(output)), cell.source
            assert "Warning" not in texts_of(output), cell.source
            assert "\r" not in texts_of(output), "a progress bar with all its states"
    shown = [cell for cell in code if cell.outputs]
    ignored = [cell.source for cell in shown if cell.metadata.get("tags")]
    assert len(shown) >= 5 and len(ignored) <= len(shown) / 4, f"{len(ignored)} of {len(shown)} are ignored: {ignored}"


@each_notebook
def test_a_notebook_is_a_text(path):
    cells = nbformat.read(path, as_version=4).cells
    assert "cccc" not in "".join(cell.cell_type[0] for cell in cells), "four code cells without a word between them"
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert prose[0].startswith(f"# {path.stem[:2]} · ") and "## What we learned" in prose[-1]
    assert lost_links("\n".join(prose), path.parent) == []
    assert words_of(path) <= WORDS.get(path.stem[:2], 1_000), f"{words_of(path):,} words are more than ten minutes"
    assert sum(cell.cell_type == "code" for cell in cells) <= CELLS


def test_the_series_is_numbered_without_gaps_and_it_and_the_readme_are_short():
    words = {path.stem[:2]: words_of(path) for path in NOTEBOOKS}
    assert list(words) == [f"{number:02d}" for number in range(1, len(NOTEBOOKS) + 1)] != []
    assert sum(words.values()) <= ALL_WORDS, words
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


@pytest.mark.slow
@pytest.mark.parametrize("named", [[], ["notebooks"]], ids=["bare", "notebooks"])
def test_nbval_finds_the_notebooks_and_runs_them_under_quick(named, monkeypatch):
    monkeypatch.delenv("PROFILE", raising=False)
    code = "import os, pytest, sys; pytest.main(sys.argv[1:]); print('profile', os.environ.get('PROFILE'))"
    command = [sys.executable, "-c", code, "--nbval", "--collect-only", "-q", "-p", "no:cacheprovider", *named]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"notebooks/{path.name}::" in said for path in NOTEBOOKS)
    assert ("tests/test_notebooks.py::" in said) == (not named)
    assert said.strip().endswith("profile quick")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_commands_of_the_texts_are_there(path):
    text = path.read_text(encoding="utf-8")
    assert lost_links(text, path.parent) == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)(?:[A-Z]+=\S+ )*make ([a-z]+)", text, re.MULTILINE)) <= set(targets)
    for module, options in re.findall(r"python -m ((?:helpers|lab)\.\w+)([^`\n#()]*)", text):
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert '__name__ == "__main__"' in source or "\nmain = command(" in source, module
        for option in re.findall(r"--[a-z-]+", options):  # typer makes options of a function's parameters
            assert f'"{option}"' in source or f" {option[2:].replace('-', '_')}: " in source, f"{module}{options}"
        if module == "helpers.train" and options.strip() and not re.search(r"\b[A-Z]{4,}\b", options):
            train.parse(shlex.split(options))
