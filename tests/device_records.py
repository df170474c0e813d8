"""Made-up records of devices that are not at hand, in the form in which `helpers.benchmarks` writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

from helpers.benchmarks.execution import _choice
from helpers.benchmarks.ladder import SOURCES, ladder, methods_race
from helpers.benchmarks.records import device_folder, device_record
from helpers.benchmarks.steps import StepSpec, step_specs
from helpers.profiles import Execution

# Name and execution of each device. fp16 and bf16 are 2.5 and 3 times as fast as fp32 on all of them.
DEVICES = {
    "t4": ("Tesla T4", Execution("cuda", "fp16", "sdpa")),
    "a100": ("NVIDIA A100-SXM4-40GB", Execution("cuda", "bf16", "sdpa")),
    "cpu": ("AMD EPYC (2 threads)", Execution("cpu", "bf16", "lean")),
}
FORMATS = {"fp32": 1.0, "fp16": 2.5, "bf16": 3.0}
METHODS = {"full_finetune": 1.0, "lora": 2.5, "lora_query_value": 2.5, "qlora": 2.0, "qlora_checkpointing": 1.4}
PEAKS = {"full_finetune": 2e9, "lora": 0.8e9, "lora_query_value": 0.7e9, "qlora": 0.6e9, "qlora_checkpointing": 0.5e9}
SPREAD = (0.99, 1.0, 1.01)  # the windows, over their median


@contextmanager
def as_device(name: str) -> Iterator[Execution]:
    """This process takes itself to be on the device `name`, as far as asking torch goes; gives its execution."""
    label, execution = DEVICES[name]
    with (
        patch("torch.cuda.is_available", lambda: execution.device == "cuda"),
        patch("torch.cuda.is_bf16_supported", lambda including_emulation: name == "a100"),
        patch("torch.cuda.get_device_name", lambda: label),
        patch("helpers.profiles.processor_name", lambda: "AMD EPYC"),
        patch("torch.get_num_threads", lambda: 2),
    ):
        yield execution


def step_row(spec: StepSpec) -> dict[str, object]:
    """A row of `steps`; what is not a device's own execution changes the speed of LoRA alone, so that mixing shows."""
    rate = 100 * FORMATS[spec.precision] * METHODS[spec.method] / spec.tokens
    if spec.method == "lora":
        rate *= (0.2 if spec.attention == "eager" else 1) * (0.5 if spec.optimizer != "adamw_torch" else 1)
    peak = PEAKS[spec.method] * (2 if spec.precision == "fp32" else 1)
    return {
        **asdict(spec),
        "samples_per_second": rate,
        "windows": [rate * spread for spread in SPREAD],
        "scatter": 0.01,
        "peak_memory_bytes": int(peak),
        "peak_memory_method": "made up",
        "libraries_bytes": 0,
        "weights_bytes": int(peak / 2),
        "gradients_bytes": int(peak / 8),
        "optimizer_bytes": int(peak / 4),
        "trainable_params": 1,
        "total_params": 2,
        "matmul_share": 0.5,
    }


def write_device(root: Path, name: str) -> Path:
    """Writes all records of the device `name` below `root` (a data folder); returns their folder."""
    with as_device(name) as execution, patch("helpers.profiles.DATA_DIR", root):
        records = [
            device_record("steps", execution, _steps_settings(execution), [*map(step_row, step_specs(execution))]),
            device_record("ladder", execution, {}, _ladders(execution)),
            device_record("prediction", execution, {}, _prediction()),
            device_record("accuracy", execution, {}, _accuracy(execution)),
            device_record("adapter", execution, {}, [_adapter()]),
            _execution(execution),
        ]
        for record in records:
            record.save(device_folder(execution))
        return device_folder(execution)


def _steps_settings(execution: Execution) -> dict[str, object]:
    return {"matmul_flops_per_second": {"fp32": 1e12, execution.precision: 3e12}, "failed": []}


def _ladders(execution: Execution) -> list[dict]:
    rows = []
    for name in (*SOURCES, "methods"):
        rungs = methods_race(execution) if name == "methods" else ladder(name, execution)
        for index, rung in enumerate(rungs):
            rate = 10 * 1.5**index if index != 2 else 10 * 1.5  # the third step gains nothing
            rows.append(
                {
                    "ladder": name,
                    "change": rung.change,
                    "samples_per_second": rate,
                    "windows": [rate * spread for spread in SPREAD],
                    "within_scatter": index == 2,
                    "matmul_share": 0.1,
                    "precision": rung.execution.precision,
                    "attention": rung.execution.attention,
                    "batch_size": 16,
                    "ratio": rate / 10,
                }
            )
    return rows


def _prediction() -> list[dict]:
    return [
        {"dataset": "imdb", "texts": 100, "method": method, "texts_per_second": rate, "ratio": rate, "seconds": [1.0]}
        for method, rate in (("pipeline, one at a time", 1.0), ("SentimentClassifier.predict", 2.0))
    ]


def _accuracy(execution: Execution) -> list[dict]:
    runs = [("as_written", "fastest", execution.precision, 55), ("improved", "source's", "fp32", 80)]
    runs.append(("improved", "fastest", execution.precision, 80))
    if execution.device == "cuda":
        runs += [("improved", name, name, 80) for name in ("fp32", "fp16") if name != execution.precision]
        runs += [(method, name, name, 80) for method in ("full_finetune", "qlora") for name in ("fp32", "fp16")]
    return [
        {
            "settings": settings,
            "execution": label,
            "precision": precision,
            "attention": execution.attention,
            "accuracy": right / 100,
            "accuracy_ci95": [right / 100 - 0.1, right / 100 + 0.1],
            "correct": "1" * right + "0" * (100 - right),
        }
        for settings, label, precision, right in runs
    ]


def _adapter() -> dict[str, object]:
    counts = {"base_tensors": 105, "changed_base_tensors": 0}
    return {**counts, "text": "Wonderful!", "pipeline_label": "POSITIVE", "pipeline_score": 0.99}


def _execution(execution: Execution):
    rows = [
        {
            "batch_size": batch,
            "tokens": tokens,
            "precision": precision,
            "attention": attention,
            "threads": 2,
            "chosen": (precision, attention) == (execution.precision, execution.attention),
            "rows": batch,
            "windows": [rate * spread for spread in SPREAD],
            "stopped": None,
            "samples_per_second": rate,
            "scatter": 0.01,
            "settled": True,
        }
        for batch, tokens in ((16, 128), (32, 256))
        for precision, rate in FORMATS.items()
        for attention in ("eager", "lean", "sdpa")
    ]
    choice = [_choice(rows, shape) for shape in ((16, 128), (32, 256))]
    return device_record("execution", execution, {"choice": choice}, rows)
