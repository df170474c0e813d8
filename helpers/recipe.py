"""What a recipe is: the settings that decide what is learned, checked."""

import os
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, isfinite
from typing import Any, NamedTuple

from peft import LoraConfig, TaskType

from helpers.base.checks import is_count, is_folder_name, require

# The linear layers of each architecture, by their last name. `all-linear` is peft's word for every one of them.
BERT_LINEARS = ("query", "key", "value", "dense")
DISTILBERT_LINEARS = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
EVERY_LINEAR = ("query", "key", "value", "intermediate.dense", "output.dense")  # of BERT, without the pooler's
TRUNCATIONS = ("head", "tail", "head+tail")
SCHEDULES = ("linear", "cosine")
OPTIMIZERS = ("adamw_torch", "paged_adamw_8bit")
METHODS = ("adapter", "full_finetune", "head_only", "bag_of_words", "frozen_encoder")
# What a recipe's record is named by. EARLIER are versions of ours, LOWER_RATES of full fine-tuning, for comparison.
EARLIER = ("query_value", "thirty_epochs", "half_rate")
LOWER_RATES = {"full_half_rate": 0.5, "full_quarter_rate": 0.25}
VARIANTS = ("as_written", "improved", *EARLIER, "untrained", *METHODS[1:], *LOWER_RATES)


class Override(NamedTuple):
    """One setting that `Recipe.improved()` changes, and why."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what is learned. How fast it runs is `profiles.Execution`.

    `learning_rate`, `weight_decay` and `warmup_ratio` are as in `transformers.TrainingArguments`; `max_length` is in
    tokens; `n_train` and `n_validation` are row counts (None: a tenth to validate, every other row to train). Where
    rows are few, a run has as many more epochs than `num_train_epochs` as make `min_updates` updates. `model_dropout`
    replaces the encoder's own dropouts (None keeps them). `class_weights="balanced"` has each class count the same in
    the loss, however few its rows, and keeps the epoch with the best balanced accuracy. `use_rslora` scales the update
    by lora_alpha / sqrt(r) instead of lora_alpha / r (Kalajdzievski 2023, arXiv 2312.03732). `target_modules` are the
    ends of layer names: "output.dense" is also the end of "attention.output.dense". `method` is what trains: an
    adapter, every weight, the head alone, or one of the baselines, which train nothing of the encoder. `variant` is a
    label, part of the record's name. `assumed` maps each setting the source leaves open to why it has its value here.

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
    method: str = "adapter"
    variant: str = "as_written"
    assumed: tuple[tuple[str, str], ...] = ()
    overrides: tuple[Override, ...] = ()

    def __post_init__(self):
        require(self, "name", is_folder_name(self.name), "text that can name a file")
        for name in ("source", "base_model", "dataset"):
            require(self, name, _is_text(getattr(self, name)), "text, neither empty nor with half a character")
        for name in ("r", "lora_alpha", "num_train_epochs", "per_device_train_batch_size"):
            require(self, name, is_count(getattr(self, name)), "a whole number of at least 1")
        require(self, "gradient_accumulation_steps", is_count(self.gradient_accumulation_steps), "at least 1")
        require(self, "max_length", is_count(self.max_length, 8), "at least 8 tokens")
        for name in ("n_train", "n_validation", "early_stopping_patience", "min_updates"):
            value = getattr(self, name)
            require(self, name, value is None or is_count(value), "None or a whole number of at least 1")
        require(self, "learning_rate", _is_number(self.learning_rate) and 0 < self.learning_rate < 1, "between 0 and 1")
        require(self, "weight_decay", _is_number(self.weight_decay) and self.weight_decay >= 0, "0 or more")
        for name in ("lora_dropout", "warmup_ratio"):
            value = getattr(self, name)
            require(self, name, _is_number(value) and 0 <= value < 1, "from 0 up to, not including, 1")
        dropout = self.model_dropout
        require(
            self, "model_dropout", dropout is None or (_is_number(dropout) and 0 <= dropout < 1), "None or in [0, 1)"
        )
        require(self, "quantization", self.quantization in (None, "nf4"), "None or 'nf4'")
        require(self, "class_weights", self.class_weights in (None, "balanced"), "None or 'balanced'")
        require(self, "truncation", self.truncation in TRUNCATIONS, f"one of {TRUNCATIONS}")
        require(self, "lr_scheduler_type", self.lr_scheduler_type in SCHEDULES, f"one of {SCHEDULES}")
        require(self, "optim", self.optim in OPTIMIZERS, f"one of {OPTIMIZERS}")
        require(self, "method", self.method in METHODS, f"one of {METHODS}")
        require(self, "variant", self.variant in VARIANTS, f"one of {VARIANTS}")
        known = _known_linears(self.base_model)
        valid = _are_names(self.target_modules) and bool(self.target_modules)
        if known and valid:
            valid = all(module.split(".")[-1] in (*known, "all-linear") for module in self.target_modules)
        require(self, "target_modules", valid, f"some of {known or 'the names of linear layers'}")
        require(self, "modules_to_save", _are_names(self.modules_to_save), "a tuple of names of layers")
        require(self, "use_rslora", isinstance(self.use_rslora, bool), "True or False")
        names = {field.name for field in fields(self)}
        unknown = [one for one in self.overrides if not isinstance(one, Override) or one.field not in names]
        require(self, "overrides", not unknown, f"Overrides of recipe fields, which {unknown} are not")

    def stated(self) -> dict[str, Any]:
        """Its fields as a record has them: all but the reasons, `assumed` and `overrides`."""
        return {name: value for name, value in asdict(self).items() if name not in ("assumed", "overrides")}

    def epochs(self, n_train: int) -> int:
        """The epochs on `n_train` rows: `num_train_epochs`, or as many as make `min_updates` updates."""
        per_epoch = ceil(n_train / (self.per_device_train_batch_size * self.gradient_accumulation_steps))
        return max(self.num_train_epochs, ceil((self.min_updates or 0) / per_epoch))

    def with_settings(self, settings: Sequence[str]) -> "Recipe":
        """This recipe with settings given as text, such as "r=32"; its name, and so that of its record, says which.

        Several values are separated by commas; a hub name's slash is `--` in the recipe's name. Raises ValueError for
        what is no setting, and as the recipe does.
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
        return replace(self, **changes, name=",".join([self.name, *map(str.strip, settings)]).replace("/", "--"))

    def improved(self) -> "Recipe":
        """This recipe with every entry of `overrides` applied (each carries its reason)."""
        return replace(self, variant="improved", **{override.field: override.value for override in self.overrides})

    def full_finetune(self) -> "Recipe":
        """This recipe with every weight trained instead of an adapter, at a rate that suits that (Devlin et al. 2019
        search 2e-5 to 5e-5 for BERT-base; a small encoder takes 1e-4)."""
        return replace(self.by("full_finetune"), optim="adamw_torch", learning_rate=1e-4)

    def by(self, method: str) -> "Recipe":
        """This recipe with one of METHODS that has no adapter, and so no 4 bits; `variant` says so, too."""
        return replace(self, method=method, variant=method, quantization=None)

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
    field.name
    for field in fields(Recipe)
    if field.name not in ("name", "source", "method", "variant", "assumed", "overrides")
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
