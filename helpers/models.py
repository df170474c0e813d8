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
from helpers.recipe import Recipe
from helpers.start import hide_torchao

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
    *,
    quantization: str | None = None,
    precision: str = "fp32",
    model_dropout: float | None = None,
    labels: tuple[str, ...] = LABELS,
    seed: int = 42,
    fast: bool = True,
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier on a pretrained encoder in fp32, on this machine's device, its new head drawn from `seed`.

    A checkpoint that already classifies into as many labels keeps its head; one with other labels gets a new one.
    `quantization="nf4"` stores the encoder's linear layers in 4 bits, multiplied in `precision`. `model_dropout`
    replaces all of the encoder's dropouts. `fast` has BERT and DistilBERT compute their last layer at [CLS] alone.

    Raises as `checkpoints.from_hub` does, and ValueError for a checkpoint without weights for its encoder.
    """
    config = from_hub(AutoConfig.from_pretrained, base_model, revision)
    config.id2label, config.label2id = label_maps(labels)
    config.problem_type = "single_label_classification"
    if model_dropout is not None:
        for name in [name for name in config.to_dict() if "dropout" in name]:  # each architecture has its own names
            setattr(config, name, model_dropout)
    quantized = {}
    if quantization:
        quantized["quantization_config"] = nf4_config(DTYPES[precision])
        # By index, since among several processes accelerate asks a 4-bit model whether it lies on this one's GPU.
        quantized["device_map"] = {"": torch.cuda.current_device() if device() == "cuda" else "cpu"}
    set_seed(seed)
    model, loaded = from_hub(
        AutoModelForSequenceClassification.from_pretrained,
        base_model,
        revision,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        use_safetensors=True,  # the other format, a pickle, can run code when it is loaded
        output_loading_info=True,
        **quantized,
    )
    _check_loaded(base_model, model, loaded["missing_keys"])
    model.accepts_loss_kwargs = False  # its forward takes **kwargs, so Trainer believes that it averages over batches
    keep_4bit_layout(model)
    if fast:
        last_layer_at_cls(model)
    return model if quantization else model.to(device())


def _check_loaded(base_model: str, model: PreTrainedModel, missing: set[str]) -> None:
    """Raises ValueError where weights of the encoder are missing, as transformers draws them at random without a word;
    says in one line that a pooler is new. A new head is what is wanted."""
    inside = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]
    if encoder := sorted(name for name in inside if not set(HEAD_MODULES) & set(name.split("."))):
        raise ValueError(
            f"{base_model!r} lacks {len(encoder):,} weights of its encoder, such as {encoder[0]}. Is it a checkpoint "
            "of another architecture, or are its weights named otherwise?"
        )
    if inside:
        print(f"{base_model} has no weights for its pooler: it is new, trains with the head and is saved with it")
    model.new_parts = {part for name in inside for part in name.split(".") if part in HEAD_MODULES}


def check_tokenizer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError unless all of the tokenizer's ids have an embedding, and it is the checkpoint's own.

    An id beyond the table of embeddings is an IndexError on a CPU and ends the process on a GPU; one inside it, but of
    another vocabulary, goes unnoticed.
    """
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


def build_model(
    recipe: Recipe,
    base_model: str,
    precision: str = "fp32",
    *,
    seed: int = 42,
    labels: tuple[str, ...] = LABELS,
    fast: bool = True,
) -> PreTrainedModel | PeftModel:
    """The model a recipe trains, on this machine's device: classifier and adapter.

    The methods `full_finetune` and `head_only` have no adapter: every weight trains, or only the head.
    """
    model = load_classifier(
        base_model,
        quantization=recipe.quantization,
        precision=precision,
        model_dropout=recipe.model_dropout,
        labels=labels,
        seed=seed,
        fast=fast,
    )
    if recipe.method == "full_finetune":
        return model
    if recipe.method == "head_only":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(part in HEAD_MODULES for part in name.split("."))
        return model
    return attach_lora(model, recipe)


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
    for layer in (module for module in model.modules() if isinstance(module, Linear4bit)):
        layer.support_avx512bf16_for_cpu = False
        layer.state_dict()  # unpacks as a side effect


def last_layer_at_cls(model: PreTrainedModel) -> None:
    """Makes a BERT or DistilBERT classifier compute its last layer at the first position alone.

    The classification head reads nothing else, so logits, loss and gradients stay what they are: the other positions
    need keys and values there, but no query, no attention and no feed-forward. The last hidden state becomes
    (batch, 1, width). Other architectures are left alone.
    """
    layers = [module for module in model.modules() if type(module) in _AT_CLS]
    if layers and not getattr(model.config, "is_decoder", False):
        layers[-1].forward = MethodType(_AT_CLS[type(layers[-1])], layers[-1])


def _attend_at_cls(attention, projections, hidden_states, attention_mask) -> torch.Tensor:
    """What the first position gathers, (batch, 1, width); `projections` are query, key and value of `attention`.

    `hidden_states` is (batch, tokens, width), `attention_mask` None or (batch, 1, 1 or tokens, tokens).
    """
    sources = (hidden_states[:, :1], hidden_states, hidden_states)
    query, key, value = (
        project(source).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for project, source in zip(projections, sources, strict=True)
    )
    mask = None if attention_mask is None else attention_mask[:, :, :1]
    dropout = attention.dropout.p if attention.training else 0.0
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)


def _bert_layer_at_cls(layer: BertLayer, hidden_states, attention_mask=None, *_, **__) -> torch.Tensor:
    attention = layer.attention.self
    projections = (attention.query, attention.key, attention.value)
    context = _attend_at_cls(attention, projections, hidden_states, attention_mask)
    return layer.feed_forward_chunk(layer.attention.output(context, hidden_states[:, :1]))


def _distilbert_layer_at_cls(layer: DistilBertLayer, hidden_states, attention_mask=None, **_) -> torch.Tensor:
    attention = layer.attention
    projections = (attention.q_lin, attention.k_lin, attention.v_lin)
    context = attention.out_lin(_attend_at_cls(attention, projections, hidden_states, attention_mask))
    attended = layer.sa_layer_norm(context + hidden_states[:, :1])
    return layer.output_layer_norm(layer.ffn(attended) + attended)


_AT_CLS = {BertLayer: _bert_layer_at_cls, DistilBertLayer: _distilbert_layer_at_cls}
