"""Your own labelled texts: what is in them, their split, and a recipe for them, whatever the encoder."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from helpers.checkpoints import from_hub
from helpers.data import clean, drop_duplicates, split_reviews, text_key, token_lengths
from helpers.models import load_tokenizer
from helpers.profiles import Profile
from helpers.recipe import Recipe
from helpers.recipes import RECIPES

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
# So many rows leave a class at least one in each part, whatever the rounding: at most 3 of 12 are drawn to test, and of
# the 9 others at least one to validate. With 9 it can fail.
ROWS_PER_CLASS = 12
SKEW = 3  # times the smallest class's rows; with more in the largest, a file's classes count as skewed
LENGTH_SAMPLE = 10_000  # rows that are tokenized to say how long the texts are
SHOWN = 5  # rows or classes that a message lists
SHOWN_CLASSES = 20  # that a table of findings lists one by one
OWN_DATA_RECIPE = "lora_bert_sst2"
OWN_DATA_TOKENS = 512  # what an encoder reads at most; short texts cost no more for it
FEW_ROWS = 1_000  # of training: the recipe's own rate was searched on 1,000 and 2,000
FEW_ROWS_RATE = 2.5e-4  # below, that of 100 to 2,000 together

# The projections of attention, by what architectures call them; "Wqkv" and "in_proj" are all three in one matrix.
ATTENTION_LINEARS = {
    "query": ("query", "q_lin", "query_proj", "q_proj", "q", "Wqkv", "in_proj"),
    "key": ("key", "k_lin", "key_proj", "k_proj", "k", "Wqkv", "in_proj"),
    "value": ("value", "v_lin", "value_proj", "v_proj", "v", "Wqkv", "in_proj"),
}


@dataclass(frozen=True)
class Findings:
    """What is in a file, before anything is dropped. Row numbers count from 1.

    `duplicates` are rows that repeat an earlier text under the same label, compared as `data.text_key` does;
    `conflicts` are all rows of texts that carry more than one label. `classes` counts the rows that are left for each
    label. `lengths` are their tokens before truncation, of at most `LENGTH_SAMPLE` rows drawn at random.
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
        """Whether the largest class has more than `SKEW` times the rows of the smallest: accuracy then hides the small
        ones, and all reports lead with balanced accuracy."""
        return bool(self.classes) and max(self.classes.values()) > SKEW * min(self.classes.values())

    def table(self, max_length: int) -> pd.DataFrame:
        """The findings, one a row, with the first rows that each concerns; of many classes the first."""
        found = [("rows", self.rows, "")]
        for name in ("missing_texts", "missing_labels", "duplicates", "conflicts"):
            numbers = getattr(self, name)
            found.append((name.replace("_", " "), len(numbers), f"rows {listed(numbers)}" if numbers else ""))
        counts = list(self.classes.items())
        found += [
            (f"class {label[:60]}", count, f"{count / self.usable:.0%}") for label, count in counts[:SHOWN_CLASSES]
        ]
        if rest := [count for _, count in counts[SHOWN_CLASSES:]]:
            found.append((f"{len(rest):,} more classes", sum(rest), f"{min(rest):,} to {max(rest):,} rows each"))
        if self.skewed:
            times = max(self.classes.values()) // min(self.classes.values())
            found.append(("largest class over smallest", times, "times: skewed; --class-weights balanced counters it"))
        if len(self.lengths):
            cut = float((self.lengths > max_length).mean())
            found.append(("tokens, median", int(np.median(self.lengths)), f"longest {self.lengths.max():,}"))
            found.append((f"longer than {max_length} tokens", round(cut * self.usable), f"{cut:.0%}, will be cut"))
        return pd.DataFrame(found, columns=["finding", "count", "which"]).set_index("finding")


def listed(items: list) -> str:
    """The first of `items`, as a message lists them."""
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")


