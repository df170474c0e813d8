"""`make site`: README, lab/README, the settings and the stored notebooks as web pages; no notebook is executed.

Formulas are drawn by MathJax, which a browser loads from the network. A link to a folder becomes plain text.
"""

import os

project = html_title = "LoRA and QLoRA on BERT"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", "lab/README.md", "notebooks/*.ipynb", "notebooks/settings.md"]
suppress_warnings = ["myst.xref_missing"]  # links to folders
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_copy_source = False
html_theme = "sphinx_book_theme"
# It has a search field already; the footer would say "Author name not set".
html_theme_options = {"use_download_button": False, "navbar_persistent": [], "footer_content_items": []}
if address := os.environ.get("ADDRESS"):  # https://github.com/OWNER/NAME
    html_theme_options |= {"repository_url": address, "repository_branch": "main", "use_repository_button": True}
    html_theme_options["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}

CONTENTS = """

```{toctree}
:hidden:
:glob:
notebooks/settings
notebooks/[0-9]*
lab/README
```
"""


def add_contents(app, name: str, source: list[str]) -> None:
    """Gives README the list of pages, which GitHub would show as code."""
    if name == root_doc:
        source[0] += CONTENTS


def setup(app) -> None:
    app.connect("source-read", add_contents)
