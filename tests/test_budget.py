from dataclasses import replace

import torch
from transformers import AutoConfig

from helpers.models import build_model, count_parameters, weight_bytes
from helpers.recipes import RECIPES
from lab import budget
from lab.budget import memory_budget
from lab.timing import TrainingStep


def test_the_count_is_what_a_real_quantized_model_and_optimizer_hold(tiny_checkpoints, monkeypatch):
    monkeypatch.setitem(budget.REAL_CONFIGS, "tiny", AutoConfig.from_pretrained(tiny_checkpoints["bert"]))
    # Ranks of 64 x 64 are large enough for 8-bit state.
    recipe = replace(RECIPES["qlora_bert"], base_model=tiny_checkpoints["bert"], r=64)
    counted = memory_budget(recipe, "tiny")
    model = build_model(recipe, tiny_checkpoints["bert"])
    held = weight_bytes(model)
    assert counted.weights == {"fp32": held["float32"], "nf4": held["nf4"], "nf4 statistics": held["nf4 statistics"]}
    assert (counted.trainable, counted.total) == count_parameters(model)
    for optimizer, expected in (("adamw_torch", counted.adamw), ("paged_adamw_8bit", counted.adamw_8bit)):
        step = TrainingStep(model, "fp32", optimizer)
        step.run(step.random_batch(2, 8))
        states = list(step.optimizer.state.values())
        averages = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
        assert sum(state[name].nbytes for state in states for name in averages if name in state) == expected
    assert any(value.dtype == torch.uint8 for state in states for value in state.values() if torch.is_tensor(value))
