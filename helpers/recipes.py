"""The five sources' recipes as data: what each write-up states, what it leaves open, and what we change."""

import os
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, isfinite
from typing import Any, NamedTuple

from peft import LoraConfig, TaskType

from helpers.profiles import is_count, is_folder_name

# The linear layers of each architecture, by their last name. `all-linear` is peft's word for every one of them.
BERT_LINEARS = ("query", "key", "value", "dense")
DISTILBERT_LINEARS = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
TRUNCATIONS = ("head", "tail", "head+tail")
SCHEDULES = ("linear", "cosine")
OPTIMIZERS = ("adamw_torch", "paged_adamw_8bit")
VARIANTS = ("as_written", "improved", "full_finetune", "head_only", "untrained", "bag_of_words", "frozen_encoder")


class Override(NamedTuple):
    """One setting that `Recipe.improved()` changes, and why."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what is learned. How fast it runs is `profiles.Execution`.

    `learning_rate`, `weight_decay` and `warmup_ratio` are as in `transformers.TrainingArguments`; `max_length` is in
    tokens; `n_train` and `n_validation` are row counts (None: every row). Where rows are few, a run has as many more
    epochs than `num_train_epochs` as make `min_updates` updates. `model_dropout` replaces the encoder's own
    dropouts (None keeps them). `class_weights="balanced"` has each class count the same in the loss, however few its
    rows, and keeps the epoch with the best balanced accuracy. `use_rslora` scales the update by lora_alpha / sqrt(r)
    instead of lora_alpha / r (Kalajdzievski 2023, arXiv 2312.03732). `target_modules` are the ends of layer names:
    "output.dense" is also the end of "attention.output.dense". `assumed` maps each setting the source leaves open to
    why it has its value here.

    Raises ValueError, naming the field, for a setting that cannot be trained.
    """

    name: str
    source: str
    base_model: str
    dataset: str
    r: int
    lora_alpha: int
    target_modules: tuple[str, ...]
    lora_dropout: float = 0.0
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    quantization: str | None = None
    learning_rate: float = 5e-5
    num_train_epochs: int = 3
    min_updates: int | None = None
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    optim: str = "adamw_torch"
    max_length: int = 512
    truncation: str = "head"
    early_stopping_patience: int | None = None
    model_dropout: float | None = None
    class_weights: str | None = None
    n_train: int | None = None
    n_validation: int | None = None
    variant: str = "as_written"
    assumed: tuple[tuple[str, str], ...] = ()
    overrides: tuple[Override, ...] = ()

    def __post_init__(self):
        self._require("name", is_folder_name(self.name), "text that can name a file")
        for name in ("source", "base_model", "dataset"):
            self._require(name, _is_text(getattr(self, name)), "text, neither empty nor with half a character")
        for name in ("r", "lora_alpha", "num_train_epochs", "per_device_train_batch_size"):
            self._require(name, is_count(getattr(self, name)), "a whole number of at least 1")
        self._require("gradient_accumulation_steps", is_count(self.gradient_accumulation_steps), "at least 1")
        self._require("max_length", is_count(self.max_length, 8), "at least 8 tokens")
        for name in ("n_train", "n_validation", "early_stopping_patience", "min_updates"):
            value = getattr(self, name)
            self._require(name, value is None or is_count(value), "None or a whole number of at least 1")
        self._require("learning_rate", _is_number(self.learning_rate) and 0 < self.learning_rate < 1, "between 0 and 1")
        self._require("weight_decay", _is_number(self.weight_decay) and self.weight_decay >= 0, "0 or more")
        for name in ("lora_dropout", "warmup_ratio"):
            value = getattr(self, name)
            self._require(name, _is_number(value) and 0 <= value < 1, "from 0 up to, not including, 1")
        dropout = self.model_dropout
        self._require(
            "model_dropout", dropout is None or (_is_number(dropout) and 0 <= dropout < 1), "None or in [0, 1)"
        )
        self._require("quantization", self.quantization in (None, "nf4"), "None or 'nf4'")
        self._require("class_weights", self.class_weights in (None, "balanced"), "None or 'balanced'")
        self._require("truncation", self.truncation in TRUNCATIONS, f"one of {TRUNCATIONS}")
        self._require("lr_scheduler_type", self.lr_scheduler_type in SCHEDULES, f"one of {SCHEDULES}")
        self._require("optim", self.optim in OPTIMIZERS, f"one of {OPTIMIZERS}")
        self._require("variant", self.variant in VARIANTS, f"one of {VARIANTS}")
        known = _known_linears(self.base_model)
        valid = _are_names(self.target_modules) and bool(self.target_modules)
        if known and valid:
            valid = all(module.split(".")[-1] in (*known, "all-linear") for module in self.target_modules)
        self._require("target_modules", valid, f"some of {known or 'the names of linear layers'}")
        self._require("modules_to_save", _are_names(self.modules_to_save), "a tuple of names of layers")
        self._require("use_rslora", isinstance(self.use_rslora, bool), "True or False")
        names = {field.name for field in fields(self)}
        unknown = [one for one in self.overrides if not isinstance(one, Override) or one.field not in names]
        self._require("overrides", not unknown, f"Overrides of recipe fields, which {unknown} are not")

    def _require(self, field: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"Recipe.{field} is {repr(getattr(self, field))[:200]}; it must be {expected}.")

    def epochs(self, n_train: int) -> int:
        """The epochs on `n_train` rows: `num_train_epochs`, or as many as make `min_updates` updates."""
        per_epoch = ceil(n_train / (self.per_device_train_batch_size * self.gradient_accumulation_steps))
        return max(self.num_train_epochs, ceil((self.min_updates or 0) / per_epoch))

    def with_settings(self, settings: Sequence[str]) -> "Recipe":
        """This recipe with settings given as text, such as "r=32"; its name, and so that of its record, says which.

        Several values are separated by commas. Raises ValueError for what is no setting, and as the recipe does.
        """
        changes: dict[str, Any] = {}
        for setting in settings:
            name, _, text = (part.strip() for part in setting.partition("="))
            if name not in SETTINGS or not text:
                raise ValueError(f"{setting!r} sets nothing; it must be FIELD=VALUE, with a FIELD of {list(SETTINGS)}.")
            try:
                value = literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                value = text
            if isinstance(getattr(self, name), tuple) and isinstance(value, str):
                value = tuple(part.strip() for part in value.split(","))
            changes[name] = value
        return replace(self, **changes, name=",".join([self.name, *(setting.strip() for setting in settings)]))

    def improved(self) -> "Recipe":
        """This recipe with every entry of `overrides` applied (each carries its reason)."""
        return replace(self, variant="improved", **{override.field: override.value for override in self.overrides})

    def full_finetune(self) -> "Recipe":
        """This recipe with every weight trained instead of an adapter, at a rate that suits that (Devlin et al. 2019
        search 2e-5 to 5e-5 for BERT-base; a small encoder takes 1e-4)."""
        return replace(self, variant="full_finetune", quantization=None, optim="adamw_torch", learning_rate=1e-4)

    def head_only(self) -> "Recipe":
        """This recipe with the encoder frozen and no adapter: only what sits on top of it is trained."""
        return replace(self, variant="head_only")

    def lora_config(self) -> LoraConfig:
        """The peft configuration this recipe stands for."""
        targets = "all-linear" if "all-linear" in self.target_modules else list(self.target_modules)
        return LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            target_modules=targets,
            modules_to_save=list(self.modules_to_save) or None,
            bias="none",
        )


