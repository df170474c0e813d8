from dataclasses import replace
from itertools import pairwise

import pytest
from torch.utils.flop_counter import FlopCounterMode

from helpers.benchmarks import ladder as ladders
from helpers.benchmarks.ladder import (
    SOURCES,
    Rung,
    ladder,
    ladder_texts,
    measure_rungs,
    method_recipe,
    methods_race,
    training_flops,
)
from helpers.benchmarks.timing import TrainingStep
from helpers.models import build_model, load_tokenizer
from helpers.profiles import PROFILES, Execution
from helpers.recipes import RECIPES

CPU, GPU = Execution("cpu", "bf16", "lean"), Execution("cuda", "bf16", "sdpa")


@pytest.mark.parametrize("name", ["lora_distilbert_qv", "lora_bert_sst2", "qlora_bert"])
def test_a_ladder_leads_from_the_source_s_execution_to_ours(name):
    rungs = ladder(name, CPU)
    first, last = rungs[0], rungs[-1]
    assert first.recipe == RECIPES[name] and last.recipe == RECIPES[name].improved()
    assert first.execution.precision == "fp32" and not first.group_by_length
    assert not first.execution.fast_dropout and not first.execution.last_layer_at_cls
    assert not first.execution.keep_memory and "freed memory kept" in [rung.change for rung in rungs]
    assert first.pad_to_longest == first.execution.gradient_checkpointing == (name == "qlora_bert")
    assert last.execution == CPU and last.group_by_length and last.pad_to_longest and last.nf4_compute is None
    assert len({rung.change for rung in rungs}) == len(rungs)
    for before, after in pairwise(rungs):
        assert replace(after, change="") != replace(before, change=""), f"{after.change} changes nothing"


def test_on_a_gpu_the_sources_half_precision_runs_and_the_dropout_step_is_left_out():
    rungs = ladder("qlora_bert", GPU)
    assert rungs[0].execution.precision == "fp16" and rungs[0].nf4_compute == "fp16"
    assert not any(any(word in rung.change for word in ("masks", "attention", "memory")) for rung in rungs)
    assert rungs[-1].execution.attention == "sdpa"
    for name in SOURCES:  # a T4 runs fp16 as the sources do: no step to another number format
        rungs = ladder(name, Execution("cuda", "fp16", "sdpa"))
        assert "fp16" not in [rung.change for rung in rungs]
        for before, after in pairwise(rungs):
            assert replace(after, change="") != replace(before, change=""), f"{name}: {after.change} changes nothing"


def test_the_race_is_of_methods_with_the_same_settings():
    recipes = {rung.change: rung.recipe for rung in methods_race(CPU)}
    assert recipes["lora"] == replace(recipes["qlora"], quantization=None)
    assert recipes["full_finetune"].method == "full_finetune" and recipes["full_finetune"].quantization is None
    assert method_recipe("qlora_checkpointing") == recipes["qlora"]
    query_value = method_recipe("lora_query_value")
    assert replace(query_value, target_modules=recipes["lora"].target_modules) == recipes["lora"]
    assert query_value.target_modules == ("query", "value")


@pytest.fixture
def recipe(tiny_checkpoints):
    base = replace(RECIPES["lora_bert_sst2"], base_model=tiny_checkpoints["bert"])
    return replace(base, per_device_train_batch_size=4)


def test_rungs_are_measured_on_the_batches_they_describe(recipe, tiny_checkpoints, fp32):
    texts = ["movie", "the movie was very good the end", "awful plot", "the plot was bad"] * 16
    padded = Rung("as written", recipe, fp32, pad_to_longest=False, group_by_length=False)
    longest = Rung("to the longest", recipe, fp32, group_by_length=False)
    grouped = Rung("by length", recipe, fp32)
    encoded = load_tokenizer(tiny_checkpoints["bert"])(texts)["input_ids"]
    shapes = {}
    for rung in (padded, longest, grouped):
        runner = ladders._Runner(rung, encoded, tiny_checkpoints["bert"], 16)
        shapes[rung.change] = {tuple(batch["input_ids"].shape): count for batch, count in runner.batches}
        samples, operations = runner.measure(0.01)
        assert samples > 0 and operations > 0
    assert shapes["as written"] == {(4, 16): 8}
    assert shapes["to the longest"] == {(4, 9): 8}
    assert sum(shapes["by length"].values()) == 8
    assert sum(tokens * count for (_, tokens), count in shapes["by length"].items()) < 0.8 * 8 * 9
    rows = measure_rungs([padded, grouped], texts, tiny_checkpoints["bert"], 16, repeats=3, seconds=0.01)
    assert [row["change"] for row in rows] == ["as written", "by length"]
    assert rows[0]["ratio"] == 1 and rows[1]["ratio"] == rows[1]["samples_per_second"] / rows[0]["samples_per_second"]
    assert all(len(row["windows"]) == 3 and row["samples_per_second"] in row["windows"] for row in rows)
    assert all(0 < row["matmul_share"] < 1 for row in rows)


def test_windows_see_the_same_lengths_and_these_are_those_of_all_texts(recipe, tiny_checkpoints, fp32, monkeypatch):
    texts = ladder_texts(recipe, PROFILES["quick"], 512)
    encoded = load_tokenizer(tiny_checkpoints["bert"])(texts)["input_ids"]
    grouped = ladders._Runner(Rung("by length", recipe, fp32), encoded, tiny_checkpoints["bert"], 128)
    monkeypatch.setattr(ladders._Runner, "_timed", lambda self, batch: batch["input_ids"].numel())
    speed, operations = grouped.measure(1)
    assert grouped.measure(1) == (speed, operations)
    assert grouped.measure(1_000_000) == pytest.approx((speed, operations))
    monkeypatch.setattr(ladders, "WINDOW_BATCHES", 10_000)
    all_batches = ladders._Runner(grouped.rung, encoded, tiny_checkpoints["bert"], 128)
    assert len(all_batches.batches) > 16 and all_batches.measure(1)[0] == pytest.approx(speed, rel=0.05)


def test_a_rung_that_overlaps_with_the_one_before_is_within_scatter(recipe, tiny_checkpoints, fp32, monkeypatch):
    windows = iter([(10, 1), (11, 1), (20, 1), (12, 1), (10.5, 1), (21, 1)])  # two rounds of three rungs
    monkeypatch.setattr(ladders._Runner, "measure", lambda self, seconds: next(windows))
    rungs = [Rung(name, recipe, fp32, group_by_length=False) for name in ("first", "second", "third")]
    rows = measure_rungs(rungs, ["the movie"] * 8, tiny_checkpoints["bert"], 16, repeats=2)
    assert [row["windows"] for row in rows] == [[10, 12], [11, 10.5], [20, 21]]
    assert [row["within_scatter"] for row in rows] == [False, True, False]


def test_operations_are_those_that_torch_counts_at_any_shape(recipe, tiny_checkpoints, fp32):
    flops = training_flops(recipe, tiny_checkpoints["bert"])
    step = TrainingStep(build_model(recipe, tiny_checkpoints["bert"], fp32), fp32)
    with FlopCounterMode(display=False) as counter:
        step.run(*step.random_batch(5, 24))
    assert flops(5, 24) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    recomputing = replace(recipe, quantization="nf4")
    assert training_flops(recomputing, tiny_checkpoints["bert"])(5, 24) == pytest.approx(flops(5, 24), rel=1e-6)
