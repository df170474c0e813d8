"""Classifiers: load a checkpoint in full precision or 4 bits, attach LoRA, count."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer_utils import set_seed

from helpers.checkpoints import from_hub, has_words, head_modules, label_maps, skeleton
from helpers.data import LABELS
from helpers.profiles import DTYPES, device
from helpers.recipes import Recipe
from helpers.speed import last_layer_at_cls, lean_lora
from helpers.tasks import TASKS, reorder_head


@lru_cache(maxsize=4)
def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; one without a padding token takes a token that it has, and this is printed.

    Raises as `checkpoints.from_hub` does, and ValueError for one that does not take plain texts.
    """
    tokenizer = from_hub(AutoTokenizer.from_pretrained, base_model)
    if tokenizer.pad_token is None:
        usual, known = ("[PAD]", "<pad>", tokenizer.unk_token, tokenizer.eos_token), tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in usual if token in known), tokenizer.sep_token)
        print(f"The tokenizer of {base_model} has no padding token: it pads with {tokenizer.pad_token}")
    if "attention_mask" not in tokenizer.model_input_names:  # without which padding would be read as text
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # or it would not be saved
    try:
        if not (tokenizer("a text") and has_words(tokenizer)):
            raise ValueError("it has no vocabulary")
    except Exception as error:  # those of tables and of pages ask for more, each in its own way
        raise ValueError(f"The tokenizer of {base_model!r} does not take plain texts: {error}") from error
    return tokenizer


def nf4_config(compute_dtype: torch.dtype, head: Sequence[str]) -> BitsAndBytesConfig:
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023, arXiv 2305.14314, §3), the `head_modules` left
    out: they are to be trained, and bitsandbytes fails on one that transformers 5 quantizes before it has values."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(head),
    )


