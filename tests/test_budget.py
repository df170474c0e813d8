from dataclasses import replace

import pytest
import torch

from helpers.models import build_model, count_parameters, weight_bytes
from helpers.recipes import RECIPES
from lab import budget
from lab.budget import memory_budget, real_model
from lab.timing import TrainingStep

QLORA = RECIPES["qlora_bert"]


@pytest.mark.parametrize(
    ("checkpoint", "parameters"),
    [("bert-base-uncased", 109_483_778), ("bert-base-cased", 108_311_810), ("distilbert-base-uncased", 66_955_010)],
)
def test_the_real_checkpoints_have_their_published_sizes_and_take_no_memory(checkpoint, parameters):
    model = real_model(checkpoint)
    assert count_parameters(model) == (parameters, parameters)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("recipe", "trainable", "total"),
    [
        ("lora_distilbert_q", 628_994, 67_584_004),
        ("qlora_bert", 591_362, 110_075_140),
        ("lora_bert_cased", 38_402, 108_350_212),
        ("lora_distilbert_qv", 739_586, 67_694_596),
        ("lora_bert_sst2", 296_450, 109_780_228),
    ],
)
def test_what_each_recipe_trains_on_its_real_checkpoint(recipe, trainable, total):
    counted = memory_budget(RECIPES[recipe])
    assert (counted.trainable, counted.total) == (trainable, total)
    assert counted.gradients == 4 * trainable and counted.adamw == 8 * trainable


@pytest.mark.parametrize(
    ("checkpoint", "fp32", "bf16", "nf4", "statistics", "rest"),
    [
        ("bert-base-uncased", 437_935_112, 218_967_556, 42_467_328, 1_426_464, 98_196_488),
        ("bert-base-cased", 433_247_240, 216_623_620, 42_467_328, 1_426_464, 93_508_616),
        ("distilbert-base-uncased", 267_820_040, 133_910_020, 21_233_664, 713_232, 97_950_728),
    ],
)
def test_bytes_of_the_three_real_checkpoints(checkpoint, fp32, bf16, nf4, statistics, rest):
    recipe = RECIPES["lora_distilbert_qv" if checkpoint.startswith("distil") else "qlora_bert"]
    full = recipe.full_finetune()
    assert memory_budget(full, checkpoint).weights == {"fp32": fp32}
    assert sum(parameter.numel() for parameter in real_model(checkpoint).parameters()) * 2 == bf16
    packed = memory_budget(replace(recipe, quantization="nf4"), checkpoint)
    assert packed.weights["nf4"] == nf4 and packed.weights["nf4 statistics"] == statistics
    assert packed.weights["fp32"] - 4 * packed.trainable == rest
    half = memory_budget(replace(recipe, quantization="nf4"), checkpoint, dtype="bf16")
    assert half.weights["bf16"] == rest // 2 and half.weights["fp32"] == 4 * packed.trainable


def test_the_optimizers_of_bert_base():
    full, lora = memory_budget(QLORA.full_finetune()), memory_budget(QLORA)
    assert (full.adamw, full.adamw_8bit) == (875_870_224, 223_136_128)
    assert (lora.adamw, lora.adamw_8bit) == (4_730_896, 1_210_384)
    assert full.static() == 437_935_112 * 2 + 875_870_224


def test_the_count_is_what_a_real_quantized_model_and_optimizer_hold(tiny_checkpoints, monkeypatch):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_checkpoints["bert"])
    monkeypatch.setitem(budget.REAL_CONFIGS, "tiny", config)
    recipe = replace(QLORA, base_model=tiny_checkpoints["bert"], r=64)  # 64 x 64: large enough for 8-bit state
    counted = memory_budget(recipe, "tiny")
    model = build_model(recipe, tiny_checkpoints["bert"])
    held = weight_bytes(model)
    assert counted.weights == {"fp32": held["float32"], "nf4": held["nf4"], "nf4 statistics": held["nf4 statistics"]}
    assert (counted.trainable, counted.total) == count_parameters(model)
    for optimizer, expected in (("adamw_torch", counted.adamw), ("paged_adamw_8bit", counted.adamw_8bit)):
        step = TrainingStep(model, "fp32", optimizer)
        step.run(*step.random_batch(2, 8))
        states = list(step.optimizer.state.values())
        averages = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
        assert sum(state[name].nbytes for state in states for name in averages if name in state) == expected
    assert any(value.dtype == torch.uint8 for state in states for value in state.values() if torch.is_tensor(value))
