"""Classifiers: load a checkpoint in full precision or 4 bits, attach LoRA, count; and the last layer at [CLS] alone."""

from collections import Counter
from functools import lru_cache
from types import MethodType

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.distilbert.modeling_distilbert import TransformerBlock as DistilBertLayer

from helpers.checkpoints import from_hub, label_maps
from helpers.data import LABELS
from helpers.profiles import DTYPES, device
from helpers.recipes import Recipe
from helpers.start import hide_torchao

# What sits on top of the encoder, by the last part of its name, in BERT, DistilBERT, RoBERTa and ModernBERT.
HEAD_MODULES = ("classifier", "pre_classifier", "pooler", "head")


@lru_cache(maxsize=4)
def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer."""
    return from_hub(AutoTokenizer.from_pretrained, base_model)


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, arXiv 2305.14314, §3), the head left out: it is
    to be trained, and bitsandbytes fails on one that transformers 5 quantizes before it has values."""
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
    *,
    quantization: str | None = None,
    precision: str = "fp32",
    model_dropout: float | None = None,
    labels: tuple[str, ...] | None = LABELS,
    seed: int = 42,
    fast: bool = True,
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier on a pretrained encoder in fp32, on this machine's device, its new head drawn from `seed`.

    A checkpoint that already classifies into as many labels keeps its head; with `labels=None` it must, and keeps its
    labels. `quantization="nf4"` stores the encoder's
    linear layers in 4 bits, multiplied in `precision`. `model_dropout` replaces all of the encoder's dropouts. `fast`
    has BERT and DistilBERT compute their last layer at [CLS] alone. Raises as `checkpoints.from_hub` does, and
    ValueError for a checkpoint without weights for its encoder.
    """
    if quantization not in (None, "nf4"):
        raise ValueError(f"quantization={quantization!r} is neither None nor 'nf4'.")
    config = from_hub(AutoConfig.from_pretrained, base_model, revision)
    if labels is not None:
        config.id2label, config.label2id = label_maps(labels)
    config.problem_type = "single_label_classification"
    if model_dropout is not None:  # each architecture has its own names
        config.update({name: model_dropout for name in config.to_dict() if "dropout" in name})
    # A CPU's fused attention is slow in bf16 at small heads; in ModernBERT's windows eager attention gives no number.
    eager = device() == "cpu" and precision == "bf16" and config.model_type in ("bert", "distilbert")
    # A GPU by its index, as accelerate compares it with this process's.
    place = torch.cuda.current_device() if device() == "cuda" else "cpu"
    in_4_bits = {"quantization_config": nf4_config(DTYPES[precision]), "device_map": {"": place}}
    set_seed(seed)
    model, loaded = from_hub(
        AutoModelForSequenceClassification.from_pretrained,
        base_model,
        revision,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager" if eager else None,
        ignore_mismatched_sizes=True,
        use_safetensors=True,  # the other format, a pickle, can run code when it is loaded
        output_loading_info=True,
        **(in_4_bits if quantization else {}),
    )
    _check_loaded(base_model, model, loaded["missing_keys"])
    if labels is None and loaded["missing_keys"]:
        raise ValueError(f"{base_model!r} is no trained classifier: it lacks {min(loaded['missing_keys'])}.")
    keep_4bit_layout(model)
    if fast:
        last_layer_at_cls(model)
    return model if quantization else model.to(device())


def _check_loaded(base_model: str, model: PreTrainedModel, missing: set[str]) -> None:
    """Raises ValueError for weights of the encoder that transformers drew at random; prints that a pooler is new."""
    inside = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if encoder := sorted(name for name in inside if not set(HEAD_MODULES) & set(name.split("."))):
        raise ValueError(
            f"{base_model!r} lacks {len(encoder):,} weights of its encoder, such as {encoder[0]}: they are of another "
            "architecture, or have other names."
        )
    if inside:
        print(f"{base_model} has no weights for its pooler: it is new, trains with the head and is saved with it")
    # peft trains and saves what is called a classifier; the rest of a new head is named here.
    parts = {part for name in missing for part in name.split(".")}
    model.new_parts = parts & {"pooler", "head"}


def check_tokenizer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError unless all of the tokenizer's ids have an embedding (a GPU's process would end without a word
    of it), and it is the checkpoint's own (another vocabulary's ids would go unnoticed)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    of_model, of_tokenizer = base.name_or_path, tokenizer.name_or_path
    if of_model and of_tokenizer and of_model != of_tokenizer:
        raise ValueError(f"The texts are tokenized for {of_tokenizer!r}, and the model is {of_model!r}.")
    rows = base.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"The tokenizer has {len(tokenizer):,} tokens, the model embeddings for {rows:,}.")


def attach_lora(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """`model` with the recipe's LoRA adapter; a quantized model is prepared for k-bit training first."""
    hide_torchao()
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)
    config = recipe.lora_config()
    if new := getattr(model, "new_parts", None):
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *new})
    return get_peft_model(model, config)


