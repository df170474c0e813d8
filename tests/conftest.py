"""Small checkpoints made here stand for the hub; everything else is the real thing, on a CPU."""

import os
import subprocess
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

# Of the machine's own settings none counts here, nor those of an `.env`, which yield to the environment.
os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "PRECISION": "", "PROFILE": "quick"}

from helpers.start import prepare_process

prepare_process()

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import wandb  # noqa: E402
from datasets import Dataset  # noqa: E402

from helpers import export  # noqa: E402
from helpers.data import FEATURES  # noqa: E402
from helpers.profiles import Profile  # noqa: E402
from helpers.results import RunRecord  # noqa: E402
from lab.claims import decide_all  # noqa: E402

WORDS = ["the", "movie", "was", "great", "good", "bad", "awful", "very", "not", "plot", "actor", "scene", "end"]
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
MODERNBERT_IDS = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory):
    """No test writes to the repository's own Data/."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DATA_DIR", str(tmp_path_factory.mktemp("Data")))
        yield


def save_encoder(folder, config, **special) -> str:
    """A random encoder of that configuration, its tokenizer beside it; `special` are the tokenizer's special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    special = special or {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "vocab.txt").write_text("\n".join([*special.values(), "[MASK]", *WORDS]))
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), **special).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, str]:
    """Folders of random two-layer checkpoints with a vocabulary of their own, by architecture; RoBERTa's and
    ModernBERT's have special tokens of their own, too."""
    root, common = tmp_path_factory.mktemp("checkpoints"), {"vocab_size": 5 + len(WORDS), "max_position_embeddings": 64}
    distilbert = transformers.DistilBertConfig(**common, n_layers=2, n_heads=2, dim=64, hidden_dim=128)
    roberta = transformers.RobertaConfig(**common, **SHAPE, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    modernbert = transformers.ModernBertConfig(**common, **SHAPE, **MODERNBERT_IDS, local_attention=8)
    special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return {
        "bert": save_encoder(root / "bert-tiny", transformers.BertConfig(**common, **SHAPE)),
        "distilbert": save_encoder(root / "distilbert-tiny", distilbert),
        "roberta": save_encoder(root / "roberta-tiny", roberta, **special),
        "modernbert": save_encoder(root / "modernbert-tiny", modernbert),
    }


@pytest.fixture
def tiny_profile(tmp_path, monkeypatch) -> Profile:
    """A profile that loads checkpoints by name, as `hub` does, and writes below `tmp_path`."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "Data"))
    return Profile("tiny", embedded=False, n_train=64, n_validation=32, n_test=32, max_length=16)


@pytest.fixture(scope="session")
def toy_reviews() -> Dataset:
    """200 distinct texts whose label follows from one word, so that a tiny model can learn them."""
    filler, words = ["the", "was", "very", "plot", "actor", "scene", "end"], ["awful", "great", "bad", "good"]
    rest = [" ".join(filler[index // step % len(filler)] for step in (1, 3, 9, 27)) for index in range(200)]
    texts = [f"{index} the movie was {words[index % 4]} {rest[index]}" for index in range(200)]
    return Dataset.from_dict({"text": texts, "label": [index % 2 for index in range(200)]}, features=FEATURES)


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
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        subprocess.run(mount, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")

    def fill():
        with suppress(OSError), open(folder / ".filler", "wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4_096)

    yield folder, fill, lambda: (folder / ".filler").unlink()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # whatever a failed test holds open


@pytest.fixture
def uploads(monkeypatch):
    """Stands for the hub: `files` holds the text of what an upload sent, by its path; `error` ends it."""
    state = SimpleNamespace(files={}, error=None, create_repo=lambda repo_id, private, exist_ok: None)

    def create_commit(repo_id, files, commit_message):
        if state.error:
            raise state.error
        for file in files:
            with file.as_file() as content:
                state.files[file.path_in_repo] = content.read().decode("latin-1")
        return f"https://hub.example/{repo_id}"

    state.create_commit = create_commit
    monkeypatch.setattr(export, "HfApi", lambda: state)
    monkeypatch.setattr(export, "get_token", lambda: "a token")
    return state


@pytest.fixture
def wandb_folder(tmp_path, monkeypatch):
    """A folder that W&B logs to, without settings of the machine's; W&B, which reads them once, is reset around it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone with it
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


@pytest.fixture(scope="session")
def verdicts():
    return decide_all()
