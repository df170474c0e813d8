import pytest

from helpers import benchmarks
from helpers.benchmarks import StepSpec, benchmark_steps, device_folder, in_fresh_process, measure_step, step_specs
from helpers.profiles import Execution

GPU = Execution("cuda", "bf16", "sdpa")


def test_every_method_is_measured_at_two_sizes_two_batches_and_two_lengths(fp32):
    specs = step_specs(fp32)
    assert len(specs) == len(set(specs)) == 2 * 4 * 2 * 2
    assert {spec.tokens for spec in specs} == {128, 256}


def test_a_gpu_adds_512_tokens_precisions_attention_and_the_paged_optimizer():
    specs = step_specs(GPU)
    assert {spec.tokens for spec in specs} == {128, 256, 512}
    assert {spec.precision for spec in specs} == {"fp32", "fp16", "bf16"}
    assert {spec.attention for spec in specs} == {"sdpa", "eager"}
    assert {spec.optimizer for spec in specs} == {"adamw_torch", "paged_adamw_8bit"}
    assert len(specs) == len(set(specs))


@pytest.mark.parametrize("method", benchmarks.METHODS)
def test_a_step_reports_what_it_held(method, tiny_checkpoints):
    spec = StepSpec("tiny", method, 2, 16, "fp32", "eager")
    row = measure_step(spec, "cpu", tiny_checkpoints["bert"], min_seconds=0)
    assert row["gradients_bytes"] == 4 * row["trainable_params"]
    assert row["optimizer_bytes"] >= 8 * row["trainable_params"]
    assert (row["trainable_params"] == row["total_params"]) == (method == "full_finetune")
    assert min(row["peak_memory_bytes"], row["libraries_bytes"]) > 50e6
    assert row["samples_per_second"] > 0 and 0 < row["matmul_share"] < 1
    if method.startswith("qlora"):
        assert row["weights_bytes"] < 4 * row["total_params"]


def test_steps_run_in_processes_of_their_own_and_are_written_with_their_device(tiny_checkpoints, fp32, monkeypatch):
    monkeypatch.setitem(benchmarks.SIZES, "tiny", tiny_checkpoints["bert"])
    record = benchmark_steps(fp32, [StepSpec("tiny", "lora", 2, 16, "fp32", "eager")])
    assert record.rows[0]["method"] == "lora" and record.command == "python -m helpers.benchmarks steps"
    assert record.settings["matmul_flops_per_second"]["fp32"] > 1e9


def test_a_failing_measurement_says_what_failed():
    with pytest.raises(RuntimeError, match=r"call_step.*failed"):
        in_fresh_process("call_step", spec={}, device="cpu", base_model="nothing")


def test_records_are_found_by_device_and_an_unknown_benchmark_is_refused(tmp_path, monkeypatch, fp32, capsys):
    monkeypatch.setattr(benchmarks, "DATA_DIR", tmp_path / "Data")
    assert device_folder(fp32).parent == tmp_path / "Data" / "cpu" and " " not in device_folder(fp32).name
    assert benchmarks.load_benchmarks("steps") == []
    record = benchmarks.StudyRecord("steps", "x", None, "cpu", {}, [])
    record.save(device_folder(fp32))
    assert benchmarks.load_benchmarks("steps") == [record]
    with pytest.raises(SystemExit):
        benchmarks.main(["speed"])
    assert "there is ladder, prediction, steps" in capsys.readouterr().err
