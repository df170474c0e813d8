"""Small checkpoints made here stand for the hub; everything else is the real thing, on CPU."""

import os
import subprocess
from contextlib import suppress
from functools import partial

import pytest
import torch
import wandb
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from helpers.data import FEATURES
from helpers.profiles import Execution, Profile
from helpers.results import RunRecord

os.environ.setdefault("WANDB_MODE", "disabled")

# Files whose tests train, start processes or kernels, or wait: `make check` leaves them out.
SLOW = {
    *("artefacts", "at_once", "bad_input", "baselines", "benchmarks", "determinism", "device_records", "distributed"),
    *("hub", "inference", "ladder", "models", "no_network", "other_systems", "platforms", "publish", "resuming"),
    *("runs", "secrets", "series", "site", "soak", "studies", "tracking", "train", "training"),
}
WORDS = ["the", "movie", "was", "great", "good", "bad", "awful", "very", "not", "plot", "actor", "scene", "end"]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def fp32() -> Execution:
    return Execution("cpu", "fp32", "eager")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, str]:
    """Folders of random two-layer checkpoints with a vocabulary of their own, by architecture."""
    root = tmp_path_factory.mktemp("checkpoints")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(vocab=str(root / "vocab.txt"))
    torch.manual_seed(0)
    configs = {
        "bert": BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=64,
        ),
        "distilbert": DistilBertConfig(
            vocab_size=len(vocabulary), max_position_embeddings=64, n_layers=2, n_heads=2, dim=64, hidden_dim=128
        ),
    }
    folders = {}
    for name, config in configs.items():
        folder = root / f"{name}-tiny"
        AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="session")
def tiny_encoders(tiny_checkpoints, tmp_path_factory) -> dict[str, str]:
    """`tiny_checkpoints` and, with special tokens of their own, RoBERTa- and ModernBERT-shaped ones."""
    root = tmp_path_factory.mktemp("encoders")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    special = {
        "roberta": {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"},
        "modernbert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    }
    folders = dict(tiny_checkpoints)
    torch.manual_seed(0)
    for name, tokens in special.items():
        folder = root / f"{name}-tiny"
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join([*tokens.values(), "[MASK]", *WORDS]))
        tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), **tokens)
        tokenizer.save_pretrained(folder)
        ids = {key: getattr(tokenizer, f"{key}_id") for key in ("cls_token", "pad_token", "sep_token")}
        ids = {f"{key}_id": value for key, value in ids.items()}
        common = {**shape, "vocab_size": len(tokenizer)}
        if name == "roberta":
            config = RobertaConfig(**common, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2)
        else:
            ends = {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
            config = ModernBertConfig(**common, **ids, **ends, max_position_embeddings=64, local_attention=8)
        AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture
def wandb_folder(tmp_path, monkeypatch):
    """A folder that W&B logs to, without settings of the machine's; W&B, which reads them once, is reset around it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")  # so that what a test's .env sets is undone with it
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


@pytest.fixture
def tiny_profile(tmp_path, monkeypatch) -> Profile:
    """A profile that loads checkpoints by name, as `hub` does, and writes below `tmp_path`."""
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    return Profile("tiny", embedded=False, n_train=64, n_validation=32, n_test=32, max_length=16)


@pytest.fixture(scope="session")
def toy_reviews() -> Dataset:
    """200 distinct texts whose label follows from one word, so that a tiny model can learn them."""
    filler = ["the", "was", "very", "plot", "actor", "scene", "end"]
    texts, labels = [], []
    for index in range(200):
        label = index % 2
        word = (("awful", "great"), ("bad", "good"))[index // 2 % 2][label]
        rest = [filler[index // step % len(filler)] for step in (1, 3, 9, 27)]
        texts.append(f"{index} the movie was {word} {' '.join(rest)}")
        labels.append(label)
    return Dataset.from_dict({"text": texts, "label": labels}, features=FEATURES)


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        recipe="qlora_bert", variant="improved", profile="quick", base_model="minilm-l6-bert", dataset="imdb",
        n_train=10, n_validation=2, n_test=4, max_length=128, seed=42, device="cpu", precision="bf16",
        trainable_params=3, total_params=30, weights_bytes=120, metrics={"accuracy": 0.75},
        accuracy_ci95=[0.5, 1.0], confusion_matrix=[[2, 0], [1, 1]], correct="1101",
        history={"train": [{"step": 1, "loss": 0.7}]},
    )  # fmt: skip


@pytest.fixture(params=["a full disk", "a file too large"])
def full(request, tmp_path):
    """(folder, a function that fills its disk up to nothing, one that makes room again)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "a file too large":  # what a quota does to a file; needs no rights
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE)
        yield folder, lambda: limit((64, hard)), lambda: limit((soft, hard))
        limit((soft, hard))
        return
    size = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(size, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")

    def fill():
        with suppress(OSError), open(folder / ".filler", "wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4_096)

    yield folder, fill, lambda: (folder / ".filler").unlink()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # whatever a failed test holds open
