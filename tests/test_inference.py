import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hub import _store
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers import export, inference
from helpers.data import load_splits, truncate
from helpers.evaluation import predict_logits
from helpers.export import merge_adapter, push_to_hub
from helpers.inference import TRAINING_TEXTS, SentimentClassifier, save_adapter
from helpers.models import build_model, load_classifier, load_tokenizer
from helpers.profiles import COMMITTED, DTYPES, EMBEDDED_BERT, PROFILES
from helpers.recipes import RECIPES

TEXTS = ["the movie was great", "bad", "the plot was very awful and not good " * 10, "great<br />end", ""]
WEIGHTS, CONFIG, SETTINGS = "adapter_model.safetensors", "adapter_config.json", "inference.json"


@pytest.fixture(scope="module")
def save(tiny_checkpoints, tmp_path_factory):
    """`save(name, quantization)` saves an adapter of that base: (folder, logits of TEXTS in memory)."""

    def saved(name, quantization=None):
        base_model, targets = tiny_checkpoints[name], ("query",) if name == "bert" else ("q_lin",)
        recipe = replace(RECIPES["lora_bert_sst2"], r=4, target_modules=targets, quantization=quantization)
        recipe = replace(recipe, truncation="head+tail")
        model, tokenizer = build_model(recipe, base_model, seed=7).eval(), load_tokenizer(base_model)
        torch.manual_seed(1)
        with torch.no_grad():  # every trainable weight is off its start, as training would leave it
            for weight in filter(lambda one: one.requires_grad, model.parameters()):
                weight += 0.05 * torch.randn(weight.shape)
        folder = save_adapter(model, tokenizer, tmp_path_factory.mktemp("saved") / "adapter", recipe, base_model, 16)
        ids = tokenizer([text.replace("<br />", " ") for text in TEXTS])["input_ids"]
        ids = [truncate(row, 16, "head+tail") for row in ids]
        return folder, predict_logits(model, tokenizer, ids, "fp32")

    return saved


@pytest.fixture
def adapter(save, tmp_path) -> Path:
    """A whole adapter to damage."""
    return Path(shutil.copytree(save("bert")[0], tmp_path / "adapter"))


def test_the_committed_adapters_answer_as_they_did():
    profile = replace(PROFILES["quick"], n_train=1_000, n_validation=300, n_test=1_000)
    texts = load_splits(RECIPES["lora_distilbert_qv"], profile)["test"]["text"]
    expected = {
        "lora": [[-3.1752, 4.1692], [4.6341, -4.6919], [1.5781, -1.5637], [2.9277, -2.9243]],
        "qlora": [[-2.9080, 3.0259], [2.8661, -3.0399], [-0.7721, 0.6355], [1.4409, -1.3429]],
    }
    for name, logits in expected.items():
        classifier = SentimentClassifier.from_pretrained(COMMITTED / "full" / "adapters" / name, "fp32")
        found = classifier.logits([texts[index] for index in (0, 9, 6, 4)])
        np.testing.assert_allclose(found, logits, atol=1e-3)


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_saved_adapter_answers_the_same_reloaded_and_merged(save, tmp_path, name, quantization):
    folder, logits = save(name, quantization)
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.02)):
        classifier = SentimentClassifier.from_pretrained(folder, precision)
        stored = {weight.dtype for weight in classifier.model.parameters() if weight.dtype != torch.uint8}
        assert stored == {DTYPES[precision], *([torch.float32] if quantization else ())}  # norms, and what was trained
        assert hasattr(classifier.model, "peft_config") == bool(quantization)  # full precision is merged
        np.testing.assert_allclose(classifier.logits(TEXTS), logits, atol=tolerance)
    assert np.ptp(logits[:, 0]) > 5e-4 and not np.array_equal(classifier.logits(TEXTS), logits), "computed in fp32"
    merged = merge_adapter(folder, tmp_path / "merged")
    np.testing.assert_allclose(SentimentClassifier.from_pretrained(merged, "fp32").logits(TEXTS), logits, atol=1e-4)
    assert AutoTokenizer.from_pretrained(merged).model_max_length == 16
    with pytest.raises(FileExistsError, match="not empty"):
        merge_adapter(folder, merged)


