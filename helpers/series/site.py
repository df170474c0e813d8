"""`python -m helpers.series.site [ADDRESS]`: the stored notebooks as a static site, in site/; nothing is executed.

ADDRESS, the repository's on GitHub, adds "Open in Colab" to each page.
"""

import argparse
import base64
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from helpers.base.paths import ROOT, shown
from helpers.base.writing import new_folder
from helpers.series.executing import NOTEBOOKS
from helpers.series.stamp import BADGES, badges

PAGE = Path(__file__).parent / "page"
SITE = ROOT / "site"
# Of the README, beside what stands above its sections.
INDEX_PARTS = ("The notebooks", "What the write-ups claim, and what was measured")


class Page(NamedTuple):
    """A notebook's page: its number, title, file in the site, and the notebook."""

    number: str
    title: str
    file: str
    source: Path


class _Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers show without JavaScript."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")


class _Exporter(HTMLExporter):
    def __init__(self):
        super().__init__(template_name="basic")
        self.exclude_input_prompt = self.exclude_output_prompt = True

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return markdown(source)


def markdown(source: str) -> str:
    """Markdown as HTML, its formulas as MathML."""
    return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)


def pages() -> list[Page]:
    """The pages of all notebooks, in their order."""
    found = []
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        head = nbformat.read(path, as_version=4).cells[0].source
        number, title = re.match(r"# (\d+) · (.+)", head).groups()
        found.append(Page(number, title, f"{path.stem}.html", path))
    return found


def write_site(folder: Path = SITE, address: str = "") -> Path:
    """Writes the site to `folder`, whole or not at all, and returns the path of its first page."""
    template = Environment(loader=FileSystemLoader(PAGE)).get_template("page.html.j2")
    all_pages, exporter = pages(), _Exporter()
    with new_folder(folder) as temporary:
        gallery = []
        for index, page in enumerate(all_pages):
            notebook = nbformat.read(page.source, as_version=4)
            notebook.cells[0].source = BADGES.sub("", notebook.cells[0].source)  # pictures from elsewhere
            gallery += list(_pictures(notebook, page, temporary))
            body = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
            _fold_setup(body)
            _settle(body, page.source.parent, temporary)
            around = {"previous": all_pages[index - 1] if index else None, "next": (*all_pages[index + 1 :], None)[0]}
            where = {"colab": _colab(address, page), "file": page.file, "pages": all_pages}
            text = template.render(body=body, title=page.title, description=page.title, **where, **around)
            (temporary / page.file).write_text(text, encoding="utf-8")
        body = BeautifulSoup(markdown(_index_text()), "html.parser")
        _settle(body, ROOT, temporary)
        title = body.h1.get_text().rstrip("¶")
        text = template.render(
            body=body, title=title, description=title, file="index.html", pages=all_pages, gallery=gallery,
            next=all_pages[0],
        )  # fmt: skip
        (temporary / "index.html").write_text(text, encoding="utf-8")
        (temporary / "style.css").write_text(_style(), encoding="utf-8")
    return folder / "index.html"


def _index_text() -> str:
    """The sections of the README that a reader of the site wants, without its badges."""
    text = BADGES.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    sections = re.split(r"^(?=## )", text, flags=re.M)
    chosen = [re.match(r"## (.+)|", section)[1] in (None, *INDEX_PARTS) for section in sections]
    return "\n".join(section for section, wanted in zip(sections, chosen, strict=True) if wanted)


def _style() -> str:
    """The pages' style, and that of code: one for light, one for dark."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("xcode", "github-dark"))
    page = (PAGE / "style.css").read_text(encoding="utf-8")
    return f"{page}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n.highlight {{ background: none; }}\n"


def _colab(address: str, page: Page) -> str:
    """The address that opens `page`'s notebook on Colab; empty without a repository on GitHub."""
    found = re.search(r"\((https://colab\.[^)]+\.ipynb)\)", badges(address, page.source.name))
    return found[1] if found else ""


def _pictures(notebook: nbformat.NotebookNode, page: Page, site: Path) -> Iterator[dict[str, str]]:
    """Writes the figures of a notebook's outputs to `site` and gives each one's entry in the gallery."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    for count, output in enumerate((one for one in outputs if "image/png" in one["data"]), start=1):
        name = f"{page.source.stem}-{count}.png"
        (site / name).write_bytes(base64.b64decode(output["data"]["image/png"]))
        alt = output["metadata"].get("image/png", {}).get("alt", "")
        yield {"file": page.file, "source": name, "alt": alt, "title": f"{page.number} {page.title}"}


def _fold_setup(body: BeautifulSoup) -> None:
    """Puts the two code cells that a notebook begins with under a line that opens them."""
    folded = body.new_tag("details")
    title = body.new_tag("summary")
    title.string = "Set-up: what is installed and imported"
    folded.append(title)
    cells = body(class_="code_cell", limit=2)
    cells[0].insert_before(folded)
    for cell in cells:
        folded.append(cell.extract())


def _settle(body: BeautifulSoup, base: Path, site: Path) -> None:
    """Makes a page's HTML fit the site: links that lead somewhere, tables that scroll, no scripts."""
    for script in body("script"):
        script.decompose()
    for table in body("table"):
        table.attrs.pop("border", None)
        for cell in table("td"):
            if len(cell.text) > 40:
                cell["class"] = "words"
        table.wrap(body.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    for picture in body(class_="output_png"):
        picture["class"] = [*picture["class"], "figure"]
        picture.find_parent(class_="output_area")["class"] = ["output_area", "figure"]
    for tag, name in (("a", "href"), ("img", "src")):
        for element in body(tag):
            element[name] = _target(element.get(name, ""), base, site)


def _target(link: str, base: Path, site: Path) -> str:
    """Where `link` of a text in folder `base` leads on the site; files of the repository are copied into it."""
    path, mark, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link
    file = Path(posixpath.normpath((base / path).as_posix()))
    if not file.is_relative_to(ROOT) or not file.is_file():
        raise FileNotFoundError(f"{link!r} of {shown(base)} leads nowhere")
    if file.parent == NOTEBOOKS:
        return f"{file.stem}.html{mark}{anchor}"
    name = Path("repository") / file.relative_to(ROOT)
    if name.suffix == ".py":
        name = name.with_suffix(".py.txt")  # which browsers show
    (site / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, site / name)
    return f"{name.as_posix()}{mark}{anchor}"


def main(arguments: list[str] | None = None) -> int:
    """Writes the site and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m helpers.series.site", description=__doc__)
    parser.add_argument("address", nargs="?", default="", help="https://github.com/OWNER/NAME, for Open in Colab")
    options = parser.parse_args(arguments)
    print(f"Wrote {shown(write_site(address=options.address))}: open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
