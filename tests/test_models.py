import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from helpers.evaluation import predict_logits
from helpers.inference import SentimentClassifier, load_adapter, save_adapter
from helpers.models import adapted, build_model, load_classifier, load_tokenizer
from helpers.recipes import RECIPES
from helpers.training import check_tokenizer

SST2 = RECIPES["lora_bert_sst2"]
ENCODERS = ("bert", "distilbert", "roberta", "modernbert")
SENTENCES = ["the movie was great", "bad", "the plot was very very awful and the actor not good", "great great end"]


def _batch(base_model: str) -> dict[str, torch.Tensor]:
    """Texts of unlike lengths, padded, with labels."""
    batch = load_tokenizer(base_model)(SENTENCES, padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([1, 0, 0, 1])}


def _autocast(precision: str):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def test_the_head_follows_the_seed_and_the_labels(tiny_checkpoints):
    labels = ("bad", "so-so", "good")
    models = [load_classifier(tiny_checkpoints["bert"], labels=labels, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (model.classifier.weight for model in models)
    assert len(first) == 3 and torch.equal(first, again) and not torch.equal(first, other)
    assert models[0].config.id2label == dict(enumerate(labels))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_has_its_dropouts_and_bf16(tiny_checkpoints, name):
    base = tiny_checkpoints[name]
    model, half = (load_classifier(base, precision=one, model_dropout=0.25) for one in ("fp32", "bf16"))
    batch = _batch(base)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    with torch.no_grad(), _autocast("bf16"):
        logits = half.eval()(**batch).logits.float()
    torch.testing.assert_close(logits, model.eval()(**batch).logits, atol=0.02, rtol=0)


def test_texts_tokenized_for_another_checkpoint_are_refused(tiny_checkpoints):
    model = build_model(RECIPES["lora_distilbert_qv"], tiny_checkpoints["distilbert"])
    check_tokenizer(model, load_tokenizer(tiny_checkpoints["distilbert"]), "fp32")
    with pytest.raises(ValueError, match=r"tokenized for '.*bert-tiny', and the model is '.*distilbert-tiny'"):
        check_tokenizer(model, load_tokenizer(tiny_checkpoints["bert"]), "fp32")


def _outcome(model, batch: dict[str, torch.Tensor], precision: str) -> dict[str, torch.Tensor]:
    """Logits, loss and gradients."""
    with _autocast(precision):
        output = model(**batch)
    output.loss.backward()
    gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": output.logits.float(), "loss": output.loss.float(), **gradients}


def _alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], precision: str) -> None:
    tolerance = {"fp32": 1e-6, "bf16": 1e-2}[precision]
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=tolerance, rtol=0, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_the_last_layer_at_cls_alone_gives_the_same(tiny_checkpoints, name, training, precision):
    """Logits, loss and gradients without dropout, whose masks have other shapes: fp32 to rounding, bf16 to 8 bits."""
    batch, found = _batch(tiny_checkpoints[name]), []
    assert not batch["attention_mask"].all()
    for fast in (True, False):
        model = load_classifier(tiny_checkpoints[name], precision=precision, model_dropout=0.0, fast=fast)
        model, widths = model.train(training), []
        last = [module for module in model.modules() if type(module).__name__ in ("BertLayer", "TransformerBlock")][-1]
        last.register_forward_hook(lambda _, __, output, widths=widths: widths.append(output.shape[1]))
        found.append(_outcome(model, batch, precision))
        assert widths == [1 if fast else batch["input_ids"].shape[1]]
    assert len(found[0]) > 20
    _alike(*found, precision)


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_in_fewer_operations_gives_the_same(tiny_checkpoints, quantization, precision):
    recipe = replace(SST2, quantization=quantization, model_dropout=0.0, lora_dropout=0.0)
    batch, found = _batch(tiny_checkpoints["bert"]), []
    for fast in (True, False):
        model = build_model(recipe, tiny_checkpoints["bert"], precision, fast=fast).train()
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        assert all(("forward" in vars(layer)) == fast for layer in layers) and layers
        for layer in layers:
            torch.manual_seed(0)
            layer.lora_B["default"].weight.data.normal_(std=0.1)
        found.append(_outcome(model, batch, precision))
        with _autocast(precision), model.disable_adapter(), torch.no_grad():
            found[-1]["without"] = model(**batch).logits.float()
    assert not torch.equal(found[0]["logits"], found[0]["without"])
    _alike(*found, precision)


def test_the_last_layer_at_cls_alone_keeps_the_encoder_s_dropouts(tiny_checkpoints):
    batch, model = _batch(tiny_checkpoints["bert"]), load_classifier(tiny_checkpoints["bert"], model_dropout=0.5)
    last = model.bert.encoder.layer[-1]
    for part in (last.attention.self, last.attention.output, last.output):
        model.eval()
        part.train()
        with torch.no_grad():
            assert not torch.equal(model(**batch).logits, model(**batch).logits), type(part).__name__


