"""Memory and speed of one training step, by method, size and shape of batch; on a CPU each in a process of its own."""

import gc
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForSequenceClassification, set_seed

from helpers.base.memory import peak_memory, reset_peak_memory, resident_memory
from helpers.base.paths import shown
from helpers.benchmarks.budget import REAL_CONFIGS
from helpers.benchmarks.fresh import in_fresh_process
from helpers.benchmarks.ladder import method_recipe, training_flops
from helpers.benchmarks.records import COMMAND, benchmark_to_show, device_folder, device_record, own_benchmark
from helpers.benchmarks.timing import TrainingStep, matmul_peak, scatter, timed_window
from helpers.models import build_model, count_parameters, weight_bytes
from helpers.profiles import EMBEDDED_BERT, Execution, number_formats
from helpers.results import StudyRecord

METHODS = ("full_finetune", "lora", "qlora", "qlora_checkpointing")
SIZES = {"bert-base": None, "embedded": EMBEDDED_BERT}  # None: random weights of bert-base-uncased's shape
WINDOWS = 3  # timed, a measurement; where it comes in rounds, one in each
MIN_SECONDS = {"cpu": 1.0, "cuda": 0.3}  # that each lasts at least, and at least one batch


@dataclass(frozen=True)
class StepSpec:
    """One training step to measure: on random tokens, every row `tokens` long, `improved()` settings of bert-qlora.

    Frozen weights are stored as training stores them: fp32, and packed by QLoRA.
    """

    size: str
    method: str
    batch_size: int
    tokens: int
    precision: str
    attention: str
    optimizer: str = "adamw_torch"


def step_specs(execution: Execution) -> list[StepSpec]:
    """What `steps` measures here: every method at both sizes, two batch sizes and two lengths; on a GPU also the rest.

    LoRA is also measured with adapters on query and value alone, as the write-ups have them. On a GPU there are two
    shapes of 512 tokens; the other number formats that it has and paged 8-bit AdamW are compared at 16 x 256 tokens of
    BERT-base.
    """
    gpu = execution.device == "cuda"
    shapes = [(batch, tokens) for batch in (4, 16) for tokens in (128, 256)]
    specs = _main_specs(execution, SIZES, [*shapes, (16, 512), (64, 512)] if gpu else shapes)
    specs += [replace(spec, method="lora_query_value") for spec in specs if spec.method == "lora"]
    if gpu:
        variants = [{"precision": name} for name in number_formats("cuda") if name != execution.precision]
        variants += [{"optimizer": "paged_adamw_8bit"}]
        bases = [base for base in _main_specs(execution, ("bert-base",), [(16, 256)]) if base.method in METHODS[:3]]
        specs += [replace(base, **change) for change in variants for base in bases]
    return specs


def live_specs(execution: Execution) -> list[StepSpec]:
    """The handful that notebook 04 measures on a GPU without a record: every method at two shapes of BERT-base."""
    return _main_specs(execution, ("bert-base",), [(4, 128), (16, 256)])


def _main_specs(execution: Execution, sizes: Iterable[str], shapes: list[tuple[int, int]]) -> list[StepSpec]:
    return [
        StepSpec(size, method, batch, tokens, execution.precision, execution.attention)
        for size in sizes
        for method in METHODS
        for batch, tokens in shapes
    ]


def measure_step(
    spec: StepSpec,
    device: str,
    base_model: str,
    min_seconds: float | None = None,
    n_windows: int = WINDOWS,
    flops: float | None = None,
) -> dict[str, object]:
    """Speed and peak memory of `spec` in this process; for a CPU's memory, call it in a fresh one (`in_fresh_process`).

    `libraries_bytes` were held before the model came. `flops` are the step's, None: counted here.
    """
    if device == "cuda":  # frees what an earlier measurement left
        gc.collect()
        torch.cuda.empty_cache()
    libraries = resident_memory() if device == "cpu" else torch.cuda.memory_allocated()
    checkpointing = spec.method == "qlora_checkpointing"
    execution = Execution(device, spec.precision, spec.attention, checkpointing)
    recipe = method_recipe(spec.method)
    model = build_model(recipe, base_model, execution)
    step = TrainingStep(model, execution, spec.optimizer)
    held = sum(weight_bytes(model).values())
    matmul = matmul_peak(device, execution.compute_dtype)  # before and after: a busy machine must not flatter the step
    step.execution = replace(execution, keep_memory=False)  # what the step needs, not what lies about
    reset_peak_memory(device)
    for _ in range(2):  # the optimizer's state is there in the second
        step.run(*step.random_batch(spec.batch_size, spec.tokens))
    peak, method = peak_memory(device)
    step.execution = execution
    step.run(*step.random_batch(spec.batch_size, spec.tokens))
    seconds = MIN_SECONDS[device] if min_seconds is None else min_seconds
    windows = [timed_window(step, spec.batch_size, spec.tokens, seconds) for _ in range(n_windows)]
    flops = flops or training_flops(recipe, base_model)(spec.batch_size, spec.tokens)
    matmul = max(matmul, matmul_peak(device, execution.compute_dtype))
    trainable, total = count_parameters(model)
    return {
        **asdict(spec),
        "samples_per_second": median(windows),
        "windows": windows,
        "scatter": scatter(windows),
        "peak_memory_bytes": peak,
        "peak_memory_method": method,
        "libraries_bytes": libraries,
        "weights_bytes": held,
        "gradients_bytes": sum(p.nbytes for p in model.parameters() if p.requires_grad),
        "optimizer_bytes": step.optimizer_bytes(),
        "trainable_params": trainable,
        "total_params": total,
        "matmul_share": flops * median(windows) / spec.batch_size / matmul,
    }


