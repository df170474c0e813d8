"""What measures memory and speed: the step, what is measured, where it is written, and the figures of it."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from test_profiles import pretend
from transformers import Trainer, default_data_collator

from helpers.models import load_classifier, load_tokenizer
from helpers.profiles import PROFILES
from helpers.recipes import RECIPES
from helpers.trainer import training_arguments
from lab import benchmarks, devices, ladder, steps
from lab.budget import memory_budget
from lab.devices import device_folder, device_record, find_records, main_rows, record_to_show
from lab.figures_costs import plot_efficiency_comparison, plot_memory_breakdown, plot_speed_ladder
from lab.ladder import Rung, measure_rungs, method_recipe
from lab.steps import StepSpec, benchmark_steps, measure_step, step_specs
from lab.timing import TrainingStep


@pytest.fixture(autouse=True)
def cpu_in_fp32(monkeypatch):
    monkeypatch.setenv("PRECISION", "fp32")


def test_a_step_is_training_s_own(tiny_checkpoints, tmp_path):
    models = [load_classifier(tiny_checkpoints["bert"], model_dropout=0.0, seed=1) for _ in range(2)]
    for model in models:
        model.classifier.weight.data *= 100  # so that one gradient is clipped and the other is not
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 18, (8, 12), generator=generator)
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": [0, 0, 0, 1] * 2}
    recipe = replace(RECIPES["lora_bert_sst2"], per_device_train_batch_size=4, num_train_epochs=1, weight_decay=0.0)
    changes = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "eval_strategy": "no"}
    changes |= {"save_strategy": "no", "load_best_model_at_end": False, "learning_rate": 1e-3, "disable_tqdm": True}
    args = training_arguments(recipe, PROFILES["quick"], tmp_path, **changes)
    trainer = Trainer(models[0], args, default_data_collator, Dataset.from_dict(rows))
    trainer.train()
    step = TrainingStep(models[1], "fp32", recipe.optim, learning_rate=1e-3)
    for start in (0, 4):
        batch = {"input_ids": ids[start : start + 4], "attention_mask": torch.ones(4, 12, dtype=torch.long)}
        step.run(batch | {"labels": torch.tensor([0, 0, 0, 1])})
    by_name = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(parameter, by_name[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    theirs = trainer.optimizer.optimizer.defaults
    assert theirs["fused"] and all(step.optimizer.defaults[k] == theirs[k] for k in ("fused", "betas", "eps"))
    assert all(parameter.grad is None for parameter in models[1].parameters())


def test_checkpointing_is_all_that_its_name_adds():
    assert method_recipe("qlora_checkpointing") == replace(method_recipe("qlora"), gradient_checkpointing=True)


@pytest.mark.parametrize("method", [*steps.METHODS, "qlora_as_written", "LoRA+"])
def test_a_step_reports_what_it_held(method, tiny_checkpoints):
    row = measure_step(StepSpec("tiny", method, 2, 16, "fp32"), tiny_checkpoints["bert"], min_seconds=0)
    assert row["gradients_bytes"] == 4 * row["trainable_params"]
    assert row["optimizer_bytes"] >= (8 if method != "qlora_as_written" else 2) * row["trainable_params"]
    assert (row["trainable_params"] == row["total_params"]) == (method == "full_finetune")
    assert min(row["peak_memory_bytes"], row["libraries_bytes"]) > 50e6 and row["samples_per_second"] > 0
    assert (row["weights_bytes"] < 4 * row["total_params"]) == method.startswith("qlora")
    assert method != "LoRA+" or 4 * row["trainable_params"] < row["saved_bytes"] < 8 * row["trainable_params"]
    assert row["optimizer"] == ("paged_adamw_8bit" if method == "qlora_as_written" else "adamw_torch_fused")


def test_the_benchmark_comes_in_rounds_and_a_step_that_fails_has_no_row(monkeypatch, capsys):
    specs = [StepSpec("tiny", method, 2, 16, "fp32") for method in ("lora", "full_finetune", "qlora")]
    asked = []

    def measure(function, spec, base_model):
        assert function is measure_step
        asked.append(spec.method)
        if spec.method == "qlora":
            raise RuntimeError("CUDA out of memory.")
        return {**asdict(spec), "samples_per_second": 10.0 * len(asked), "peak_memory_bytes": len(asked)}

    monkeypatch.setattr(steps, "in_fresh_process", measure)
    monkeypatch.setitem(steps.SIZES, "tiny", "any")
    record = benchmark_steps(specs)
    lora, full = record.rows
    assert record.command == "python -m lab.benchmarks steps" and "clipped" in record.settings["step"]
    assert record.settings["execution"] == {"device": "cpu", "precision": "fp32"} and "fp32 alone" in record.device
    assert asked == ["lora", "full_finetune", "qlora", *["lora", "full_finetune"] * 4]
    assert lora["windows"] == [10.0, 40.0, 60.0, 80.0, 100.0] and full["windows"] == [20.0, 50.0, 70.0, 90.0, 110.0]
    assert (lora["samples_per_second"], lora["peak_memory_bytes"]) == (60.0, 6)
    assert "failed: CUDA out of memory." in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="None of the 1 steps"):
        benchmark_steps(specs[2:])


@pytest.mark.parametrize("name", ladder.TOKENS)
def test_a_ladder_leads_from_the_source_to_ours_one_change_a_step(name):
    rungs = ladder.ladder(name, "bf16")
    first, last, is_qlora = rungs[0], rungs[-1], name == "qlora_bert"
    assert first.recipe == replace(RECIPES[name], gradient_checkpointing=is_qlora)
    assert last.recipe == RECIPES[name].improved() and last.nf4_compute is None
    assert (first.precision, first.fast, first.group_by_length) == ("fp32", False, False)
    assert (last.precision, last.fast, last.group_by_length) == ("bf16", True, True)
    for before, after in pairwise(map(asdict, rungs)):
        changed = {field for field in after if after[field] != before[field]} - {"change", "nf4_compute"}
        assert len(changed) == 1 or changed == {"pad_to_longest", "group_by_length"}, after["change"]
    assert ("no gradient checkpointing" in [rung.change for rung in rungs]) == is_qlora


def test_on_a_gpu_all_formats_are_measured_and_a_ladder_begins_at_the_sources_fp16(monkeypatch):
    monkeypatch.delenv("PRECISION")
    pretend(monkeypatch, cuda=True, bf16=True)
    specs = step_specs()
    assert {spec.precision for spec in specs} == {"fp32", "fp16", "bf16"} and len(specs) == len(set(specs))
    rungs = ladder.ladder("qlora_bert", "bf16")
    assert rungs[0].precision == "fp16" and rungs[0].nf4_compute == "fp16"
    assert "fp16" not in [rung.change for rung in ladder.ladder("lora_bert_sst2", "fp16")]


@pytest.fixture
def recipe(tiny_checkpoints):
    return replace(RECIPES["lora_bert_sst2"], base_model=tiny_checkpoints["bert"], per_device_train_batch_size=4)


def test_rungs_are_measured_on_the_batches_they_describe(recipe, tiny_checkpoints):
    texts = ["movie", "the movie was very good the end", "awful plot", "the plot was bad"] * 16
    encoded, shapes = load_tokenizer(tiny_checkpoints["bert"])(texts)["input_ids"], []
    padded = Rung("as written", recipe, "fp32", pad_to_longest=False, group_by_length=False)
    for rung in (padded, replace(padded, pad_to_longest=True), Rung("by length", recipe, "fp32")):
        runner = ladder._Runner(rung, encoded, tiny_checkpoints["bert"], 16)
        shapes.append([tuple(batch["input_ids"].shape) for batch in runner.batches])
    assert shapes[:2] == [[(4, 16)] * 4, [(4, 9)] * 4]
    assert sum(tokens for _, tokens in shapes[2]) < 0.8 * 4 * 9


def test_a_rung_that_overlaps_with_the_one_before_is_within_scatter(recipe, tiny_checkpoints, monkeypatch):
    windows = iter([10, 11, 20, 12, 10.5, 22])  # two rounds of three rungs
    monkeypatch.setattr(ladder._Runner, "measure", lambda self, seconds: next(windows))
    rungs = [Rung(name, recipe, "fp32", group_by_length=False) for name in ("first", "second", "third")]
    rows = measure_rungs(rungs, ["the movie"] * 16, tiny_checkpoints["bert"], 16, repeats=2)
    assert [row["windows"] for row in rows] == [[10, 12], [11, 10.5], [20, 22]]
    assert (rows[2]["change"], rows[2]["samples_per_second"], rows[2]["ratio"]) == ("third", 21, 21 / 11)
    assert [row["within_scatter"] for row in rows] == [False, True, False]


def test_records_are_found_by_device_the_data_folder_s_before_the_repository_s(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "COMMITTED", tmp_path / "Data")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "drive"))
    with pytest.raises(FileNotFoundError, match=r"Run: python -m lab\.benchmarks ladder"):
        record_to_show("ladder")
    gpus, own = device_record("steps", {}, []), device_record("steps", {"drive": True}, [])
    gpus.save(tmp_path / "Data" / "gpu" / "tesla-t4")
    assert record_to_show("steps") == gpus, "another device's where this one has none"
    gpus.save(tmp_path / "Data" / "cpu" / device_folder().name)
    own.save(device_folder())
    assert [record for _, record in find_records("steps")] == [gpus, own] and record_to_show("steps") == own


def test_the_command_refuses_what_it_cannot_measure(capsys):
    for names, said in (
        (["speed"], "there is budget, steps, ladder, compile, methods, accuracy"),
        (["accuracy"], "on a GPU alone"),
    ):
        assert benchmarks.main(names) == 2 and said in capsys.readouterr().err
    assert benchmarks.main(["budget"]) == 0
    assert "591,362" in capsys.readouterr().out


def test_the_figures_of_04_keep_their_words_in_the_frame_and_draw_bars_from_zero():
    (_, gpu_steps), *_ = find_records("steps")
    rows = [row for row in main_rows(gpu_steps, size="bert-base") if row["tokens"] < 512]
    budgets = {name: memory_budget(method_recipe(name)) for name in ("full_finetune", "lora", "qlora")}
    at = [row for row in rows if (row["batch_size"], row["tokens"]) == (16, 128)]
    titles = ["one finding", "another", "a third"]
    figure = plot_efficiency_comparison(budgets, at, {"full_finetune": 440, "qlora": 55}, titles)
    assert [axes.get_title() for axes in figure.axes] == titles
    memory = plot_memory_breakdown(rows, "a fourth")
    assert len(memory.axes) == 4 and memory.legends[0].get_title().get_text() == "a fourth"
    ladders = find_records("ladder")[0][1]
    speed = plot_speed_ladder(ladders, {"lora_bert_sst2": "The SST-2 post", "qlora_bert": "bert-qlora"})
    for drawn in (figure, memory, speed):
        drawn.canvas.draw()
        box, (width, height) = drawn.get_tightbbox(), drawn.get_size_inches()
        assert min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02
        assert all(axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0 for axes in drawn.axes)
