from dataclasses import asdict
from random import Random

import pytest
import torch
from device_records import as_device

from helpers import profiles, results
from helpers.benchmarks import __main__ as benchmarks_command
from helpers.benchmarks import end_to_end, execution, padding, steps
from helpers.benchmarks.execution import benchmark_execution
from helpers.benchmarks.fresh import in_fresh_process
from helpers.benchmarks.padding import Texts, benchmark_padding, measure_padding
from helpers.benchmarks.records import device_folder, device_record, find_benchmarks
from helpers.benchmarks.steps import StepSpec, benchmark_steps, measure_step, step_specs
from helpers.benchmarks.timing import TrainingStep


def test_every_method_is_measured_at_two_sizes_two_batches_and_two_lengths(fp32):
    specs = step_specs(fp32)
    assert len(specs) == len(set(specs)) == 2 * (len(steps.METHODS) + 1) * 2 * 2
    assert {spec.tokens for spec in specs} == {128, 256}


@pytest.mark.parametrize("method", steps.METHODS)
def test_a_step_reports_what_it_held(method, tiny_checkpoints):
    spec = StepSpec("tiny", method, 2, 16, "fp32", "eager")
    row = measure_step(spec, "cpu", tiny_checkpoints["bert"], min_seconds=0)
    assert row["gradients_bytes"] == 4 * row["trainable_params"]
    assert row["optimizer_bytes"] >= 8 * row["trainable_params"]
    assert (row["trainable_params"] == row["total_params"]) == (method == "full_finetune")
    assert min(row["peak_memory_bytes"], row["libraries_bytes"]) > 50e6
    assert len(row["windows"]) == 3 and row["samples_per_second"] in row["windows"] and row["scatter"] >= 0
    assert row["samples_per_second"] > 0 and 0 < row["matmul_share"] < 1
    if method.startswith("qlora"):
        assert row["weights_bytes"] < 4 * row["total_params"]


def test_steps_run_in_processes_of_their_own_and_are_written_with_their_device(tiny_checkpoints, fp32, monkeypatch):
    monkeypatch.setitem(steps.SIZES, "tiny", tiny_checkpoints["bert"])
    record = benchmark_steps(fp32, [StepSpec("tiny", "lora", 2, 16, "fp32", "eager")])
    assert record.rows[0]["method"] == "lora" and record.command == "python -m helpers.benchmarks steps"
    assert record.settings["matmul_flops_per_second"]["fp32"] > 1e9 and record.settings["failed"] == []
    assert record.settings["execution"] == {"device": "cpu", "precision": "fp32", "attention": "eager"}


def test_on_a_cpu_the_whole_benchmark_comes_in_rounds(fp32, monkeypatch):
    """What slows the machine for a while is then in every method's scatter, not in one method's speed."""
    specs = [StepSpec("tiny", method, 2, 16, "fp32", "eager") for method in ("lora", "full_finetune")]
    asked = []

    def measure(function, spec, n_windows, flops, **_):
        asked.append((spec["method"], n_windows, flops))
        rate = 10.0 * len(asked)
        return {
            **spec,
            "windows": [rate],
            "samples_per_second": rate,
            "scatter": 0.0,
            "peak_memory_bytes": len(asked),
            "matmul_share": rate,
        }

    monkeypatch.setattr(steps, "in_fresh_process", measure)
    monkeypatch.setattr(steps, "step_specs", lambda execution: specs)
    monkeypatch.setattr(steps, "training_flops", lambda *names: lambda *shape: 7.0)
    monkeypatch.setitem(steps.SIZES, "tiny", "any")
    lora, full = benchmark_steps(fp32).rows
    assert asked == [("lora", 1, 7.0), ("full_finetune", 1, 7.0)] * 3
    assert lora["windows"] == [10.0, 30.0, 50.0] and full["windows"] == [20.0, 40.0, 60.0]
    assert (lora["samples_per_second"], lora["peak_memory_bytes"], lora["matmul_share"]) == (30.0, 3, 30.0)
    assert lora["scatter"] == pytest.approx(20 / 30)


def test_when_no_step_can_be_measured_the_reason_is_said(fp32, monkeypatch):
    def fail(function, **arguments):
        raise RuntimeError("call_step failed:\nTraceback\ntorch.OutOfMemoryError: CUDA out of memory.")

    monkeypatch.setattr(steps, "in_fresh_process", fail)
    monkeypatch.setattr(steps, "training_flops", lambda *names: lambda *shape: 7.0)
    monkeypatch.setitem(steps.SIZES, "tiny", "any")
    with pytest.raises(RuntimeError, match=r"None of the 1 steps could be measured: torch\.OutOfMemoryError"):
        benchmark_steps(fp32, [StepSpec("tiny", "lora", 2, 16, "fp32", "eager")])