# What can be changed from a terminal: all but what identifies a recipe, and tells why it is as it is.
SETTINGS = tuple(
    field.name for field in fields(Recipe) if field.name not in ("name", "source", "variant", "assumed", "overrides")
)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.encode(errors="ignore").decode() == value


def _are_names(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and all(map(_is_text, values))  # a string would be taken for its letters


def _known_linears(base_model: str) -> tuple[str, ...]:
    """The linear layers of a checkpoint whose name gives its architecture away; empty for others, and for a folder."""
    if os.path.isdir(base_model):  # False, where pathlib raises, for a name that no file can have
        return ()
    name = base_model.lower()
    if "distilbert" in name:
        return DISTILBERT_LINEARS
    return BERT_LINEARS if "roberta" not in name and name.split("/")[-1].startswith(("bert-", "minilm-")) else ()


_NOT_VARIED = "where the search started (plan.START); not varied"
_RATE_NOT_STATED = ("learning_rate", "not stated: TrainingArguments' default of 5e-5")
_HIGHER_RATE = "LoRA's zero-initialised B wants a rate 10 to 100 times that of full fine-tuning"
_HEAD_TAIL = Override("truncation", "head+tail", "reviewers give their verdict at the end (Sun et al. 2019, §5.3.1)")
_NO_LORA_DROPOUT = Override("lora_dropout", 0.0, "a few epochs underfit; dropout only slows them")
_TWO_EPOCHS = Override("num_train_epochs", 2, "at this rate validation accuracy has peaked by then")
_NO_DROPOUT = Override("model_dropout", 0.0, "the encoder is frozen: its dropout is noise, and keeps attention slow")
_COSINE = Override("lr_scheduler_type", "cosine", "decays gently from a high rate to zero")
_WARMUP = Override("warmup_ratio", 0.06, "a high rate needs a short ramp")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="lora_distilbert_q",
            source="000",
            base_model="distilbert-base-uncased",
            dataset="imdb",
            r=4,
            lora_alpha=32,
            lora_dropout=0.01,
            target_modules=("q_lin",),
            learning_rate=1e-3,
            num_train_epochs=1,
            per_device_train_batch_size=4,
            assumed=(
                ("max_length", "not stated: the model's limit of 512"),
                ("n_train", "'randomly sampled subsets' of a size not stated: every row"),
            ),
            overrides=(
                Override("target_modules", ("q_lin", "v_lin"), "queries alone leave what is attended to unchanged"),
                Override("per_device_train_batch_size", 16, "four reviews a step are noisy and slow"),
                Override("num_train_epochs", 2, "one pass underfits"),
                Override("learning_rate", 2e-3, _HIGHER_RATE),
                _HEAD_TAIL,
                _NO_LORA_DROPOUT,
                _NO_DROPOUT,
                _COSINE,
                _WARMUP,
            ),
        ),
        Recipe(
            name="qlora_bert",
            source="001",
            base_model="bert-base-uncased",
            dataset="dipanjanS/imdb_sentiment_finetune_dataset20k",
            r=16,
            lora_alpha=32,
            lora_dropout=0.1,
            target_modules=("query", "value"),
            quantization="nf4",
            learning_rate=2e-4,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            lr_scheduler_type="cosine",
            warmup_ratio=0.1,
            weight_decay=0.01,
            optim="paged_adamw_8bit",
            max_length=256,
            early_stopping_patience=2,
            overrides=(
                Override("learning_rate", 2e-3, _HIGHER_RATE),
                Override("gradient_accumulation_steps", 1, "twice the updates from the same reviews"),
                _TWO_EPOCHS,
                _HEAD_TAIL,
                _NO_LORA_DROPOUT,
                _NO_DROPOUT,
            ),
        ),
        Recipe(
            name="lora_bert_cased",
            source="002",
            base_model="bert-base-cased",
            dataset="imdb",
            r=1,
            lora_alpha=1,
            target_modules=("query", "value"),
            num_train_epochs=30,
            assumed=(
                ("r", "the source states r = 0.2, which is no rank: the smallest rank there is"),
                ("target_modules", "not stated: peft's default for BERT"),
                ("per_device_train_batch_size", "not stated: TrainingArguments' default of 8"),
                ("max_length", "not stated: the model's limit of 512"),
                _RATE_NOT_STATED,
            ),
            overrides=(
                Override("r", 16, "rank 1 is the least there is"),
                Override("lora_alpha", 32, "scaling alpha / r of 2, as the other sources have it"),
                Override("learning_rate", 2e-3, _HIGHER_RATE),
                Override("per_device_train_batch_size", 16, "fuller matrix products"),
                Override("early_stopping_patience", 2, "30 epochs go on long after validation accuracy stops rising"),
                _HEAD_TAIL,
                _NO_DROPOUT,
                _COSINE,
                _WARMUP,
            ),
        ),
        Recipe(
            name="lora_distilbert_qv",
            source="003",
            base_model="distilbert-base-uncased",
            dataset="imdb",
            r=8,
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=("q_lin", "v_lin"),
            num_train_epochs=3,
            per_device_train_batch_size=16,
            assumed=(("max_length", "not stated: the model's limit of 512"), _RATE_NOT_STATED),
            overrides=(
                Override("r", 16, "costs little and leaves room for more data"),
                Override("lora_alpha", 32, "keeps the scaling alpha / r at 2"),
                Override("learning_rate", 2e-3, _HIGHER_RATE),
                _TWO_EPOCHS,
                _HEAD_TAIL,
                _NO_LORA_DROPOUT,
                _NO_DROPOUT,
                _COSINE,
                _WARMUP,
            ),
        ),
        Recipe(
            name="lora_bert_sst2",
            source="004",
            base_model="bert-base-uncased",
            dataset="glue/sst2",
            r=8,
            lora_alpha=32,
            lora_dropout=0.1,
            target_modules=("query", "value"),
            num_train_epochs=3,
            per_device_train_batch_size=8,
            weight_decay=0.01,
            max_length=128,
            n_train=2_000,
            n_validation=500,
            # Decided by Data/full/results/studies/settings.json: mean validation accuracy at 500 and 2,000 sentences,
            # two seeds. Every linear layer instead of query and value, and a trained pooler, were no better either. The
            # rate of 2e-3, batches of 32 and twice the updates were tried on every linear layer only.
            assumed=(("target_modules", "not stated: peft's default for BERT"), _RATE_NOT_STATED),
            overrides=(
                Override("r", 16, "started there; rank 4 gains nothing"),
                Override("learning_rate", 1e-3, "twice that loses 12 points, half of it gains nothing"),
                Override("per_device_train_batch_size", 16, "8, with twice the updates, and 32 are no better"),
                Override("min_updates", 400, "few rows take more epochs; twice as many updates are no better"),
                Override("lora_dropout", 0.0, "0.1, with the encoder's, gains nothing on these layers"),
                Override("model_dropout", 0.0, "as above, and attention is faster without"),
                Override("weight_decay", 0.0, "0.1 gains less than half a point"),
                Override("lr_scheduler_type", "cosine", _NOT_VARIED),
                Override("warmup_ratio", 0.06, _NOT_VARIED),
            ),
        ),
    )
}