def build_model(recipe: Recipe, base_model: str, precision: str = "fp32", **options) -> PreTrainedModel | PeftModel:
    """The model a recipe trains, on this machine's device: with an adapter, or as its `method` says with every weight
    or the head alone to be trained. `options` are `seed`, `labels`, `fast` of `load_classifier`."""
    changed = {"quantization": recipe.quantization, "model_dropout": recipe.model_dropout}
    model = load_classifier(base_model, precision=precision, **changed, **options)
    if recipe.method == "head_only":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(part in HEAD_MODULES for part in name.split("."))
    return model if recipe.method in ("full_finetune", "head_only") else attach_lora(model, recipe)


def count_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """(trainable, total) parameters. A 4-bit layer counts the weights it stands for, not its packed bytes."""
    return model.num_parameters(only_trainable=True), model.num_parameters()


def weight_bytes(model: torch.nn.Module) -> dict[str, int]:
    """Bytes of the model's parameters by how they are stored: dtype names such as "float32", and for 4-bit layers "nf4"
    (two weights a byte) and "nf4 statistics" (the quantized block scales, their own scales and tables)."""
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
    """Keeps 4-bit weights in the layout that can be trained: on CPUs with AVX512-BF16, bitsandbytes' first prediction
    repacks them into one without gradients, no faster in batches. Undoes it where it has happened."""
    for layer in (module for module in model.modules() if isinstance(module, Linear4bit)):
        layer.support_avx512bf16_for_cpu = False
        layer.state_dict()  # unpacks as a side effect


def last_layer_at_cls(model: PreTrainedModel) -> None:
    """Makes a BERT or DistilBERT classifier compute its last layer at the first position alone, (batch, 1, width). The
    head reads nothing else: logits, loss and gradients stay what they are."""
    layers = [module for module in model.modules() if type(module) in (BertLayer, DistilBertLayer)]
    if layers:
        layers[-1].forward = MethodType(_layer_at_cls, layers[-1])


def _layer_at_cls(layer: BertLayer | DistilBertLayer, hidden_states, attention_mask=None, *_, **__) -> torch.Tensor:
    bert, first = isinstance(layer, BertLayer), hidden_states[:, :1]
    attention = layer.attention.self if bert else layer.attention
    names = ("query", "key", "value") if bert else ("q_lin", "k_lin", "v_lin")
    query, key, value = (
        getattr(attention, name)(source).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for name, source in zip(names, (first, hidden_states, hidden_states), strict=True)
    )
    mask = None if attention_mask is None else attention_mask[:, :, :1]
    dropout = attention.dropout.p if attention.training else 0.0
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    context = context.transpose(1, 2).flatten(2)
    if bert:
        return layer.feed_forward_chunk(layer.attention.output(context, first))
    attended = layer.sa_layer_norm(attention.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(attended) + attended)