def benchmark_steps(execution: Execution, specs: Iterable[StepSpec] | None = None) -> StudyRecord:
    """Measures `specs` (None: `step_specs`): on a CPU each in a fresh process, as memory there is a whole process's.

    All of `step_specs` come in rounds on a CPU, or what slows a machine for a minute would be one method's. A step that
    fails, for want of memory for example, is printed and kept in the settings as `failed`; RuntimeError when all do.
    """
    rounds = WINDOWS if specs is None and execution.device == "cpu" else 1
    specs = list(specs or step_specs(execution))
    dtypes = {"fp32": torch.float32, execution.precision: execution.compute_dtype}
    peaks = {name: matmul_peak(execution.device, dtype) for name, dtype in dtypes.items()}
    measured: dict[StepSpec, list[dict]] = {spec: [] for spec in specs}
    failed = []
    measure = call_step if execution.device == "cuda" else partial(in_fresh_process, call_step)
    with tempfile.TemporaryDirectory() as folder:
        if any(SIZES[spec.size] is None for spec in specs):
            random_bert(Path(folder))
        for spec in specs * rounds:
            checkpoint = SIZES[spec.size] or folder
            print(f"{spec.size:10s} {spec.method:20s} batch {spec.batch_size:2d} x {spec.tokens} tokens", end="  ")
            print(f"{spec.precision} {spec.attention} {spec.optimizer.split('_')[0]:8s}", end="", flush=True)
            flops = training_flops(method_recipe(spec.method), checkpoint)(spec.batch_size, spec.tokens)
            how = {"n_windows": WINDOWS // rounds, "flops": flops}
            try:
                row = measure(spec=asdict(spec), device=execution.device, base_model=checkpoint, **how)
            except RuntimeError as error:
                failed.append({"spec": asdict(spec), "error": str(error).strip().splitlines()[-1]})
                print(f"failed: {failed[-1]['error']}", flush=True)
                continue
            measured[spec].append(row)
            print(f"{row['samples_per_second']:7.1f} samples/s +-{row['scatter']:4.0%}", end="  ")
            print(f"{row['peak_memory_bytes'] / 1e9:5.2f} GB", flush=True)
    rows = [_over_rounds(found) for found in measured.values() if found]
    if not rows:
        raise RuntimeError(f"None of the {len(specs)} steps could be measured: {failed[-1]['error']}")
    return device_record("steps", execution, {"matmul_flops_per_second": peaks, "failed": failed}, rows)


def _over_rounds(rows: list[dict]) -> dict:
    """One row of a step's rows of several rounds: the windows of all, the median of what they measured each."""
    windows = [window for row in rows for window in row["windows"]]
    medians = {name: median(row[name] for row in rows) for name in ("peak_memory_bytes", "matmul_share")}
    return {
        **rows[0],
        **medians,
        "windows": windows,
        "samples_per_second": median(windows),
        "scatter": scatter(windows),
    }


def steps_to_show(execution: Execution) -> StudyRecord:
    """The `steps` record for notebook 04. A GPU that has none measures `live_specs`, and saves it for the next time."""
    if execution.device == "cuda" and own_benchmark("steps", execution) is None:
        specs = live_specs(execution)
        print(f"{execution.device_name} has no record yet: {len(specs)} measurements follow,")
        print(f"a minute or two in all. `{COMMAND}` measures everything.", flush=True)
        print(f"Wrote {shown(benchmark_steps(execution, specs).save(device_folder(execution)))}")
    return benchmark_to_show("steps", execution)


def random_bert(folder: Path) -> None:
    """Writes a checkpoint of bert-base-uncased's shape with random weights to `folder`."""
    set_seed(0)
    AutoModelForSequenceClassification.from_config(REAL_CONFIGS["bert-base-uncased"]).base_model.save_pretrained(folder)


def call_step(spec: dict, **arguments) -> dict[str, object]:
    """`measure_step` for a spec that came as JSON."""
    return measure_step(StepSpec(**spec), **arguments)
