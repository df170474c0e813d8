"""Your own labelled texts: what is in them, their split, and a recipe for them, whatever the encoder."""

import os
import sys
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedTokenizerBase

from helpers.checkpoints import skeleton
from helpers.data import clean, split_reviews, text_key, texts_of
from helpers.models import load_tokenizer
from helpers.profiles import Profile
from helpers.recipes import RECIPES, Recipe
from helpers.tasks import ROWS_PER_CLASS, task_of

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
SKEW = 3  # times the smallest class's rows; with more in the largest, a file's classes count as skewed
SHOWN_CLASSES = 20  # that a table lists one by one
OWN_DATA_RECIPE = "lora_bert_sst2"
OWN_DATA_TOKENS = 512  # what an encoder reads at most; short texts cost no more for it
FEW_ROWS, FEW_ROWS_RATE = 1_000, 2.5e-4  # its own rate was searched on 1,000 and 2,000 rows, this one on 100 to 2,000


@dataclass(frozen=True)
class Findings:
    """What is in a file, before anything is dropped. Row numbers count from 1.

    `duplicates` repeat an earlier text under the same label; `conflicts` are all rows of texts with several labels.
    `usable` rows are left to train and to score on. `classes` counts them, none for numbers; `lengths` are the tokens,
    before truncation, of at most 10,000 of them, and `unknown` the share of these with a word that the tokenizer lacks.
    """

    rows: int
    missing_texts: list[int]
    missing_labels: list[int]
    duplicates: list[int]
    conflicts: list[int]
    classes: dict[str, int]
    lengths: np.ndarray
    usable: int
    task: str = "single"
    unknown: float = 0.0

    @property
    def skewed(self) -> bool:
        """Whether accuracy hides what becomes of the small classes: reports then lead with balanced accuracy."""
        counts = self.classes.values() if self.task == "single" else ()
        return bool(counts) and max(counts) > SKEW * min(counts)

    def table(self, max_length: int) -> pd.DataFrame:
        """The findings, one a row, with the first rows that each concerns; of many classes the first."""
        found = [("rows", self.rows, "")]
        for name in ("missing_texts", "missing_labels", "duplicates", "conflicts"):
            rows = getattr(self, name)
            found.append((name.replace("_", " "), len(rows), f"rows {listed(rows)}" if rows else ""))
        for label, count in list(self.classes.items())[:SHOWN_CLASSES]:
            found.append((f"class {label[:60]}", count, f"{count / self.usable:.0%}"))
        if self.skewed:
            found.append(("classes", len(self.classes), "skewed; --class-weights balanced counters it"))
        if len(self.lengths):
            cut = float((self.lengths > max_length).mean())
            found.append(("tokens, median", int(np.median(self.lengths)), f"longest {self.lengths.max():,}"))
            if self.unknown > 0.01:
                found.append(("with unknown words", round(self.unknown * self.usable), "--base-model may know them"))
            found.append((f"longer than {max_length} tokens", round(cut * self.usable), f"{cut:.0%}, will be cut"))
        return pd.DataFrame(found, columns=["finding", "count", "which"]).set_index("finding")


def listed(items: list) -> str:
    """The first of `items`, as a message lists them."""
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")


