"""The rooms of `helpers`: what stands where, and that imports between them point one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from helpers.base.paths import ROOT

HELPERS = ROOT / "helpers"
MOST_LINES = 285


def rooms() -> dict[str, list[Path]]:
    """The files of each folder of `helpers`, and each file at its top, by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(HELPERS.rglob("*.py")):
        name = path.relative_to(HELPERS).parts[0].removesuffix(".py")
        found.setdefault(name, []).append(path)
    del found["__init__"]
    return found


def imported(path: Path) -> set[str]:
    """The rooms that `path` imports from, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            inside = node.module.split(".")[1:]
            names |= {inside[0]} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("helpers.")}
    return names


def arrows() -> dict[str, set[str]]:
    return {name: set.union(*map(imported, paths)) - {name} for name, paths in rooms().items()}


def test_imports_between_rooms_point_one_way():
    order = list(TopologicalSorter(arrows()).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(rooms()) and order.index("base") < order.index("profiles") < order.index("training")


def test_the_base_knows_nothing_of_what_stands_on_it():
    assert arrows()["base"] == set()


def test_commands_are_nobody_s_ground():
    assert not [name for name, to in arrows().items() if to & {"train", "series", "start"}]


def test_the_readme_names_each_room_in_an_order_in_which_imports_point_down():
    layout = (ROOT / "README.md").read_text(encoding="utf-8").split("## Layout")[1]
    lines = layout.split("\nhelpers/ ")[1].split("\nData/ ")[0].splitlines()[1:]
    columns = [line[2:22] for line in lines if line[2] != " "]
    named = [name.strip(" /") for column in columns for name in column.split(",")]
    assert sorted(named) == sorted(rooms())
    above = {name: set(named[: named.index(name)]) for name in named}
    assert not {(name, other) for name, to in arrows().items() for other in to if other in above[name]}


def test_no_file_is_long():
    assert {
        path.name: count for path in HELPERS.rglob("*.py") if (count := len(path.read_text().splitlines())) > MOST_LINES
    } == {}