def test_texts_are_answered_and_anything_else_is_refused(adapter):
    classifier = SentimentClassifier.from_pretrained(adapter, "fp32")
    many, logits = (method(["the movie was great", "awful", ""]) for method in (classifier.predict, classifier.logits))
    assert [answer.label for answer in many] == [("NEGATIVE", "POSITIVE")[row.argmax()] for row in logits]
    assert classifier.predict("the movie was great")[0].score == pytest.approx(many[0].score, abs=1e-6)
    assert classifier.predict([]) == []
    for texts in (["good", float("nan")], ["good", None], {"text": "good"}, pd.DataFrame({"text": ["good"]}), b"x", 7):
        with pytest.raises(TypeError):
            classifier.predict(texts)
    classifier.model.config.id2label = {1: "b", 0: "a"}
    assert classifier.labels == ["a", "b"]
    classifier.model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="no numbers in fp32"):
        classifier.predict("good")


def test_a_hub_base_is_loaded_in_the_version_that_the_adapter_was_trained_on(adapter, monkeypatch):
    loads = []

    def load(base_model, **options):
        loads.append((base_model, options.get("revision")))
        raise ConnectionError("no hub here")

    monkeypatch.setattr(inference, "load_classifier", load)
    _edit(adapter / SETTINGS, base_model="someone/encoder", base_revision="c0ffee")
    with pytest.raises(ConnectionError):
        SentimentClassifier.from_pretrained(adapter, "fp32")
    assert loads == [("someone/encoder", "c0ffee")]


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_weights(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def _refused(folder: Path, cause: str = "") -> None:
    with pytest.raises(ValueError, match=cause) as caught:
        SentimentClassifier.from_pretrained(folder, "fp32")
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", [SETTINGS, CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_or_missing_file_is_one_line(adapter, name):
    whole = (adapter / name).read_bytes()
    for content in (b"", b"{", b"[1]", b"null", whole[: len(whole) // 2]):
        (adapter / name).write_bytes(content)
        _refused(adapter)
    with pytest.raises(ValueError):
        merge_adapter(adapter, adapter.parent / "merged")
    (adapter / name).unlink()
    _refused(adapter, re.escape(name) if name.startswith(("adapter", "inference")) else "")
    assert not (adapter.parent / "merged").exists()


def test_settings_that_do_not_fit_are_one_line(adapter):
    labels, whole = ["bad", "so-so", "good"], {name: (adapter / name).read_bytes() for name in (SETTINGS, CONFIG)}
    wrong = [{"labels": labels}, {"labels": 7}, {"base_model": None}, {"base_revision": 1}, {"quantization": "int8"}]
    of_peft = [{"r": 8}, {"target_modules": ["nowhere"]}, {"peft_type": "NONE"}]
    for name, change in [*((SETTINGS, change) for change in wrong), *((CONFIG, change) for change in of_peft)]:
        _edit(adapter / name, **change)
        _refused(adapter)
        (adapter / name).write_bytes(whole[name])


@pytest.mark.parametrize("part", ["lora_B", "classifier.weight", ""])
def test_weights_that_do_not_fit_are_one_line(adapter, part):
    _edit_weights(adapter / WEIGHTS, lambda tensors: tensors.pop(next(name for name in tensors if part in name)))
    _refused(adapter)
    _edit_weights(adapter / WEIGHTS, lambda tensors: tensors.update({"surplus": torch.zeros(1)}))
    _refused(adapter)


def test_another_base_is_refused(adapter, tiny_checkpoints, tmp_path):
    altered = Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "other"))
    _edit_weights(altered / "model.safetensors", lambda data: next(iter(data.values())).add_(1))
    for base in (str(altered), tiny_checkpoints["distilbert"], EMBEDDED_BERT):
        _edit(adapter / SETTINGS, base_model=base)
        _refused(adapter, f"trained on .*{re.escape(Path(base).name)} in version sha256:.*and here that is sha256:")


class Evil:
    """What a pickle can hold: a call, made when it is loaded."""

    trace: Path

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_no_pickle_is_loaded(adapter, tiny_checkpoints, tmp_path, monkeypatch):
    trace, base = tmp_path / "trace", Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "base"))
    monkeypatch.setattr(Evil, "trace", trace, raising=False)
    pickle.loads(pickle.dumps(Evil()))
    assert trace.exists(), "the pickle is harmless, and this test shows nothing"
    trace.unlink()
    (adapter / WEIGHTS).write_bytes(pickle.dumps(Evil()))
    _refused(adapter)
    torch.save({"weights": Evil()}, adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    _refused(adapter, WEIGHTS)
    torch.save({"weights": Evil()}, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"base.*model\.safetensors"):
        load_classifier(str(base))
    assert not trace.exists()


def test_no_code_beside_a_base_or_a_tokenizer_is_run(adapter, tiny_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    trace, base = tmp_path / "trace", Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "base"))
    for folder in (base, adapter):
        (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    code = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    _edit(base / "config.json", model_type="evil", auto_map=code)
    with pytest.raises(ValueError, match="base"):
        load_classifier(str(base))
    code = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    _edit(adapter / "tokenizer_config.json", tokenizer_class="Evil", auto_map=code)
    _refused(adapter)
    assert not trace.exists()


@pytest.mark.parametrize(
    "place", [None, f"{os.sep}home{os.sep}somebody{os.sep}bert-tiny", "google-bert/bert-base-cased"]
)
def test_no_path_of_a_machine_and_no_row_is_uploaded(adapter, uploads, tmp_path, place):
    for name in ("report", "merged"):
        (adapter / name).mkdir()
        (adapter / name / "rows.csv").write_text("a row of the user's")
    (adapter / TRAINING_TEXTS).write_bytes(b"hashes")
    if place:
        _edit(adapter / CONFIG, base_model_name_or_path=place)
        _edit(adapter / SETTINGS, base_model=place)
    before = {path: path.read_bytes() for path in adapter.rglob("*") if path.is_file()}
    assert push_to_hub(adapter, "me/mine") == "Uploaded: https://hub.example/me/mine"
    assert {SETTINGS, CONFIG, WEIGHTS, "tokenizer.json"} <= uploads.files.keys() and TRAINING_TEXTS not in uploads.files
    for name, text in uploads.files.items():
        assert not re.search(rf"somebody|{tmp_path.parent.parent}|{Path.home()}/", f"{name} {text}") and "/" not in name
    base = json.loads(uploads.files[CONFIG])["base_model_name_or_path"]
    assert base == (place if place and "google" in place else "bert-tiny")
    assert {path: path.read_bytes() for path in adapter.rglob("*") if path.is_file()} == before


def test_what_was_uploaded_loads_by_its_name(adapter, uploads, tiny_checkpoints, tmp_path, monkeypatch):
    expected = SentimentClassifier.from_pretrained(adapter, "fp32").logits(TEXTS)
    push_to_hub(adapter, "me/mine")
    commit, files = "c" * 40, {name: text.encode("latin-1") for name, text in uploads.files.items()}
    _store(tmp_path / "hub" / "models--me--mine", commit, files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(Path(tiny_checkpoints["bert"]).parent)
    for name in ("me/mine", f"me/mine@{commit}", Path("me/mine")):
        np.testing.assert_array_equal(SentimentClassifier.from_pretrained(name, "fp32").logits(TEXTS), expected)
    for name in ("me/mine@v2", "me/other", "no name at all"):
        with pytest.raises(ConnectionError, match=f"^Could not load '{name}': it is not here, and .* HF_TOKEN"):
            SentimentClassifier.from_pretrained(name, "fp32")


def test_an_upload_that_cannot_be_is_one_line_that_says_how(adapter, uploads, monkeypatch):
    uploads.error = OSError("no route\nto the hub")
    said = push_to_hub(adapter, "me/mine")
    assert said.startswith("Not uploaded (OSError: no route to the hub)") and "hf upload me/mine" in said
    monkeypatch.setattr(export, "get_token", lambda: None)
    for line in (push_to_hub(adapter), push_to_hub(adapter, "me/mine")):
        assert line.startswith("To upload: ") and "hf upload" in line and "\n" not in line
    assert not uploads.files
