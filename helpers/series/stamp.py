"""`python -m helpers.series.stamp ADDRESS`: writes the repository's Git address into first cells and badges.

Without an address it takes both out again.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from helpers.base.paths import ROOT

CELL = """\
import os

{check}
%run {{"series" if os.path.isdir("series") else ".."}}/helpers/start.py"""
THERE = """\
assert os.path.isdir("../helpers") or os.path.isdir("series"), "First fetch the series: !git clone ADDRESS series"\
"""
FETCHED = """\
fetch = "test -d series || git clone -q --depth 1 {address} series"
assert os.path.isdir("../helpers") or not os.system(fetch), "Nothing fetched. On Kaggle: Settings > Turn on internet."\
"""
README_NOTEBOOK = "02_lora_distilbert.ipynb"  # where README's badge leads
BADGES = re.compile(r"\[!\[Open in Colab\].*\n\n")


def first_cell(address: str = "") -> str:
    """The source of each notebook's first code cell; without an address it asks for a clone, in one line."""
    return CELL.format(check=FETCHED.format(address=address) if address else THERE)


def badges(address: str, notebook: str) -> str:
    """The line of badges that opens `notebook` on Colab and on Kaggle; empty for an address that is not GitHub's."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not match:
        return ""
    place = f"{match[1]}/blob/main/notebooks/{notebook}"
    colab = f"https://colab.research.google.com/github/{place}"
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{place}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})"
    )


def stamp(address: str, root: Path = ROOT) -> int:
    """Stamps `address` into the notebooks and README below `root`, or takes it out when empty; the number of notebooks.

    Raises ValueError for an address that is not one of https, or that holds a quote or a space.
    """
    if address and not re.fullmatch(r"https://[\w.@:/~+-]+", address):
        raise ValueError(
            f"{address!r} is not a Git address to clone from. Expected, for example, https://HOST/OWNER/NAME."
        )
    notebooks = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    for path in notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title = notebook["cells"][0]
        code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        title["source"] = _with_badges("".join(title["source"]), badges(address, path.name)).splitlines(keepends=True)
        code["source"] = first_cell(address).splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    readme = root / "README.md"
    text = _with_badges(readme.read_text(encoding="utf-8"), badges(address, README_NOTEBOOK))
    readme.write_text(text, encoding="utf-8", newline="\n")
    return len(notebooks)


def _with_badges(text: str, line: str) -> str:
    """`text` with `line` below its title, in place of the badges that are there."""
    title, rest = BADGES.sub("", text, count=1).split("\n\n", 1)
    return "\n\n".join([title, *([line] if line else []), rest])


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 2 for an address that cannot be one."""
    parser = argparse.ArgumentParser(prog="python -m helpers.series.stamp", description=__doc__)
    parser.add_argument("address", nargs="?", default="", help="https://HOST/OWNER/NAME; without it, both go again")
    options = parser.parse_args(arguments)
    try:
        count = stamp(options.address)
    except ValueError as error:
        parser.error(str(error))
    print(f"{count} notebooks and README: {options.address or 'no address'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
