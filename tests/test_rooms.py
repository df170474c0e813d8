"""The three rooms: imports go notebooks -> lab -> helpers and never back, and each room stays small."""

import ast
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from helpers.profiles import ROOT

ROOMS = ("helpers", "lab", "tests")
LINES = {"helpers": 3_989, "lab": 2_424, "tests": 5_000}
FILES, LINES_OF_ONE = 26, 250  # of helpers
HELPERS_ALONE = ("01", "02", "03", "06", "07")


def imported(source: str) -> set[str]:
    """The first two parts of every module's name that `source` imports from helpers, lab or tests."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module} if "." in module else {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] in ROOMS}


def code_of(notebook: Path) -> str:
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    return "\n".join(map(TransformerManager().transform_cell, cells))  # Python in place of ! and %


def python_files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize(("room", "allowed"), [("helpers", {"helpers"}), ("lab", {"helpers", "lab"})])
def test_imports_never_go_back(room, allowed):
    found = {path.name: imported(path.read_text(encoding="utf-8")) for path in python_files(room)}
    assert [(name, module) for name in found for module in found[name] if module.split(".")[0] not in allowed] == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_what_it_may(path):
    allowed = {"helpers"} if path.stem.startswith(HELPERS_ALONE) else {"helpers", "lab"}
    assert {module.split(".")[0] for module in imported(code_of(path))} <= allowed


def test_each_room_stays_within_its_lines_and_helpers_in_short_files_side_by_side():
    texts = {room: [path.read_text(encoding="utf-8") for path in python_files(room)] for room in ROOMS}
    lengths = {room: [len(text.splitlines()) for text in found] for room, found in texts.items()}
    assert len(lengths["helpers"]) <= FILES and max(lengths["helpers"]) < LINES_OF_ONE
    assert {path.parent.name for path in python_files("helpers")} == {"helpers"}
    shown = ", ".join(f"{room} {sum(found):,} of {LINES[room]:,} lines" for room, found in lengths.items())
    print(shown)
    assert all(sum(found) <= LINES[room] for room, found in lengths.items()), shown