def examine(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Findings:
    """What is in `rows` (see `tables.read_rows` and `tasks.read_labels`)."""
    left, duplicates, conflicts = _distinct(rows)
    task, counts = task_of(left["label"]), left["label"].explode().value_counts()
    measured = left.sample(min(10_000, len(left)), random_state=0)
    ids = tokenizer(*texts_of(measured), verbose=False)["input_ids"] if len(left) else []
    return Findings(
        rows=len(rows),
        missing_texts=list(rows.index[rows.drop(columns="label").isna().any(axis=1)]),
        missing_labels=list(rows.index[rows["label"].isna()]),
        duplicates=duplicates,
        conflicts=conflicts,
        classes={} if task == "regression" else {label: int(counts[label]) for label in _in_order(counts.index)},
        lengths=np.array([len(row) for row in ids], dtype=int),
        usable=len(left),
        task=task,
        unknown=float(np.mean([tokenizer.unk_token_id in row for row in ids] or [0])),
    )


def split_rows(rows: pd.DataFrame, seed: int = 42, drop_incomplete: bool = False) -> DatasetDict:
    """Stratified train, validation and test rows (70, 10 and 20 %) that share no text; columns `text, label, row`, and
    `pair` for pairs. Of several labels the rarest decides the stratum, of numbers the size.

    Raises ValueError for rows without text or label, unless `drop_incomplete` drops them, for fewer than two classes,
    for a class of fewer than `ROWS_PER_CLASS`, and for numbers that are too few or all the same.
    """
    incomplete = list(rows.index[rows.isna().any(axis=1)])
    if incomplete and not drop_incomplete:
        found = f"{len(incomplete):,} of {len(rows):,} rows are incomplete: rows {listed(incomplete)}, counted from 1"
        none = "; [] says that a text has none of several labels" if task_of(rows["label"].dropna()) == "multi" else ""
        raise ValueError(f"{found}. Complete them, or leave them out with --drop-incomplete{none}.")
    left, _, _ = _distinct(rows)
    labels, strata, feature = _numbered(left["label"])
    features = {name: Value("string") for name in ("text", "pair") if name in left}
    features |= {"label": feature, "row": Value("int64"), "stratum": Value("int64")}
    left = left.assign(label=labels, stratum=strata).reset_index()[list(features)]
    dataset = Dataset.from_pandas(left, preserve_index=False).cast(Features(features))
    sizes = (ceil(share * len(dataset)) for share in (VALIDATION_SHARE, TEST_SHARE))
    return split_reviews(dataset, None, *sizes, seed).remove_columns("stratum")


def _numbered(labels: pd.Series) -> tuple[pd.Series, pd.Series, object]:
    """Labels as numbers; groups to draw from alike: classes, the rarest label of a text, tenths of the numbers; and the
    labels' feature. Raises ValueError as `split_rows`."""
    task, counts = task_of(labels), labels.explode().value_counts()
    if task == "regression":
        if len(counts) < 2 or len(labels) < 2 * ROWS_PER_CLASS:
            found = f"there are {len(labels):,} texts and {len(counts):,} different numbers"
            raise ValueError(f"To predict a number takes {2 * ROWS_PER_CLASS} texts and two numbers; {found}.")
        parts = min(10, len(labels) // ROWS_PER_CLASS)
        return labels, pd.qcut(labels.rank(method="first"), parts, labels=False), Value("float64")
    small = [f"{name!r} ({n})" for name, n in counts.items() if n < ROWS_PER_CLASS]
    if small or len(counts) < 2:
        raise ValueError(
            f"A classifier needs two classes or more, each with {ROWS_PER_CLASS} different texts or more; of "
            f"{len(counts):,} here {len(small):,} are too small{': ' * bool(small)}{listed(small)}. Add rows, or merge "
            "classes; --task multi takes several labels a text, --task regression numbers."
        )
    names = _in_order(counts.index)
    if task == "single":
        numbers = labels.map(names.index)
        return numbers, numbers, ClassLabel(names=names)
    numbers = labels.map(lambda several: [names.index(label) for label in several])
    rarest = labels.map(lambda several: min(several, key=counts.get, default=""))
    few = rarest.map(rarest.value_counts()) < ROWS_PER_CLASS
    return numbers, rarest.mask(few, rarest.mode()[0]).factorize()[0], List(ClassLabel(names=names))


def _distinct(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[int], list[int]]:
    """The cleaned rows to keep, and the numbers of duplicates and of texts under more than one label."""
    complete = rows.dropna()
    texts = [name for name in ("text", "pair") if name in complete]
    complete = complete.assign(**{name: complete[name].map(clean) for name in texts})
    keys = complete[texts].map(text_key).agg("\0".join, axis=1) if len(texts) > 1 else complete["text"].map(text_key)
    conflicting = complete["label"].groupby(keys).transform("nunique") > 1
    repeated = keys.duplicated() & ~conflicting
    return complete[~conflicting & ~repeated], list(complete.index[repeated]), list(complete.index[conflicting])


def _in_order(labels) -> list[str]:
    """Labels sorted, by value where all are numbers ("nan" is none)."""
    numbers = pd.to_numeric(pd.Series(sorted(labels), dtype=object), errors="coerce")
    return sorted(labels) if numbers.isna().any() else [sorted(labels)[i] for i in numbers.argsort(kind="stable")]


def own_recipe(name: str, file: str | Path, usable: int, profile: Profile, base_model: str) -> tuple[Recipe, Profile]:
    """Our version of recipe `name` and the profile to train it under, on every one of `file`'s `usable` rows.

    `base_model` is a hub name or a folder. LoRA's targets and the token limit follow from its architecture: targets
    that it does not have become peft's own for it, or every linear layer. Neither rows nor epochs are capped. Raises as
    `checkpoints.skeleton`.
    """
    recipe = RECIPES[name].improved()
    if name == OWN_DATA_RECIPE and usable * (1 - TEST_SHARE - VALIDATION_SHARE) < FEW_ROWS:
        recipe = replace(recipe, learning_rate=FEW_ROWS_RATE)
    if os.path.isdir(base_model):
        base_model = os.path.abspath(base_model)  # the adapter must find it from anywhere
    model = skeleton(base_model)
    layers = "".join(f".{name}\n" for name, _ in model.base_model.named_modules())
    of_peft = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ("all-linear",))
    known = [some for some in (recipe.target_modules, of_peft) if all(f".{target}\n" in layers for target in some)]
    recipe = replace(
        recipe,
        base_model=base_model,
        dataset=Path(file).name + "/" * Path(file).is_dir(),  # so that a folder's is no dataset's of the hub
        n_train=None,
        n_validation=None,
        target_modules=tuple(known[0]) if known else ("all-linear",),
        truncation="head+tail",
        max_length=min(profile.tokens(OWN_DATA_TOKENS), token_limit(base_model)),
    )
    return recipe, Profile(profile.name, embedded=False, seed=profile.seed, precision=profile.precision)


def token_limit(base_model: str) -> int:
    """The most tokens of a text that the checkpoint's tokenizer and positions take; huge where neither has a limit."""
    model = skeleton(base_model)
    padding = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    positions = getattr(model.config, "max_position_embeddings", -1) or -1  # XLNet's is -1: it has none
    positions -= 0 if padding is None else padding + 1  # RoBERTa's start behind the padding's
    return min(load_tokenizer(base_model).model_max_length, positions if positions > 0 else sys.maxsize)
