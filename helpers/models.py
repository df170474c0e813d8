"""Classifiers: load a checkpoint in full precision or 4 bits, attach LoRA, count."""

import os
from collections import Counter
from functools import lru_cache

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from helpers.base.hub import checkpoint_options, hub_error
from helpers.base.speedups import last_layer_at_cls
from helpers.checkpoints import checkpoint_revision, label_maps, resolve_checkpoint
from helpers.data import LABELS, dataset_revision
from helpers.profiles import Execution, Profile
from helpers.recipe import Recipe

# Loading bars, and the load report of a head that is new on purpose, are no news in a notebook.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


# What sits on top of the encoder, by the last part of its name, in BERT, DistilBERT, RoBERTa and ModernBERT.
HEAD_MODULES = ("classifier", "pre_classifier", "pooler", "head")


@lru_cache(maxsize=4)
def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer."""
    return from_hub(AutoTokenizer.from_pretrained, base_model)


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, arXiv 2305.14314, §3), the head left out.

    transformers 5 would quantize the freshly initialised head with the rest, and bitsandbytes then fails in the first
    forward pass; a head that is to be trained belongs in full precision anyway.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        # Matched from the start of a module's full name, or as its end: "pooler" alone would miss "bert.pooler.dense".
        llm_int8_skip_modules=[*HEAD_MODULES, "pooler.dense"],
    )


def load_classifier(
    base_model: str,
    execution: Execution,
    *,
    quantization: str | None = None,
    model_dropout: float | None = None,
    labels: tuple[str, ...] = LABELS,
    seed: int = 42,
) -> PreTrainedModel:
    """A sequence classifier on a pretrained encoder in fp32, its new head drawn from `seed`.

    A checkpoint that already classifies into as many labels keeps its head; one with other labels gets a new one.

    `quantization="nf4"` stores the encoder's linear layers in 4 bits. `model_dropout` replaces all of the encoder's
    dropouts. Raises ConnectionError, naming `PROFILE=quick`, when a hub checkpoint cannot be had, and ValueError for an
    unknown `quantization`.
    """
    if quantization not in (None, "nf4"):
        raise ValueError(f"quantization={quantization!r} is neither None nor 'nf4'.")
    config = from_hub(AutoConfig.from_pretrained, base_model)
    config.id2label, config.label2id = label_maps(labels)
    config.problem_type = "single_label_classification"
    if model_dropout is not None:
        for name in [name for name in config.to_dict() if "dropout" in name]:  # each architecture has its own names
            setattr(config, name, model_dropout)
    set_seed(seed)
    model = from_hub(
        AutoModelForSequenceClassification.from_pretrained,
        base_model,
        config=config,
        dtype=torch.float32,
        # Unset, transformers takes SDPA wherever the architecture has it; asking for it by name fails where it has not.
        attn_implementation=None if execution.attention == "sdpa" else execution.attention,
        ignore_mismatched_sizes=True,
        use_safetensors=True,  # the other format, a pickle, can run code when it is loaded
        quantization_config=nf4_config(execution.compute_dtype) if quantization else None,
        # By index, since among several processes accelerate asks a 4-bit model whether it lies on this one's GPU.
        device_map={"": torch.cuda.current_device() if execution.device == "cuda" else "cpu"} if quantization else None,
    )
    keep_4bit_layout(model)
    if execution.last_layer_at_cls:
        last_layer_at_cls(model)
    return model if quantization else model.to(execution.device)


def from_hub(load, base_model: str, **options):
    """`load(checkpoint, **options)`, with one clear error when the hub does not have it or cannot be reached."""
    checkpoint = resolve_checkpoint(base_model)
    options["trust_remote_code"] = False  # unset, transformers asks on the terminal
    if not os.path.isdir(checkpoint):
        options |= checkpoint_options(checkpoint)
    try:
        return load(checkpoint, **options)
    except (OSError, ValueError, SafetensorError) as error:
        if os.path.isdir(base_model):
            raise ValueError(f"The folder {base_model!r} holds no checkpoint that loads: {error}") from error
        if isinstance(error, ValueError):
            raise
        raise hub_error(base_model, error) from error


def check_tokenizer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError unless `tokenizer` belongs to `model`'s checkpoint and all its ids have an embedding.

    An id beyond the table of embeddings is an IndexError on a CPU and ends the process on a GPU; one inside it, but of
    another vocabulary, goes unnoticed.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    of_model, of_tokenizer = base.name_or_path, tokenizer.name_or_path
    if of_model and of_tokenizer and of_model != of_tokenizer:
        raise ValueError(
            f"The texts are tokenized for {of_tokenizer!r}, and the model is {of_model!r}. Build it for the recipe's "
            "own checkpoint: build_model(recipe, profile.base_model(recipe.base_model), execution)."
        )
    check_vocabulary(base, tokenizer)


def check_vocabulary(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError unless all of the tokenizer's ids have an embedding."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"The tokenizer has {len(tokenizer):,} tokens, the model embeddings for {rows:,}.")


def positions(encoder: PreTrainedModel) -> float:
    """The most tokens the encoder has positions for; RoBERTa's start behind its padding index."""
    limit = getattr(encoder.config, "max_position_embeddings", -1)
    reserved = [
        module.padding_idx + 1
        for name, module in encoder.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return limit - max(reserved, default=0) if limit > 0 else float("inf")  # -1: relative positions, no limit


def revisions(recipe: Recipe, profile: Profile, with_model: bool = True) -> dict[str, str]:
    """Which version of the recipe's data and, where a model was in play, of its checkpoint was loaded, by name."""
    found = dataset_revision(recipe.dataset, profile)
    return found | checkpoint_revision(profile.base_model(recipe.base_model)) if with_model else found


def attach_lora(model: PreTrainedModel, recipe: Recipe, gradient_checkpointing: bool = False) -> PeftModel:
    """`model` with the recipe's LoRA adapter; a quantized model is prepared for k-bit training first."""
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    return get_peft_model(model, recipe.lora_config())


def build_model(
    recipe: Recipe, base_model: str, execution: Execution, seed: int = 42, labels: tuple[str, ...] = LABELS
) -> PreTrainedModel | PeftModel:
    """The model a recipe trains, on this machine's device: classifier and adapter.

    The methods `full_finetune` and `head_only` have no adapter: every weight trains, or only the head.
    """
    set_seed(seed)
    model = load_classifier(
        base_model,
        execution,
        quantization=recipe.quantization,
        model_dropout=recipe.model_dropout,
        labels=labels,
        seed=seed,
    )
    if recipe.method == "full_finetune":
        return model
    if recipe.method == "head_only":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(part in HEAD_MODULES for part in name.split("."))
        return model
    return attach_lora(model, recipe, execution.gradient_checkpointing)


def count_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """(trainable, total) parameters. A 4-bit layer counts the weights it stands for, not its packed bytes."""
    return model.num_parameters(only_trainable=True), model.num_parameters()


def weight_bytes(model: torch.nn.Module) -> dict[str, int]:
    """Bytes of the model's parameters by how they are stored.

    Keys are dtype names such as "float32", and for 4-bit layers "nf4" (two weights a byte) and "nf4 statistics" (the
    block scales that double quantization packs, with their own scales and the tables of values).
    """
    held: Counter[str] = Counter()
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None:
            held[str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
        else:
            held["nf4"] += parameter.nbytes
            statistics = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            held["nf4 statistics"] += sum(value.nbytes for value in statistics)
    return dict(held)


def keep_4bit_layout(model: torch.nn.Module) -> None:
    """Keeps 4-bit weights in the layout that can be trained, undoing bitsandbytes' repacking where it has happened.

    On CPUs with AVX512-BF16 the first prediction repacks them into a layout without gradients, no faster in batches.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        layer.state_dict()  # unpacks as a side effect
