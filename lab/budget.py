"""What a recipe must hold in memory, counted from the shapes of the real checkpoints: no weights, no hub."""

from collections import Counter
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel, get_peft_model
from torch.nn import Linear
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, PreTrainedModel

from helpers.checkpoints import head_modules
from helpers.recipes import RECIPES, Recipe

# The config files of the three checkpoints; what is not named is the class's default.
REAL_CONFIGS = {
    "bert-base-uncased": BertConfig(),
    "bert-base-cased": BertConfig(vocab_size=28_996),
    "distilbert-base-uncased": DistilBertConfig(),
}
NF4_BLOCK, NF4_SCALE_BLOCK = 64, 256  # weights a scale, scales a second-level scale (arXiv 2305.14314, §3)
ADAM_8BIT_BLOCK, ADAM_8BIT_FROM = 256, 4_096  # bitsandbytes keeps smaller tensors' state in fp32


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that a run holds before the first activation, and its parameter counts.

    `weights` is by storage: "fp32", "bf16" (or fp16, as large), "nf4" (two weights a byte) and "nf4 statistics".
    Gradients are fp32 and exist for what trains. `adamw` and `adamw_8bit` are the two optimizers' states.
    """

    trainable: int
    total: int
    weights: dict[str, int]
    gradients: int
    adamw: int
    adamw_8bit: int

    @property
    def share(self) -> float:
        """Of the parameters, how many train."""
        return self.trainable / self.total

    def static(self, optimizer: str = "adamw") -> int:
        """Weights, gradients and the state of `optimizer` ("adamw" or "adamw_8bit"), in bytes."""
        return sum(self.weights.values()) + self.gradients + asdict(self)[optimizer]


def real_model(checkpoint: str) -> PreTrainedModel:
    """A classifier of the shape of one of `REAL_CONFIGS` on the meta device: shapes without values."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(REAL_CONFIGS[checkpoint])


def memory_budget(recipe: Recipe, checkpoint: str | None = None, dtype: str = "fp32") -> MemoryBudget:
    """The budget of `recipe` on `checkpoint` (default: its own), what is not quantized stored as `dtype`.

    `dtype` is "fp32" or "bf16"; what trains is fp32 in any case. The method "full_finetune" trains all.
    """
    model: PreTrainedModel | PeftModel = real_model(checkpoint or recipe.base_model)
    heads = tuple(head_modules(model))  # which 4-bit loading leaves out
    linear = [part for name, part in model.named_modules() if isinstance(part, Linear) and not name.startswith(heads)]
    quantized = {id(layer.weight) for layer in linear} if recipe.quantization else set()
    if recipe.method != "full_finetune":
        with torch.device("meta"):
            model = get_peft_model(model, recipe.lora_config())
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    stored: Counter[str] = Counter()
    for parameter in parameters:
        count = parameter.numel()
        if id(parameter) in quantized:
            stored.update({"nf4": count // 2, "nf4 statistics": nf4_statistics_bytes(count)})
        elif parameter.requires_grad or dtype == "fp32":
            stored["fp32"] += 4 * count
        else:
            stored[dtype] += 2 * count
    trainable = sum(parameter.numel() for parameter in trained)
    return MemoryBudget(
        trainable=trainable,
        total=sum(parameter.numel() for parameter in parameters),
        weights=dict(stored),
        gradients=4 * trainable,
        adamw=8 * trainable,
        adamw_8bit=sum(adamw_8bit_bytes(parameter.numel()) for parameter in trained),
    )


def nf4_statistics_bytes(count: int) -> int:
    """Bytes beside `count` packed 4-bit weights of one matrix, with double quantization.

    A one-byte scale a block of 64, a four-byte scale for 256 of those, their offset, and the two tables of values
    (16 and 256 floats) that bitsandbytes keeps with each matrix.
    """
    scales = -(-count // NF4_BLOCK)
    return scales + 4 * -(-scales // NF4_SCALE_BLOCK) + 4 + 4 * (16 + 256)


def adamw_8bit_bytes(count: int) -> int:
    """Bytes of 8-bit AdamW's two averages for one tensor (Dettmers et al. 2022, arXiv 2110.02861).

    One byte a value and one four-byte scale a block of 256. The table of values is shared and not counted.
    """
    if count < ADAM_8BIT_FROM:
        return 8 * count
    return 2 * (count + 4 * -(-count // ADAM_8BIT_BLOCK))


def print_budgets() -> None:
    """What each recipe of the series holds on its own checkpoint, as written, beside full fine-tuning."""
    print(f"{'recipe':20s} {'trains':>12s} {'share':>8s} {'weights':>9s} {'with AdamW':>11s} {'all trained':>12s}")
    for recipe in RECIPES.values():
        budget, full = memory_budget(recipe), memory_budget(recipe.full_finetune())
        print(f"{recipe.name:20s} {budget.trainable:12,} {budget.share:8.2%}", end="")
        sizes = sum(budget.weights.values()), budget.static(), full.static()
        print("{:7.0f} MB {:8.0f} MB {:9.0f} MB".format(*(size / 1e6 for size in sizes)))
