"""From a recipe as its source runs it to our version, one change a step, interleaved in one process."""

from dataclasses import dataclass, replace
from statistics import median

import torch
from peft import PeftModel
from transformers import BatchEncoding, PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers.data import load_splits, truncate
from helpers.models import attach_lora, build_model, load_classifier, load_tokenizer, store_frozen
from helpers.profiles import PROFILES, current_precision, device
from helpers.recipes import RECIPES, Recipe
from helpers.results import StudyRecord
from lab.devices import device_record, in_fresh_process
from lab.timing import TrainingStep, timed_window

# The recipes that have a ladder, and the limit that their texts are cut to; Assignment 7 states none.
TOKENS = {"lora_distilbert_qv": 256, "lora_bert_sst2": 128, "qlora_bert": 256}
TEXTS = 2_000  # Trainer's sampler sorts by length within a quarter of the texts at most: few texts make mixed batches
WINDOW_BATCHES = 4  # of all lengths, the same in every window: two windows differ by the machine, not by their texts


@dataclass(frozen=True)
class Rung:
    """One way to train a recipe on its real texts.

    `pad_to_longest` pads to the longest of a batch, else to the limit. `nf4_compute` is the number format that 4-bit
    weights are unpacked to, where that is not `precision`. `fast` is that of `helpers.models`.
    """

    change: str
    recipe: Recipe
    precision: str
    fast: bool = True
    pad_to_longest: bool = True
    group_by_length: bool = True
    nf4_compute: str | None = None
    stored: bool = False


def ladder(name: str, precision: str) -> list[Rung]:
    """The rungs of recipe `name`, from how its source runs it to `improved()` in this device's `precision`.

    The three sources state fp16, which Trainer has on a GPU alone; on a CPU the first rung is what they would run
    there, fp32. bert-qlora states padding to the longest and gradient checkpointing; the others pad to the limit.
    """
    is_qlora, first = name == "qlora_bert", "fp16" if device() == "cuda" else "fp32"
    written = replace(RECIPES[name], gradient_checkpointing=is_qlora)
    unpacked = "fp16" if is_qlora else None
    rungs = [Rung("as written", written, first, False, is_qlora, group_by_length=False, nf4_compute=unpacked)]

    def add(change: str, **changes) -> None:
        rungs.append(replace(rungs[-1], change=change, **changes))

    if is_qlora:
        add("no gradient checkpointing", recipe=replace(written, gradient_checkpointing=False))
    if {first, unpacked or precision} != {precision}:
        add(precision, precision=precision, nf4_compute=None)
    padded = "" if is_qlora else ", padded to their longest"
    add(f"batches of like length{padded}", pad_to_longest=True, group_by_length=True)
    no_dropout = replace(rungs[-1].recipe, model_dropout=0.0, lora_dropout=0.0)
    add("no dropout in the frozen encoder", recipe=no_dropout)
    add("the last layer at [CLS] alone", fast=True)
    add("the frozen base in the format that multiplies it", stored=True)
    add("improved() settings", recipe=RECIPES[name].improved())
    return rungs


def method_recipe(method: str) -> Recipe:
    """What stands for a method in `steps`: bert-qlora's improved recipe with fp32 AdamW, but for what the name says.

    "full_finetune", "lora", "qlora" and "qlora_checkpointing" (activations computed twice) adapt every linear layer,
    "lora_query_value" query and value alone; "qlora_as_written" is bert-qlora's own recipe, checkpointing included.
    """
    ours = replace(RECIPES["qlora_bert"].improved(), optim="adamw_torch", gradient_checkpointing=False)
    recipes = {
        "full_finetune": ours.full_finetune(),
        "lora": replace(ours, quantization=None),
        "lora_query_value": replace(ours, quantization=None, target_modules=("query", "value")),
        "qlora": ours,
        "qlora_checkpointing": replace(ours, gradient_checkpointing=True),
        "qlora_as_written": replace(RECIPES["qlora_bert"], gradient_checkpointing=True),
    }
    return recipes[method.removesuffix("_fp32_base")]


def method_model(method: str, base_model: str, precision: str) -> PreTrainedModel | PeftModel:
    """The model that stands for a method: see `method_recipe`. "..._fp32_base" is LoRA as peft alone attaches it."""
    recipe = method_recipe(method)
    if not method.endswith("_fp32_base"):
        return build_model(recipe, base_model, precision)
    how = {"quantization": recipe.quantization, "model_dropout": recipe.model_dropout}
    return attach_lora(load_classifier(base_model, precision=precision, **how), recipe)