def _rewritten(source: str, folder: Path, change) -> str:
    """A copy of a checkpoint with `change(name)` in place of its tensors' names, less those without one."""
    AutoModelForSequenceClassification.from_pretrained(source).config.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    tensors = {change(name): tensor for name, tensor in load_file(Path(source) / "model.safetensors").items()}
    save_file({key: value for key, value in tensors.items() if key}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("change", [lambda name: f"wrapped.{name}", lambda name: "layer.1.att" not in name and name])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_an_encoder_without_some_of_its_weights_is_refused(tiny_checkpoints, tmp_path, name, change):
    folder = _rewritten(tiny_checkpoints[name], tmp_path / "base", change)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its encoder, such as \w+\.") as error:
        load_classifier(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, "weights of more layers than its config.json says, such as "),
        ({"vocab_size": 30}, "lacks 1 weights of its encoder, such as bert.embeddings.word_embeddings.weight"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(tiny_checkpoints, tmp_path, change, message):
    shutil.copytree(tiny_checkpoints["bert"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"padding_side": "left"}, "The tokenizer pads on the right, not on the left"),
        ({"pad_token": None}, "has no padding token: it pads with [PAD]"),
        ({"model_input_names": ["input_ids"]}, ""),
        ({}, ""),
    ],
)
def test_a_tokenizer_is_repaired_and_this_is_said(tiny_checkpoints, tmp_path, capsys, change, said):
    shutil.copytree(tiny_checkpoints["bert"], tmp_path / "base")
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text()) | change
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    base = str(tmp_path / "base")
    model, tokenizer = build_model(SST2, base), load_tokenizer(base)
    check_tokenizer(model, tokenizer, "fp32")
    assert said in (printed := capsys.readouterr().out) and bool(said) == bool(printed)
    _as_after_reloading(model, SST2, base, tmp_path)
    ids = tokenizer(SENTENCES)["input_ids"]
    again = load_adapter(tmp_path / "adapter", "fp32")[1]
    for one in (tokenizer, again):
        alone, together = (predict_logits(model, one, some, "fp32") for some in (ids[1:2], ids))
        np.testing.assert_allclose(together[1], alone[0], atol=1e-6)


def test_a_checkpoint_without_its_tokenizer_is_refused(tiny_checkpoints, tmp_path):
    shutil.copytree(tiny_checkpoints["bert"], tmp_path / "base")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "base" / name).unlink()
    with pytest.raises(ValueError, match="no vocabulary"):
        load_tokenizer(str(tmp_path / "base"))
    with pytest.raises(ConnectionError, match=r"Could not load '\./models/typo': it is not here"):
        load_tokenizer("./models/typo")


def test_a_head_of_an_earlier_training_answers_in_the_order_of_the_labels(tiny_checkpoints, tmp_path):
    load_classifier(tiny_checkpoints["bert"], labels=("pos", "neg")).save_pretrained(tmp_path)
    batch, orders = _batch(tiny_checkpoints["bert"]), (("pos", "neg"), ("neg", "pos"))
    first, other = (load_classifier(str(tmp_path), labels=order).eval()(**batch).logits for order in orders)
    torch.testing.assert_close(first, other.flip(1))


def test_a_plain_model_reads_pairs_too_and_its_labels_are_text(tiny_checkpoints, tmp_path):
    load_classifier(tiny_checkpoints["bert"]).save_pretrained(tmp_path)
    load_tokenizer(tiny_checkpoints["bert"]).save_pretrained(tmp_path)
    for name, change in (("config", {"id2label": {"0": 0, "1": 1}}), ("tokenizer_config", {"pad_token": None})):
        (tmp_path / f"{name}.json").write_text(json.dumps(json.loads((tmp_path / f"{name}.json").read_text()) | change))
    plain = SentimentClassifier.from_pretrained(tmp_path, "fp32")
    assert plain.labels == ["0", "1"] and plain.logits(["bad", "a great end"], ["good", "bad"]).shape == (2, 2)
    with pytest.raises(ValueError, match="The tokenizer has 18 tokens, the model embeddings for 3"):
        plain.model.resize_token_embeddings(3)
        check_tokenizer(plain.model, plain.tokenizer, "fp32")


def _as_after_reloading(model, recipe, base_model: str, folder: Path) -> None:
    """Its logits are the reloaded adapter's, whose head is drawn from another seed before the saved one replaces it."""
    tokenizer = load_tokenizer(base_model)
    adapter = save_adapter(model, tokenizer, folder / "adapter", recipe, base_model, 16)
    ids, again = tokenizer(SENTENCES)["input_ids"], load_adapter(adapter, "fp32")[0]
    expected, found = (predict_logits(one, tokenizer, ids, "fp32") for one in (model, again))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_pooler_that_is_missing_is_said_trained_and_saved(tiny_checkpoints, tmp_path, quantization):
    folder = _rewritten(tiny_checkpoints["bert"], tmp_path / "base", lambda name: "pooler" not in name and name)
    recipe = replace(SST2, quantization=quantization)
    model = build_model(recipe, folder, seed=7)
    assert adapted(model).endswith(
        "layers: attention.self.query, attention.self.value. Trained whole: bert.pooler (new), classifier (new)"
    )
    assert sum(weight.requires_grad and "pooler" in name for name, weight in model.named_parameters()) == 2
    _as_after_reloading(model, recipe, folder, tmp_path)
    assert adapted(build_model(recipe, tiny_checkpoints["bert"])).endswith("Trained whole: classifier (new)")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["classifier"]}))
    with pytest.raises(ValueError, match=r"bert\.pooler"):
        load_adapter(tmp_path / "adapter", "fp32")