def load_classifier(
    base_model: str,
    *,
    quantization: str | None = None,
    precision: str = "fp32",
    model_dropout: float | None = None,
    labels: tuple[str, ...] | None = LABELS,
    task: str | None = "single",
    seed: int = 42,
    fast: bool = True,
    revision: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier on a pretrained encoder in fp32, on this machine's device, its new head drawn from `seed`.

    A checkpoint that already classifies into as many labels keeps its head; with `labels=None` it must, and keeps its
    labels. `quantization="nf4"` stores the encoder's linear layers in 4 bits, multiplied in `precision`.
    `model_dropout` replaces all of the encoder's dropouts. `fast` has BERT and DistilBERT compute their last layer at
    [CLS] alone. What has no weights on top of the encoder is in the model's `new_parts`. Raises as
    `checkpoints.skeleton` does, and ValueError for a checkpoint whose weights are not those of its encoder.
    """
    sys.modules["torchao"] = None  # before peft looks for it, see `start.prepare_process`
    if quantization not in (None, "nf4"):
        raise ValueError(f"quantization={quantization!r} is neither None nor 'nf4'.")
    planned = skeleton(base_model, revision)
    config = planned.config
    known = [label for _, label in sorted(config.id2label.items())]
    if labels is not None:
        config.id2label, config.label2id = label_maps(labels)
    if task or not config.problem_type:
        config.problem_type = TASKS[task or ("single" if config.num_labels > 1 else "regression")].problem_type
    config.output_hidden_states, config.output_attentions, config.return_dict = False, False, True
    if model_dropout is not None:  # each architecture has its own names
        values = {name: value for name, value in config.to_dict().items() if "dropout" in name}
        config.update({name: model_dropout for name, value in values.items() if not isinstance(value, bool)})
    # A CPU's fused attention is slow in bf16 at small heads; in ModernBERT's windows eager attention gives no number.
    eager = device() == "cpu" and precision == "bf16" and config.model_type in ("bert", "distilbert")
    # A GPU by its index, as accelerate compares it with this process's.
    place = torch.cuda.current_device() if device() == "cuda" else "cpu"
    in_4_bits = {"quantization_config": nf4_config(DTYPES[precision], head_modules(planned)), "device_map": {"": place}}
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
    _check_loaded(base_model, model, loaded)
    if labels is None and loaded["missing_keys"]:
        raise ValueError(f"{base_model!r} is no trained classifier: it lacks {min(loaded['missing_keys'])}.")
    if labels and known != list(labels) and {*known} == {*labels}:  # the head of an earlier training, in its own order
        reorder_head(model, [known.index(label) for label in labels])
    keep_4bit_layout(model)
    if fast:
        last_layer_at_cls(model)
    return model if quantization else model.to(device())


def _check_loaded(base_model: str, model: PreTrainedModel, loaded: Mapping[str, set]) -> None:
    """Sets the model's `new_parts`. Raises ValueError for weights of the encoder that transformers drew at random, and
    for a checkpoint that has more layers than its config."""
    new, heads = loaded["missing_keys"] | {name for name, *_ in loaded["mismatched_keys"]}, head_modules(model)
    model.new_parts = [part for part in heads if any(name.startswith(f"{part}.") for name in new)]
    if lacking := sorted(name for name in new if not name.startswith(tuple(f"{part}." for part in heads))):
        raise ValueError(
            f"{base_model!r} lacks {len(lacking):,} weights of its encoder, such as {lacking[0]}: they are of another "
            "architecture or shape, or have other names."
        )

    def unnumbered(name: str) -> str:
        return re.sub(r"\d+", "#", name.removeprefix(f"{model.base_model_prefix}."))

    layers = {unnumbered(name) for name, _ in model.base_model.named_parameters()}
    if more := sorted(name for name in loaded["unexpected_keys"] if unnumbered(name) in layers):
        raise ValueError(f"{base_model!r} has weights of more layers than its config.json says, such as {more[0]}.")


def only_known_types(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Leaves `token_type_ids` out of what `tokenizer` returns where `model` has none for the second text of a pair."""
    if getattr(model.config, "type_vocab_size", 0) < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # or it would not be saved


def attach_lora(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """`model` with the recipe's LoRA adapter, and what is on top of the encoder to be trained and saved whole; a
    quantized model is prepared for k-bit training first. Raises ValueError for modules that the model does not have:
    peft takes what there is, and is silent on the rest."""
    there = "".join(f".{name}\n" for name, _ in model.named_modules())
    named = {*recipe.target_modules, *recipe.modules_to_save} - {"all-linear"}
    if unknown := sorted(name for name in named if f".{name}\n" not in there):
        raise ValueError(f"The model has no {', '.join(unknown)}, which target_modules or modules_to_save name.")
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)
    config, new = recipe.lora_config(), getattr(model, "new_parts", ())
    heads = {name for name in head_modules(model) if name in new or "." not in name}  # a pretrained pooler stays
    if whole := {*(config.modules_to_save or ()), *heads} - {"classifier", "score"}:  # which peft adds itself
        config.modules_to_save = sorted(whole)
    return get_peft_model(model, config)


def trained_whole(model: PeftModel) -> list[str]:
    """Full names of the modules that peft trains and saves whole."""
    return [name for name, part in model.get_base_model().named_modules() if isinstance(part, ModulesToSaveWrapper)]


def adapted(model: PeftModel) -> str:
    """What of the model trains, in one line: LoRA's layers, counted, by the ends of their names; and what is whole."""
    base, new = model.get_base_model(), getattr(model.get_base_model(), "new_parts", ())
    layers = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    kinds = sorted({re.sub(r".*\.\d+\.", "", name) for name in layers})
    raw = sorted({name.split(".")[-1] for name, weight in base.base_model.named_parameters() if weight.ndim > 2})
    unreached = f", none in attention, whose weights ({', '.join(raw)}) are no linear layers"
    attention = any("att" in name for name in layers) or not raw
    shown = ", ".join(f"{name} (new)" if name in new else name for name in trained_whole(model))
    return f"LoRA on {len(layers)} layers: {', '.join(kinds)}{'' if attention else unreached}. Trained whole: {shown}"


def build_model(
    recipe: Recipe, base_model: str, precision: str = "fp32", frozen: str | None = None, **options
) -> PreTrainedModel | PeftModel:
    """The model a recipe trains, on this machine's device: with an adapter, or as its `method` says with every weight
    or the head alone to be trained. `frozen` is the number format of an adapter's frozen base, where that is not
    `precision`; `options` are `seed`, `labels`, `fast` of `load_classifier`."""
    changed = {name: getattr(recipe, name) for name in ("quantization", "model_dropout", "task")}
    model = load_classifier(base_model, precision=precision, **changed, **options)
    if recipe.method == "head_only":
        heads = tuple(f"{name}." for name in head_modules(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(heads)
    if recipe.method in ("full_finetune", "head_only"):
        return model
    exact = recipe.task == "regression"  # 16 bits round 2,001 and 2,005 to one number
    lean = options.get("fast", True)
    return store_frozen(attach_lora(model, recipe), frozen or ("fp32" if exact else precision), lean)


def store_frozen(model: PeftModel, precision: str, lean: bool = True) -> PeftModel:
    """`model` with its frozen layers and embeddings in the format in which they are multiplied; norms stay in fp32.

    Autocast caches the cast of a weight that trains and casts a frozen one anew at every call. Without peft's cast of
    inputs to fp32 each layer reads what the one before it wrote. `lean`: see `speed.lean_lora`.
    """
    if lean:
        lean_lora(model)
    products = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))]
    for parameter in (one for module in products for one in module.parameters(recurse=False)):
        if parameter.is_floating_point() and not parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[precision])
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = precision == "fp32"
    return model


def count_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """(trainable, total) parameters. A 4-bit layer counts the weights it stands for, not its packed bytes."""
    if isinstance(model, PeftModel):  # which holds prompts that transformers does not count
        return model.get_nb_trainable_parameters()
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