def examine(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Findings:
    """What is in `rows` (see `files.read_rows`)."""
    duplicates, conflicts = _repeated(rows)
    left = rows.dropna().drop(index=[*duplicates, *conflicts])
    counts = left["label"].value_counts()
    measured = left.sample(min(LENGTH_SAMPLE, len(left)), random_state=0)
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

    Texts with more than one label are dropped whole, and of duplicates the first is kept. The labels are in
    alphabetical order, numbers in numeric order. Raises ValueError for rows without text or label (`drop_incomplete`
    drops them instead), for a single class, and for a class with fewer than `ROWS_PER_CLASS` rows.
    """
    incomplete = list(rows.index[rows.isna().any(axis=1)])
    if incomplete and not drop_incomplete:
        raise ValueError(
            f"{len(incomplete):,} of {len(rows):,} rows are incomplete: rows {listed(incomplete)}, counted from 1. "
            "Complete them, or leave them out with drop_incomplete."
        )
    _, conflicts = _repeated(rows)
    left = rows.dropna().drop(index=conflicts)
    names = _in_order(left["label"].unique())
    if len(names) < 2:
        raise ValueError(f"A classifier needs two classes or more; the labels are {names or 'all missing'}.")
    left = left.assign(text=left["text"].map(clean))
    features = Features({"text": Value("string"), "label": ClassLabel(names=names), "row": Value("int64")})
    dataset = drop_duplicates(Dataset.from_pandas(left.reset_index(), preserve_index=False).cast(features))
    counts = np.bincount(dataset["label"][:], minlength=len(names))
    if small := [f"{name!r} ({n})" for name, n in zip(names, counts, strict=True) if n < ROWS_PER_CLASS]:
        raise ValueError(
            f"{len(small):,} of {len(names):,} classes have fewer than the {ROWS_PER_CLASS} different texts that the "
            f"split needs: {listed(small)}. Add rows, or merge or remove these classes."
        )
    n_test, n_validation = (int(np.ceil(share * len(dataset))) for share in (TEST_SHARE, VALIDATION_SHARE))
    return split_reviews(dataset, None, n_validation, n_test, seed)


def _repeated(rows: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Row numbers of duplicates (all but the first) and of texts under more than one label."""
    complete = rows.dropna()
    keys = complete["text"].map(text_key)
    conflicting = complete["label"].groupby(keys).transform("nunique") > 1
    return list(complete.index[keys.duplicated() & ~conflicting]), list(complete.index[conflicting])


def _in_order(labels) -> list[str]:
    """Labels sorted, by value where all are numbers ("nan" is none)."""
    numbers = pd.to_numeric(pd.Series(list(labels), dtype=object), errors="coerce")
    return sorted(labels) if numbers.isna().any() else [labels[i] for i in numbers.argsort(kind="stable")]


def own_recipe(
    name: str, file: str | Path, usable: int, profile: Profile, base_model: str | None = None
) -> tuple[Recipe, Profile]:
    """Our version of recipe `name` and the profile to train it under, on every one of `file`'s `usable` rows.

    `base_model` is a hub name or a folder; None is the profile's own checkpoint. Texts have up to `OWN_DATA_TOKENS`
    tokens, fewer where checkpoint or profile allow fewer, and lose their middle beyond; neither rows nor epochs are
    capped. With few rows `OWN_DATA_RECIPE` takes `FEW_ROWS_RATE`. Raises as `adapt_recipe` does.
    """
    recipe = RECIPES[name].improved()
    if name == OWN_DATA_RECIPE and usable * (1 - TEST_SHARE - VALIDATION_SHARE) < FEW_ROWS:
        recipe = replace(recipe, learning_rate=FEW_ROWS_RATE)
    base_model = base_model or profile.base_model(recipe.base_model)
    if os.path.isdir(base_model):
        base_model = os.path.abspath(base_model)  # the adapter must find it from anywhere
    tokens = profile.tokens(OWN_DATA_TOKENS)
    recipe = replace(recipe, dataset=Path(file).name, n_train=None, n_validation=None)
    recipe = adapt_recipe(replace(recipe, max_length=tokens, truncation="head+tail"), base_model)
    return recipe, Profile(profile.name, embedded=False, seed=profile.seed, precision=profile.precision)


def adapt_recipe(recipe: Recipe, base_model: str) -> Recipe:
    """`recipe` for another checkpoint: its LoRA targets, head and token limit follow from the architecture.

    Query, key and value go by the checkpoint's own names (in ModernBERT one matrix holds them all); a target that it
    has no counterpart of becomes every linear layer. What sits outside the encoder is new and trained whole, beside
    what the recipe names and the checkpoint has. `max_length` is cut to the checkpoint's limit. Reads config and
    tokenizer, no weights. Raises ValueError for a checkpoint that transformers has no sequence classifier for, and
    ConnectionError as `load_classifier` does.
    """
    config = from_hub(AutoConfig.from_pretrained, base_model)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"{base_model!r} is a {config.model_type!r} checkpoint, which transformers has no sequence classifier for. "
            "Choose an encoder such as BERT, DistilBERT, RoBERTa or ModernBERT."
        ) from error
    encoder = model.base_model
    layers = [name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)]
    linears = {name.split(".")[-1] for name in layers}
    targets = []
    for target in recipe.target_modules:
        same = next((names for names in ATTENTION_LINEARS.values() if target in names), ())
        found = any(f".{name}".endswith(f".{target}") for name in layers)
        targets.append(target if found else next((name for name in same if name in linears), "all-linear"))
    head = {name.split(".")[-1] for name, _ in encoder.named_modules()} & set(recipe.modules_to_save)
    head |= {name for name, child in model.named_children() if child is not encoder and list(child.parameters())}
    return replace(
        recipe,
        base_model=base_model,
        target_modules=("all-linear",) if "all-linear" in targets else tuple(dict.fromkeys(targets)),
        modules_to_save=tuple(sorted(head - {"classifier"})),  # peft adds the classifier itself
        max_length=int(min(recipe.max_length, load_tokenizer(base_model).model_max_length, positions(encoder))),
    )


def positions(encoder: PreTrainedModel) -> float:
    """The most tokens the encoder has positions for; RoBERTa's start behind its padding index."""
    limit = getattr(encoder.config, "max_position_embeddings", -1)
    reserved = [
        module.padding_idx + 1
        for name, module in encoder.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return limit - max(reserved, default=0) if limit > 0 else float("inf")  # -1: relative positions, no limit
