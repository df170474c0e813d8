from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, PreTrainedModel

from helpers.checkpoints import resolve_checkpoint
from helpers.evaluation import predict_logits
from helpers.inference import load_adapter, save_adapter
from helpers.models import (
    attach_lora,
    build_model,
    check_tokenizer,
    count_parameters,
    keep_4bit_layout,
    load_classifier,
    load_tokenizer,
    nf4_config,
    weight_bytes,
)
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT
from helpers.recipes import RECIPES

SST2 = RECIPES["lora_bert_sst2"]
SENTENCES = ["the movie was great", "bad", "the plot was very very awful and the actor not good", "great great end"]


def _batch(tokenizer) -> dict[str, torch.Tensor]:
    """Texts of unlike lengths, padded, with labels."""
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([1, 0, 0, 1])}


def _autocast(precision: str):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def test_the_head_follows_the_seed_and_the_labels(tiny_checkpoints):
    heads = [load_classifier(tiny_checkpoints["bert"], seed=seed).classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    model = load_classifier(tiny_checkpoints["bert"], labels=("bad", "so-so", "good"))
    assert model.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    assert model.classifier.out_features == 3
    assert load_classifier(tiny_checkpoints["bert"]).config.label2id == {"NEGATIVE": 0, "POSITIVE": 1}


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "modernbert"])
def test_other_encoders_have_dropouts_head_and_4_bits_as_well(tiny_encoders, name):
    model = load_classifier(tiny_encoders[name], model_dropout=0.25)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    quantized = load_classifier(tiny_encoders[name], quantization="nf4")
    in_4bit = {module_name for module_name, module in quantized.named_modules() if isinstance(module, Linear4bit)}
    linears = {n for n, module in quantized.base_model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert in_4bit == {f"{quantized.base_model_prefix}.{n}" for n in linears if "pooler" not in n}
    assert np.isfinite(quantized(**_batch(load_tokenizer(tiny_encoders[name]))).loss.item())


def test_texts_tokenized_for_another_checkpoint_are_refused(tiny_checkpoints):
    tokenizer, other = (load_tokenizer(tiny_checkpoints[name]) for name in ("bert", "distilbert"))
    model = build_model(RECIPES["lora_distilbert_qv"], tiny_checkpoints["distilbert"])
    check_tokenizer(model, other)
    with pytest.raises(ValueError, match=r"tokenized for '.*bert-tiny', and the model is '.*distilbert-tiny'"):
        check_tokenizer(model, tokenizer)
    small = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=7, num_hidden_layers=1))
    with pytest.raises(ValueError, match="The tokenizer has 18 tokens, the model embeddings for 7"):
        check_tokenizer(small, tokenizer)


# -- the last layer at [CLS] -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_the_last_layer_at_cls_alone_gives_the_same_logits_loss_and_gradients(
    tiny_checkpoints, name, training, precision
):
    """With dropout off, whose masks are drawn over other shapes; fp32 to rounding, bf16 to its 8 bits."""
    batch, found = _batch(load_tokenizer(tiny_checkpoints[name])), []
    assert not batch["attention_mask"].all()
    for fast in (True, False):
        model = load_classifier(tiny_checkpoints[name], model_dropout=0.0, fast=fast).train(training)
        widths = []
        last = [module for module in model.modules() if type(module).__name__ in ("BertLayer", "TransformerBlock")][-1]
        last.register_forward_hook(lambda _, __, output, widths=widths: widths.append(output.shape[1]))
        with _autocast(precision):
            output = model(**batch)
        output.loss.backward()
        assert widths == [1 if fast else batch["input_ids"].shape[1]]
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found.append((output.logits.float(), output.loss.float(), gradients))
    (logits, loss, gradients), (expected, whole, others) = found
    tolerance = {"fp32": 1e-6, "bf16": 1e-2}[precision]
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(loss, whole, atol=tolerance, rtol=0)
    assert gradients.keys() == others.keys() and len(gradients) > 20
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[key], atol=tolerance, rtol=0, msg=lambda m, k=key: f"{k}: {m}")


def test_the_last_layer_at_cls_alone_keeps_the_encoder_s_dropouts(tiny_checkpoints):
    batch = _batch(load_tokenizer(tiny_checkpoints["bert"]))
    model = load_classifier(tiny_checkpoints["bert"], model_dropout=0.5)
    torch.nn.Module.eval(model)
    last = model.bert.encoder.layer[-1].train()
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
    for part in (last.attention.self, last.attention.output, last.output):
        torch.nn.Module.eval(last)
        part.train()
        with torch.no_grad():
            assert not torch.equal(model(**batch).logits, model(**batch).logits), type(part).__name__


@pytest.mark.parametrize("name", ["roberta", "modernbert"])
def test_other_encoders_stay_as_they_are(tiny_encoders, name):
    batch = _batch(load_tokenizer(tiny_encoders[name]))
    found = [load_classifier(tiny_encoders[name], fast=fast).eval()(**batch).logits for fast in (True, False)]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "modernbert"])
def test_bf16_logits_on_a_cpu_are_numbers_with_padding_too(tiny_encoders, name):
    """ModernBERT's window of 8 tokens sees nothing but padding at a short text's end."""
    tokenizer = load_tokenizer(tiny_encoders[name])
    ids = tokenizer(["great", "the movie was very very " * 6])["input_ids"]
    logits = {}
    for precision in ("fp32", "bf16"):
        model = load_classifier(tiny_encoders[name], precision=precision).eval()
        with _autocast(precision), torch.no_grad():
            batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            logits[precision] = model(**batch).logits.float()
    assert logits["bf16"].isfinite().all()
    torch.testing.assert_close(logits["bf16"], logits["fp32"], atol=0.02, rtol=0)


