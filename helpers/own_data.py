"""Your own labelled texts: what is in them, their split, and a recipe for them, whatever the encoder."""

import os
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from helpers.checkpoints import from_hub
from helpers.data import clean, split_reviews, text_key, token_lengths
from helpers.models import load_tokenizer
from helpers.profiles import Profile
from helpers.recipes import RECIPES, Recipe

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
ROWS_PER_CLASS = 12  # so many leave a class at least one in each part, whatever the rounding; with 9 it can fail
SKEW = 3  # times the smallest class's rows; with more in the largest, a file's classes count as skewed
SHOWN_CLASSES = 20  # that a table lists one by one
OWN_DATA_RECIPE = "lora_bert_sst2"
OWN_DATA_TOKENS = 512  # what an encoder reads at most; short texts cost no more for it
FEW_ROWS, FEW_ROWS_RATE = 1_000, 2.5e-4  # its own rate was searched on 1,000 and 2,000 rows, this one on 100 to 2,000


@dataclass(frozen=True)
class Findings:
    """What is in a file, before anything is dropped. Row numbers count from 1.

    `duplicates` repeat an earlier text under the same label; `conflicts` are all rows of texts with several labels.
    `classes` counts the rows that are left; `lengths` are the tokens, before truncation, of at most 10,000 of these.
    """

    rows: int
    missing_texts: list[int]
    missing_labels: list[int]
    duplicates: list[int]
    conflicts: list[int]
    classes: dict[str, int]
    lengths: np.ndarray

    @property
    def usable(self) -> int:
        """Rows that are left to train and to score on."""
        return sum(self.classes.values())

    @property
    def skewed(self) -> bool:
        """Whether accuracy hides what becomes of the small classes: reports then lead with balanced accuracy."""
        return bool(self.classes) and max(self.classes.values()) > SKEW * min(self.classes.values())

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
            found.append((f"longer than {max_length} tokens", round(cut * self.usable), f"{cut:.0%}, will be cut"))
        return pd.DataFrame(found, columns=["finding", "count", "which"]).set_index("finding")


def listed(items: list) -> str:
    """The first of `items`, as a message lists them."""
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")


