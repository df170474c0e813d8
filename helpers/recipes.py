"""The five write-ups' recipes, from recipes.yaml: what each states, what it leaves open, what we change and why."""

from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from peft import LoraConfig, TaskType
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

Method = Literal[
    "adapter", "full_finetune", "head_only", "bag_of_words", "frozen_encoder", "nearest_centroid", "contrastive_encoder"
]
Names = tuple[Annotated[str, Field(min_length=1)], ...]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """The settings that decide what is learned. Where it runs is `profiles.Profile`.

    Names are those of LoraConfig and TrainingArguments where these have them. `max_length` is in tokens; `n_train` and
    `n_validation` are row counts (None: a tenth to validate, every other row to train). Where rows are few, epochs are
    added until there are `min_updates` updates. `model_dropout` replaces the encoder's own dropouts.
    `class_weights="balanced"` has each class count the same in the loss, however few its rows, and keeps the epoch with
    the best balanced accuracy. `task` is what a label is (see `tasks`). `method` is what trains; `variant` is a label,
    part of the record's name. `not_stated` maps each setting that the source leaves open to why it has its value here,
    `overrides` each that `improved()` changes to its `value` there and the `reason`.

    Raises pydantic.ValidationError, a ValueError that names the field, for a setting that cannot be trained.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\:*?\"<>|]{1,160}$")]
    source: str
    base_model: Annotated[str, Field(min_length=1)]
    dataset: Annotated[str, Field(min_length=1)]
    r: PositiveInt
    lora_alpha: PositiveInt
    target_modules: Annotated[Names, Field(min_length=1)]
    lora_dropout: Share = 0.0
    use_rslora: bool = False
    modules_to_save: Names = ()
    quantization: Literal["nf4"] | None = None
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    num_train_epochs: PositiveInt = 3
    min_updates: PositiveInt | None = None
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 1
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    warmup_ratio: Share = 0.0
    weight_decay: NonNegativeFloat = 0.0
    optim: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    max_length: Annotated[int, Field(ge=8)] = 512
    truncation: Literal["head", "tail", "head+tail"] = "head"
    early_stopping_patience: PositiveInt | None = None
    gradient_checkpointing: bool = False
    model_dropout: Share | None = None
    class_weights: Literal["balanced"] | None = None
    n_train: PositiveInt | None = None
    n_validation: PositiveInt | None = None
    task: Literal["single", "multi", "regression"] = "single"
    method: Method = "adapter"
    variant: str = "as_written"
    not_stated: dict[str, str] = Field(default_factory=dict)
    overrides: dict[str, dict[Literal["value", "reason"], Any]] = Field(default_factory=dict)

    def stated(self) -> dict[str, Any]:
        """Its fields as a record has them: all but the reasons."""
        return TypeAdapter(Recipe).dump_python(self, mode="json", exclude={"not_stated", "overrides"})

    def epochs(self, n_train: int) -> int:
        """The epochs on `n_train` rows: `num_train_epochs`, or as many as make `min_updates` updates."""
        per_epoch = ceil(n_train / (self.per_device_train_batch_size * self.gradient_accumulation_steps))
        return max(self.num_train_epochs, ceil((self.min_updates or 0) / per_epoch))

    def with_settings(self, settings: Sequence[str]) -> "Recipe":
        """This recipe with settings given as text, such as "r=32"; its name, and so that of its record, says which.

        Several values are separated by commas. Raises ValueError for what is no setting, and as the recipe does.
        """
        fixed = {"name", "source", "task", "method", "variant", "not_stated", "overrides"}
        known = [field.name for field in fields(self) if field.name not in fixed]
        changes: dict[str, Any] = {}
        for setting in settings:
            name, _, text = (part.strip() for part in setting.partition("="))
            if name not in known or not text:
                raise ValueError(f"{setting!r} sets nothing; it must be FIELD=VALUE, with a FIELD of {known}.")
            several = tuple(part.strip() for part in text.split(","))
            changes[name] = several if isinstance(getattr(self, name), tuple) else None if text == "None" else text
        if "num_train_epochs" in changes:  # which min_updates would overrule
            changes.setdefault("min_updates", None)
        name = ",".join([self.name, *map(str.strip, settings)]).replace("/", "--")
        if len(name) > 160:  # characters; a file's name takes 255 bytes
            name = f"{name[:150]},{sha256(name.encode()).hexdigest()[:8]}"
        return replace(self, **changes, name=name)

    def improved(self) -> "Recipe":
        """This recipe with every entry of `overrides` applied (each carries its reason)."""
        return replace(self, variant="improved", **{name: change["value"] for name, change in self.overrides.items()})

    def full_finetune(self) -> "Recipe":
        """This recipe with every weight trained, at a rate that suits a small encoder (BERT-base: 2e-5 to 5e-5)."""
        return replace(self.with_method("full_finetune"), optim="adamw_torch", learning_rate=1e-4)

    def with_method(self, method: str) -> "Recipe":
        """This recipe with a method that has no adapter, and so no 4 bits; `variant` says so, too."""
        return replace(self, method=method, variant=method, quantization=None)

    def lora_config(self) -> LoraConfig:
        """The peft configuration this recipe stands for."""
        same = {name: getattr(self, name) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")}
        targets = "all-linear" if "all-linear" in self.target_modules else list(self.target_modules)
        whole = list(self.modules_to_save) or None
        return LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=targets, modules_to_save=whole, **same)


_FILE = Path(__file__).with_suffix(".yaml")
RECIPES = {name: Recipe(name, **fields) for name, fields in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()}