# -- parts of a checkpoint that are missing --------------------------------------------------------------------------


def _without(source: str, folder: Path, wanted) -> str:
    """A copy of a checkpoint with `wanted(tensors)` in place of its tensors."""
    AutoModelForSequenceClassification.from_pretrained(source).config.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    save_file(wanted(load_file(Path(source) / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda tensors: {f"module.wrapped.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "layer.1.attention" not in name},
    ],
    ids=["a prefix", "a layer"],
)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_an_encoder_without_some_of_its_weights_is_refused(tiny_checkpoints, tmp_path, name, wanted):
    folder = _without(tiny_checkpoints[name], tmp_path / "base", wanted)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its encoder, such as \w+\.") as error:
        load_classifier(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_pooler_that_is_missing_is_said_trained_and_saved(tiny_checkpoints, tmp_path, capsys, quantization):
    folder = _without(
        tiny_checkpoints["bert"],
        tmp_path / "base",
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "pooler" not in name},
    )
    recipe = replace(SST2, quantization=quantization)
    model = build_model(recipe, folder, seed=7)
    assert "has no weights for its pooler" in capsys.readouterr().out
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad and "pooler" in name]
    assert len(trained) == 2
    _as_after_reloading(model, recipe, folder, tmp_path)
    assert not load_classifier(tiny_checkpoints["bert"]).training or "pooler" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "targets"), [("distilbert", "q_lin"), ("roberta", "query"), ("modernbert", "Wqkv")])
def test_whatever_of_a_head_is_new_is_saved_with_the_adapter(tiny_encoders, tmp_path, name, targets):
    recipe = replace(SST2, target_modules=(targets,))
    _as_after_reloading(build_model(recipe, tiny_encoders[name], seed=7), recipe, tiny_encoders[name], tmp_path)


def _as_after_reloading(model, recipe, base_model: str, folder: Path) -> None:
    """Its logits are the reloaded adapter's, whose head is drawn from another seed before the saved one replaces it."""
    tokenizer = load_tokenizer(base_model)
    ids = tokenizer(SENTENCES)["input_ids"]
    adapter = save_adapter(model, tokenizer, folder / "adapter", recipe, base_model, 16)
    again, _, _ = load_adapter(adapter, "fp32")
    expected, found = (predict_logits(one, tokenizer, ids, "fp32") for one in (model, again))
    np.testing.assert_allclose(found, expected, atol=1e-6)


# -- 4 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [EMBEDDED_BERT, EMBEDDED_DISTILBERT])
def test_nf4_holds_every_encoder_matrix_in_4_bits_and_no_head(name):
    model = load_classifier(name, quantization="nf4")
    in_4bit = {module_name: module for module_name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(in_4bit) == 36 and not any("pooler" in name or "classifier" in name for name in in_4bit)
    held, matrices = weight_bytes(model), 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert held["nf4"] == matrices // 2
    # One byte a block of 64 weights, an fp32 scale for 256 of those, small tables: a little over 1/64 byte a weight.
    assert matrices / 64 < held["nf4 statistics"] < matrices / 64 * 1.4
    state = next(iter(in_4bit.values())).weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)


def test_weight_bytes_tell_dtypes_apart():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    assert weight_bytes(model) == {"float32": 40, "bfloat16": 12}


def test_a_quantized_model_runs_forward_and_back():
    model = build_model(RECIPES["qlora_bert"], EMBEDDED_BERT, "bf16")
    with _autocast("bf16"):
        model(**_batch(load_tokenizer(EMBEDDED_BERT))).loss.backward()
    gradients = [weight.grad.abs().sum() for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(gradients) == 12 and all(gradient > 0 for gradient in gradients)


def test_a_4bit_model_loaded_elsewhere_trains_after_predicting():
    """bitsandbytes may repack the weights at the first prediction; keep_4bit_layout undoes it."""
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_checkpoint(EMBEDDED_BERT), quantization_config=nf4_config(torch.bfloat16), device_map="cpu"
    )
    model, batch = attach_lora(model, RECIPES["qlora_bert"]).eval(), _batch(load_tokenizer(EMBEDDED_BERT))
    with torch.inference_mode():
        model(**batch)
    keep_4bit_layout(model)
    model.train()(**batch).loss.backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "lora_B" in name)


# -- what trains -----------------------------------------------------------------------------------------------------


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
        assert count_parameters(attach_lora(model, RECIPES[recipe])) == (trainable, total)


def test_counting_does_not_depend_on_the_storage():
    for quantization in ("nf4", None):
        model = build_model(replace(RECIPES["qlora_bert"], quantization=quantization), EMBEDDED_BERT)
        assert count_parameters(model) == (148_226, 22_862_212)


@pytest.mark.parametrize(
    ("method", "trained"),
    [("adapter", {"lora_A", "lora_B", "classifier"}), ("head_only", {"classifier", "pooler"}), ("full_finetune", None)],
)
def test_each_method_trains_what_it_says(tiny_checkpoints, method, trained):
    model: PreTrainedModel = build_model(replace(SST2, method=method), tiny_checkpoints["bert"])
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if trained is None:
        assert len(names) == len(list(model.parameters()))
    else:
        assert {part for name in names for part in name.split(".") if part in trained} == trained
        assert all(trained & set(name.split(".")) for name in names)