def examine(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Findings:
    """What is in `rows` (see `files.read_rows`)."""
    left, duplicates, conflicts = _distinct(rows)
    counts, measured = left["label"].value_counts(), left.sample(min(10_000, len(left)), random_state=0)
    return Findings(
        rows=len(rows),
        missing_texts=list(rows.index[rows["text"].isna()]),
        missing_labels=list(rows.index[rows["label"].isna()]),
        duplicates=duplicates,
        conflicts=conflicts,
        classes={label: int(counts[label]) for label in _in_order(counts.index)},
        lengths=token_lengths(measured, tokenizer) if len(left) else np.array([], dtype=int),
    )


def split_rows(rows: pd.DataFrame, seed: int = 42, drop_incomplete: bool = False) -> DatasetDict:
    """Stratified train, validation and test rows (70, 10 and 20 %) that share no text; columns `text, label, row`.

    Raises ValueError for rows without text or label, unless `drop_incomplete` drops them, for fewer than two classes,
    and for a class of fewer than `ROWS_PER_CLASS`.
    """
    incomplete = list(rows.index[rows.isna().any(axis=1)])
    if incomplete and not drop_incomplete:
        found = f"{len(incomplete):,} of {len(rows):,} rows are incomplete: rows {listed(incomplete)}, counted from 1"
        raise ValueError(f"{found}. Complete them, or leave them out with --drop-incomplete.")
    left, _, _ = _distinct(rows)
    names = _in_order(left["label"].unique())
    small = [f"{name!r} ({n})" for name, n in left["label"].value_counts().items() if n < ROWS_PER_CLASS]
    if small or len(names) < 2:
        raise ValueError(
            f"A classifier needs two classes or more, each with {ROWS_PER_CLASS} different texts or more; there are "
            f"{len(names):,}, {len(small):,} of them too small: {listed(small)}. Add rows, or merge classes."
        )
    left = left.assign(label=left["label"].map(names.index)).reset_index()
    features = Features({"text": Value("string"), "label": ClassLabel(names=names), "row": Value("int64")})
    dataset = Dataset.from_pandas(left[list(features)], preserve_index=False).cast(features)
    return split_reviews(dataset, None, ceil(VALIDATION_SHARE * len(dataset)), ceil(TEST_SHARE * len(dataset)), seed)


def _distinct(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[int], list[int]]:
    """The cleaned rows to keep, and the numbers of duplicates and of texts under more than one label."""
    complete = rows.dropna()
    complete = complete.assign(text=complete["text"].map(clean))
    keys = complete["text"].map(text_key)
    conflicting = complete["label"].groupby(keys).transform("nunique") > 1
    repeated = keys.duplicated() & ~conflicting
    return complete[~conflicting & ~repeated], list(complete.index[repeated]), list(complete.index[conflicting])


def _in_order(labels) -> list[str]:
    """Labels sorted, by value where all are numbers ("nan" is none)."""
    numbers = pd.to_numeric(pd.Series(sorted(labels), dtype=object), errors="coerce")
    return sorted(labels) if numbers.isna().any() else [sorted(labels)[i] for i in numbers.argsort(kind="stable")]


def own_recipe(
    name: str, file: str | Path, usable: int, profile: Profile, base_model: str | None = None
) -> tuple[Recipe, Profile]:
    """Our version of recipe `name` and the profile to train it under, on every one of `file`'s `usable` rows.

    `base_model` is a hub name or a folder; None is the profile's own checkpoint. Neither rows nor epochs are capped.
    Raises as `adapt_recipe` does.
    """
    recipe = RECIPES[name].improved()
    if name == OWN_DATA_RECIPE and usable * (1 - TEST_SHARE - VALIDATION_SHARE) < FEW_ROWS:
        recipe = replace(recipe, learning_rate=FEW_ROWS_RATE)
    base_model = base_model or profile.base_model(recipe.base_model)
    if os.path.isdir(base_model):
        base_model = os.path.abspath(base_model)  # the adapter must find it from anywhere
    own = {"dataset": Path(file).name, "n_train": None, "n_validation": None, "truncation": "head+tail"}
    recipe = adapt_recipe(replace(recipe, **own, max_length=profile.tokens(OWN_DATA_TOKENS)), base_model)
    return recipe, Profile(profile.name, embedded=False, seed=profile.seed, precision=profile.precision)


def adapt_recipe(recipe: Recipe, base_model: str) -> Recipe:
    """`recipe` for another checkpoint: its LoRA targets, head and token limit follow from the architecture.

    Targets that it does not have become peft's own for it, or every linear layer. Raises ValueError for a checkpoint
    that transformers has no sequence classifier for, and ConnectionError as `load_classifier` does.
    """
    config = from_hub(AutoConfig.from_pretrained, base_model)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"{base_model!r} is a {config.model_type!r} checkpoint, which transformers has no sequence classifier for."
        ) from error
    encoder = model.base_model
    layers = "".join(f".{name}\n" for name, _ in encoder.named_modules())
    targets = recipe.target_modules
    if not all(f".{target}\n" in layers for target in targets):
        targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.model_type, ("all-linear",))
    whole = {name for name in recipe.modules_to_save if f".{name}\n" in layers}
    whole |= {name for name, child in model.named_children() if child is not encoder and list(child.parameters())}
    padding = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)  # RoBERTa's positions start behind it
    positions = getattr(config, "max_position_embeddings", OWN_DATA_TOKENS) - (0 if padding is None else padding + 1)
    return replace(
        recipe,
        base_model=base_model,
        target_modules=tuple(targets),
        modules_to_save=tuple(sorted(whole - {"classifier"})),  # which peft adds itself
        max_length=min(recipe.max_length, load_tokenizer(base_model).model_max_length, positions),
    )
