"""`make site`: whole, linked, described, and readable in a browser on a phone and a laptop, without JavaScript."""

import re
import shutil
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

from helpers.series import site as site_module
from helpers.series.executing import NOTEBOOKS
from helpers.series.site import markdown, pages, write_site
from helpers.series.stamp import badges


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of a site with the address of a repository."""
    folder = tmp_path_factory.mktemp("pages") / "site"
    write_site(folder, "https://github.com/someone/series")
    return folder


def parsed(site: Path) -> dict[str, BeautifulSoup]:
    return {path.name: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in sorted(site.glob("*.html"))}


def test_there_is_a_page_for_each_notebook_and_one_before_them(site):
    names = [f"{path.stem}.html" for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]
    assert sorted(path.name for path in site.glob("*.html")) == [*names, "index.html"]


def test_every_link_and_every_image_leads_somewhere(site):
    found = parsed(site)
    for name, page in found.items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href")):
            for element in page(tag):
                path, _, anchor = element[attribute].partition("#")
                if re.match("https?:|data:", path):
                    continue
                assert not path or (site / path).is_file(), f"{name}: {element[attribute]}"
                if anchor and (not path or path in found):
                    ids = {one["id"] for one in found[path or name](id=True)}
                    assert {anchor, unquote(anchor)} & ids, f"{name}: {element[attribute]}"


def test_every_figure_is_described_in_words(site):
    for name, page in parsed(site).items():
        for image in page("img"):
            alt = image.get("alt", "")
            assert len(alt) > 20 and "No description" not in alt, f"{name}: {alt!r}"


def test_the_pages_lead_from_one_to_the_next_and_into_colab(site):
    found, order = parsed(site), [page.file for page in pages()]
    for before, after in pairwise(order):
        assert found[before].find("a", rel="next")["href"] == after
        assert found[after].find("a", rel="prev")["href"] == before
    assert found["index.html"].find("a", rel="next")["href"] == order[0]
    for page in pages():
        address = f"https://colab.research.google.com/github/someone/series/blob/main/notebooks/{page.source.name}"
        assert found[page.file].find(class_="run").a["href"] == address


def test_a_page_begins_with_words_and_folds_its_set_up(site):
    read = parsed(site)
    for page in pages():
        found = read[page.file]
        assert found.h1.get_text().startswith(f"{page.number} · {page.title}")
        (folded,) = found("details")
        assert "helpers/start.py" in folded.get_text() and "from helpers" in folded.get_text()
        assert len(folded(class_="code_cell")) == 2 and len(found(class_="code_cell")) > 5


def test_nothing_runs_and_formulas_are_formulas(site):
    for name, page in parsed(site).items():
        assert not page("script"), name
        prose = " ".join(cell.get_text() for cell in page(class_="rendered_html"))
        assert not re.search(r"\$[A-Za-z\\][^$]*\$|\\frac|\\alpha", prose), name
    assert "<math" in markdown(r"$\alpha / r$") and "<mfrac>" in markdown("$$\\frac{a}{b}$$")


def test_badges_of_a_stamped_copy_which_lie_elsewhere_are_left_out(tmp_path, monkeypatch):
    def stamped(path, as_version):
        notebook = read(path, as_version)
        title, rest = notebook.cells[0].source.split("\n\n", 1)
        notebook.cells[0].source = f"{title}\n\n{badges('https://github.com/someone/series', path.name)}\n\n{rest}"
        return notebook

    read = site_module.nbformat.read
    monkeypatch.setattr(site_module.nbformat, "read", stamped)
    write_site(tmp_path / "site")
    for name, page in parsed(tmp_path / "site").items():
        assert not [image["src"] for image in page("img") if image["src"].startswith("http")], name


def test_without_an_address_nothing_is_promised(tmp_path):
    write_site(tmp_path / "site")
    assert "colab" not in (tmp_path / "site" / "05_rank_sensitivity.html").read_text("utf-8").lower()


def test_a_link_that_leads_nowhere_is_an_error_and_the_earlier_site_stays(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    write_site(folder)
    monkeypatch.setattr(site_module, "_index_text", lambda: "# Title\n\n[here](nowhere.md)")
    with pytest.raises(FileNotFoundError, match=r"'nowhere.md' .*leads nowhere"):
        write_site(folder)
    assert (folder / "index.html").is_file()


@pytest.fixture(scope="module")
def browser():
    """Chromium, or Chrome, as the system has it."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started:
        try:
            running = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"{path} does not start here: {error.message.splitlines()[0]}")
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1_280])
def test_a_browser_shows_every_page_whole(site, browser, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 844}, java_script_enabled=True, color_scheme=scheme, offline=True
    )
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), path.name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        cut = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(element => element.scrollWidth > element.clientWidth + 1"
            " && element.clientWidth && getComputedStyle(element).overflowX === 'hidden').length"
        )
        assert cut == 0, path.name
        ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) == (scheme == "dark") and ink != paper
    assert said == []
    context.close()