def test_every_multiple_is_trained_in_each_round_and_compared_with_padding_to_the_longest(fp32, monkeypatch):
    asked = []

    def measure(function, texts, multiple, execution):
        asked.append((texts["dataset"], multiple))
        count = len(asked)
        return {"samples_per_second": 10.0 * count, "peak_memory_bytes": 100 - count, "peak_memory_method": "made up"}

    monkeypatch.setattr(padding, "in_fresh_process", measure)
    monkeypatch.setattr(padding, "TEXTS", [Texts("imdb", 16, 2), Texts("rotten_tomatoes", 8, 2)])
    record = benchmark_padding(fp32)
    assert asked == 2 * [("imdb", 1), ("imdb", 32), ("rotten_tomatoes", 1), ("rotten_tomatoes", 32)]
    longest, padded = record.rows[:2]
    assert longest["windows"] == [10.0, 50.0] and longest["ratio"] == 1 and longest["multiple"] == 1
    assert padded["samples_per_second"] == 40.0 and padded["ratio"] == pytest.approx(40 / 30)
    assert padded["peaks"] == [98, 94] and padded["peak_memory_bytes"] == 96
    assert record.command == "python -m helpers.benchmarks padding"


def test_a_padded_training_is_measured_on_real_texts_in_batches_of_the_multiple(fp32, monkeypatch):
    shapes = []

    class Step(TrainingStep):
        def run(self, batch, labels):
            shapes.append(tuple(batch["input_ids"].shape))
            super().run(batch, labels)

    monkeypatch.setattr(padding, "TrainingStep", Step)
    row = measure_padding(asdict(Texts("rotten_tomatoes", 64, 2)), 16, asdict(fp32))
    assert len(shapes) == 2 and {rows for rows, _ in shapes} == {16}
    assert {tokens % 16 for _, tokens in shapes} == {0} and max(tokens for _, tokens in shapes) <= 64
    assert row["samples_per_second"] > 0 and row["peak_memory_bytes"] > 50e6


@pytest.mark.parametrize("device", ["t4", "a100", "cpu"])
def test_a_gpu_trains_every_method_in_both_formats_for_their_accuracy(device, monkeypatch):
    trained, splits = [], {"train": [0] * 4, "test": [0] * 2}
    monkeypatch.setattr(end_to_end, "load_splits", lambda *given: splits)
    monkeypatch.setattr(end_to_end, "tokenize_splits", lambda *given: (None, splits))
    monkeypatch.setattr(end_to_end, "build_model", lambda *given: None)
    monkeypatch.setattr(end_to_end, "class_probabilities", lambda *given: torch.ones(2, 2))
    monkeypatch.setattr(end_to_end, "scores", lambda *given: {"accuracy": 1.0})
    monkeypatch.setattr(end_to_end, "fit", lambda model, tokenizer, recipe, *rest: trained.append((recipe, rest[2])))
    with as_device(device) as used:
        rows = end_to_end.benchmark_accuracy(used).rows
    formats = {("improved", "fastest"), ("improved", "source's"), ("as_written", "fastest")}
    if used.device == "cuda":
        formats |= {(method, name) for method in ("full_finetune", "qlora") for name in ("fp32", "fp16")}
        formats |= {("improved", name) for name in {"fp32", "fp16"} - {used.precision}}
    assert {(row["settings"], row["execution"]) for row in rows} == formats and len(rows) == len(formats)
    for row, (recipe, trained_on) in zip(rows, trained, strict=True):
        assert row["precision"] == trained_on.precision
        assert (recipe.method == "full_finetune") == (row["settings"] == "full_finetune")
        assert (recipe.quantization == "nf4") == (row["settings"] == "qlora")


def test_a_failing_measurement_says_what_failed():
    with pytest.raises(RuntimeError, match=r"call_step.*failed"):
        in_fresh_process(steps.call_step, spec={}, device="cpu", base_model="nothing")


