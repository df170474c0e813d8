"""The PEFT methods that are compared, each by peft's own class. To add one, add its entry to `METHODS`."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import PreTrainedModel, Trainer, TrainerCallback

from helpers.models import load_classifier, store_frozen

QUERY_VALUE = ["query", "value"]  # peft's default for BERT
EVERY_LINEAR = [*QUERY_VALUE, "key", "attention.output.dense", "intermediate.dense", "output.dense"]
LoRA = partial(peft.LoraConfig, r=16, lora_alpha=32, target_modules=QUERY_VALUE)


class Method(NamedTuple):
    """`config`: peft's; or by name which weights of the model train. `prepare` changes the Trainer."""

    config: peft.PeftConfig | Callable[[str], bool]
    prepare: Callable[[Trainer], None] | None = None
    quantization: str | None = None


def loraplus(trainer: Trainer) -> None:
    """B learns 16 times as fast as A (Hayou et al. 2024, arXiv 2402.12354)."""
    rate, optimizer = trainer.args.learning_rate, torch.optim.AdamW
    trainer.optimizer = create_loraplus_optimizer(trainer.model, optimizer, lr=rate, loraplus_lr_ratio=16)


class Allocate(TrainerCallback):
    """Tells AdaLoRA how many updates there are, and has it move its ranks after each, as peft asks for."""

    def on_train_begin(self, args, state, control, model, **_) -> None:
        model.active_peft_config.total_step = state.max_steps

    def on_optimizer_step(self, args, state, control, model, **_) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


METHODS = {
    "full fine-tuning": Method(lambda name: True),
    "head alone": Method(lambda name: name.startswith(("bert.pooler.", "classifier."))),
    "BitFit": Method(lambda name: name.endswith(".bias") or name.startswith("classifier.")),  # peft has no class for it
    "IA3": Method(peft.IA3Config()),
    "prompt tuning": Method(peft.PromptTuningConfig(num_virtual_tokens=20)),
    "LoRA": Method(LoRA()),
    "LoRA, every linear layer": Method(LoRA(target_modules=EVERY_LINEAR)),
    "QLoRA": Method(LoRA(), quantization="nf4"),
    "rsLoRA": Method(LoRA(use_rslora=True)),
    "DoRA": Method(LoRA(use_dora=True)),
    "PiSSA": Method(LoRA(lora_alpha=16, init_lora_weights="pissa")),
    "LoRA+": Method(LoRA(), loraplus),
    "AdaLoRA": Method(
        peft.AdaLoraConfig(
            init_r=24, target_r=16, lora_alpha=32, tinit=50, tfinal=100, deltaT=5, total_step=1_000,
            target_modules=QUERY_VALUE,
        ),
        lambda trainer: trainer.add_callback(Allocate()),
    ),
    "VeRA": Method(peft.VeraConfig(r=256, target_modules=QUERY_VALUE)),
    "Lily": Method(peft.LilyConfig(r=32, stride_A=2, num_B=3, target_modules=QUERY_VALUE)),  # leads peft's comparison
}  # fmt: skip


def build_method(
    name: str, base_model: str, precision: str, seed: int, rank: int | None = None
) -> PreTrainedModel | peft.PeftModel:
    """A BERT with what `METHODS[name]` trains of it, an adapter's frozen base stored as it is multiplied.

    With another `rank` alpha goes with it, so that alpha / rank stays; rsLoRA keeps its alpha.
    """
    config = deepcopy(METHODS[name].config)
    if rank is not None:
        config.lora_alpha *= 1 if config.use_rslora else rank / config.r
        config.r = rank
    # A prompt comes before [CLS], at whose place alone the fast last layer answers.
    how = {"model_dropout": 0.0, "quantization": METHODS[name].quantization, "fast": name != "prompt tuning"}
    model = load_classifier(base_model, precision=precision, seed=seed, **how)
    if isinstance(config, peft.PeftConfig):
        config.task_type = peft.TaskType.SEQ_CLS
        return store_frozen(peft.get_peft_model(model, config), precision)
    for weight, parameter in model.named_parameters():
        parameter.requires_grad = config(weight)
    return model
