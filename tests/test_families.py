"""Each family of text encoders that transformers classifies with: trained, saved, and loaded elsewhere it is the same."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS
from datasets import DatasetDict
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, BertTokenizer

from helpers.evaluation import predict_logits
from helpers.inference import SentimentClassifier, load_adapter, merge_adapter
from helpers.models import build_model, load_tokenizer
from helpers.own_data import own_recipe
from helpers.profiles import PROFILES
from helpers.training import fine_tune

# The same few sizes by the names that the families have for them; and what some cannot do without.
SIZES = {
    72: "max_position_embeddings max_2d_position_embeddings",
    128: "intermediate_size d_inner d_ff hidden_dim encoder_ffn_dim decoder_ffn_dim",
    64: "hidden_size d_model dim emb_dim embedding_size true_hidden_size intra_bottleneck_size",
    32: "d_kv d_head head_dim",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers n_heads n_head "
    "num_attention_heads num_heads encoder_attention_heads decoder_attention_heads",
}
SHAPE = {name: size for size, names in SIZES.items() for name in names.split()}
IDS = {"pad": 0, "bos": 2, "cls": 2, "sep": 3, "eos": 3, "mask": 4, "decoder_start": 0}
SHAPE |= {"vocab_size": 40} | {f"{name}_token_id": token for name, token in IDS.items()}
OWN = {
    "eurobert": {"num_key_value_heads": 1},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "modernbert": {"local_attention": 8},
    "reformer": {"axial_pos_embds": False, "is_decoder": False},
    "xlnet": {"max_position_embeddings": None, "num_hidden_layers": None},
    "xmod": {"default_language": "en_XX"},
}
FAST = ["bert", "modernbert", "eurobert", "xlnet"]
OTHERS = """albert bart big_bird bigbird_pegasus camembert canine convbert data2vec-text deberta deberta-v2 distilbert
electra ernie esm esmc flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm lilt longformer luke mbart
megatron-bert mobilebert mpnet mra mt5 mvp nomic_bert nystromformer plbart reformer rembert roberta roberta-prelayernorm
roc_bert roformer squeezebert t5 ultrabert umt5 xlm xlm-roberta xlm-roberta-xl xmod yoso""".split()
TEXTS = ["the movie was great", "bad", "the plot was very very awful and the actor not good", "great great end"]


def tiny(kind: str, folder: Path) -> str:
    """A random encoder of that family and a tokenizer, in `folder`."""
    of_family = CONFIG_MAPPING[kind]
    sizes = {name: size for name, size in SHAPE.items() if hasattr(of_family(), name)} | OWN.get(kind, {})
    config = of_family(**{name: size for name, size in sizes.items() if size is not None})
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)