def test_records_are_found_by_device_and_an_unknown_benchmark_is_refused(tmp_path, monkeypatch, fp32, capsys):
    monkeypatch.setattr(profiles, "COMMITTED", tmp_path / "Data")
    monkeypatch.setattr(profiles, "DATA_DIR", tmp_path / "drive")
    assert device_folder(fp32).parent == tmp_path / "drive" / "cpu" and " " not in device_folder(fp32).name
    assert find_benchmarks("steps") == []
    record = results.StudyRecord("steps", "x", None, "cpu", {}, [])
    record.save(device_folder(fp32))
    assert find_benchmarks("steps") == []  # of an older form: it does not name its execution
    record = device_record("steps", fp32, {}, [])
    record.save(device_folder(fp32))
    assert [found for _, found in find_benchmarks("steps")] == [record]
    with pytest.raises(SystemExit):
        benchmarks_command.main(["speed"])
    assert "there is execution, ladder, padding, prediction, steps" in capsys.readouterr().err


KINDS = {(precision, attention) for precision in ("fp32", "bf16", "fp16") for attention in ("eager", "lean", "sdpa")}


def test_every_execution_is_raced_and_the_threads_are_as_before(tiny_checkpoints, fp32, monkeypatch, capsys):
    monkeypatch.delenv("PRECISION", raising=False)
    threads = torch.get_num_threads()
    record = benchmark_execution(fp32, 0, ((2, 8), (3, 16)), tiny_checkpoints["distilbert"], 0)
    assert torch.get_num_threads() == threads
    assert len(record.rows) == 2 * len(KINDS) * len({1, max(1, threads // 2), threads})
    assert {(row["precision"], row["attention"]) for row in record.rows} == KINDS
    chosen = [row for row in record.rows if row["chosen"]]
    assert [(row["precision"], row["attention"], row["threads"]) for row in chosen] == [("fp32", "eager", threads)] * 2
    assert all(row["windows"] and row["samples_per_second"] > 0 for row in record.rows)
    assert [(shape["batch_size"], shape["tokens"]) for shape in record.settings["choice"]] == [(2, 8), (3, 16)]
    assert "<- chosen" in capsys.readouterr().out
    monkeypatch.setenv("PRECISION", "fp32")
    alone = benchmark_execution(fp32, 0, ((2, 8),), tiny_checkpoints["distilbert"], 0)
    assert {row["precision"] for row in alone.rows} == {"fp32"} and "fp32 alone" in alone.device


@pytest.fixture
def race(tiny_checkpoints, fp32, monkeypatch):
    """The race of `benchmark_execution` at one shape, with speeds that are made up, and who was timed on what."""
    monkeypatch.delenv("PRECISION", raising=False)
    timed = []

    def run(speed, seconds=240.0):
        def time(candidate, step, min_seconds):
            timed.append((candidate.precision, candidate.rows))
            return speed(candidate)

        monkeypatch.setattr(execution._Candidate, "time", time)
        record = benchmark_execution(fp32, seconds, ((4, 8),), tiny_checkpoints["distilbert"])
        rows = {(row["precision"], row["attention"]): row for row in record.rows if row["threads"] == 1}
        return record, rows, timed

    return run


def test_what_cannot_win_is_measured_less_and_says_so(race):
    rates = {"bf16": 100.0, "fp32": 45.0, "fp16": 5.0}
    record, rows, timed = race(lambda candidate: rates[candidate.precision])
    assert rows["fp16", "lean"]["stopped"] == "under a tenth of the best: timed on one row"
    assert rows["fp16", "lean"]["rows"] == 1 and not rows["fp16", "lean"]["settled"] and ("fp16", 4) not in timed
    assert rows["fp32", "lean"]["stopped"] == "under half of the best: 2 windows"
    assert rows["bf16", "lean"]["stopped"] is None and rows["bf16", "lean"]["settled"]
    (choice,) = record.settings["choice"]
    assert choice["ratio"] == 0.45 and not choice["within_ten_percent"] and choice["best"].startswith("bf16")


def test_windows_go_on_until_the_medians_are_settled_or_the_time_is_up(race):
    noisy = Random(0)
    record, *_ = race(lambda candidate: noisy.uniform(70, 130))
    contenders = [row for row in record.rows if not row["stopped"]]
    assert all(row["settled"] and row["scatter"] < 0.1 for row in contenders)
    assert all(len(row["windows"]) > 5 for row in contenders)
    record, *_ = race(lambda candidate: noisy.uniform(70, 130), seconds=0)
    assert all(len(row["windows"]) == 2 and not row["settled"] for row in record.rows)
    assert not record.settings["choice"][0]["settled"]


def test_the_chosen_one_is_never_given_up(race):
    chosen = [row for row in race(lambda candidate: 1.0 if candidate.chosen else 100.0)[0].rows if row["chosen"]]
    assert chosen[0]["stopped"] is None and chosen[0]["rows"] == 4 and chosen[0]["settled"]