class _Runner:
    """A rung's model and its batches of real texts."""

    def __init__(self, rung: Rung, encoded: list[list[int]], base_model: str, max_length: int):
        recipe = rung.recipe
        how = {"quantization": recipe.quantization, "model_dropout": recipe.model_dropout, "fast": rung.fast}
        model = load_classifier(base_model, precision=rung.nf4_compute or rung.precision, seed=0, **how)
        model = attach_lora(model, recipe)
        model = store_frozen(model, rung.precision) if rung.stored else model
        checkpointing = recipe.gradient_checkpointing
        self.step = TrainingStep(model, rung.precision, recipe.optim, gradient_checkpointing=checkpointing)
        self.batches = [batch.to(device()) for batch in _window(_batches(rung, encoded, base_model, max_length))]

    def measure(self, seconds: float) -> float:
        """Samples a second over the window's batches, once or as often as `seconds` allow.

        The batch with the most tokens goes first and is not counted: it brings the memory that is kept where it is.
        """
        self.step.run(max(self.batches, key=lambda batch: batch["input_ids"].numel()))
        return timed_window(self.step, self.batches, seconds)


def _batches(rung: Rung, encoded: list[list[int]], base_model: str, max_length: int) -> list[BatchEncoding]:
    """The texts in the rung's batches, all of them full."""
    ids = [truncate(row, max_length, rung.recipe.truncation) for row in encoded]
    order, size = list(range(len(ids))), rung.recipe.per_device_train_batch_size
    if rung.group_by_length:
        lengths = [len(row) for row in ids]
        order = list(LengthGroupedSampler(size, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    padding = {"padding": "longest"} if rung.pad_to_longest else {"padding": "max_length", "max_length": max_length}
    rows = [[ids[index] for index in order[start : start + size]] for start in range(0, len(ids) - size + 1, size)]
    pad = load_tokenizer(base_model).pad
    return [pad({"input_ids": batch, "labels": [0] * len(batch)}, **padding, return_tensors="pt") for batch in rows]


def _window(batches: list[BatchEncoding]) -> list[BatchEncoding]:
    """`WINDOW_BATCHES` of `batches`, evenly from the fewest tokens to the most, in their order."""
    by_tokens = sorted(range(len(batches)), key=lambda index: batches[index]["input_ids"].numel())
    parts = [(part + 0.5) / WINDOW_BATCHES for part in range(WINDOW_BATCHES)]
    return [batches[index] for index in sorted(by_tokens[int(part * len(batches))] for part in parts)]


def measure_rungs(
    rungs: list[Rung], texts: list[str], base_model: str, max_length: int, *, repeats: int = 3, seconds: float = 3.0
) -> list[dict[str, object]]:
    """A row for each rung: `change`, `samples_per_second` (the median of `repeats` interleaved windows), all of them as
    `windows`, `ratio` to the first rung, and `within_scatter` where they overlap with the rung's before (no gain or
    loss is seen then).

    A window times the same batches of a rung, for `seconds` or once. All models are in memory at once.
    """
    encoded = load_tokenizer(base_model)(texts, verbose=False)["input_ids"]
    runners = [_Runner(rung, encoded, base_model, max_length) for rung in rungs]
    measured = [[runner.measure(seconds) for runner in runners] for _ in range(repeats)]
    rows: list[dict] = []
    for rung, windows in zip(rungs, zip(*measured, strict=True), strict=True):
        batch_size = rung.recipe.per_device_train_batch_size
        row = {"change": rung.change, "precision": rung.precision, "fast": rung.fast, "batch_size": batch_size}
        row |= {"samples_per_second": median(windows), "windows": list(windows)}
        before = rows[-1]["windows"] if rows else []
        meet = bool(rows) and min(windows) <= max(before) and min(before) <= max(windows)
        rows.append(row | {"within_scatter": meet})
    return [{**row, "ratio": row["samples_per_second"] / rows[0]["samples_per_second"]} for row in rows]


def benchmark_ladder() -> StudyRecord:
    """Measures each of the ladders in a process of its own."""
    rows = []
    for name in TOKENS:
        for row in in_fresh_process(measure_ladder, name=name, precision=current_precision()):
            print(f"{name:20s} {row['change']:50s} {row['samples_per_second']:7.1f} samples/s", end="  ")
            print(
                f"{row['ratio']:6.1f} x", "  within the scatter of the row before" * row["within_scatter"], flush=True
            )
            rows.append({"ladder": name, **row})
    return device_record("ladder", {"base_model": "embedded", "tokens": TOKENS}, rows)


def measure_ladder(name: str, precision: str) -> list[dict[str, object]]:
    """Rows of one ladder, measured in this process on the first `TEXTS` embedded training texts, the same for all."""
    recipe, profile = RECIPES[name], PROFILES["full"]
    texts = list(load_splits(recipe, profile)["train"]["text"][:TEXTS])
    return measure_rungs(ladder(name, precision), texts, profile.base_model(recipe.base_model), TOKENS[name])
