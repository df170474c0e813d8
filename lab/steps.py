"""Memory and speed of one training step, by method, size and shape of batch; on a CPU each in a process of its own."""

import gc
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import psutil
import torch
import torch._inductor.config
from transformers import AutoModelForSequenceClassification, set_seed

from helpers.models import count_parameters, weight_bytes
from helpers.profiles import EMBEDDED_BERT, current_precision, device, number_formats
from helpers.results import StudyRecord, peak_memory, reset_peak_memory
from lab.budget import REAL_CONFIGS
from lab.devices import COMMAND, device_record, in_fresh_process
from lab.ladder import method_model, method_recipe
from lab.methods import METHODS as PEFT_METHODS
from lab.methods import build_method
from lab.timing import OPTIMIZERS, TrainingStep, timed_window

METHODS = ("full_finetune", "lora", "qlora", "qlora_checkpointing", "lora_query_value", "lora_fp32_base")
SIZES = {"bert-base": None, "embedded": EMBEDDED_BERT}  # None: random weights of bert-base-uncased's shape
WINDOWS = 5  # a measurement, one in each of as many rounds: what slows a machine for a minute is then no one method's
MIN_SECONDS = {"cpu": 1.0, "cuda": 0.3}  # that each lasts at least, and at least one batch
ROWS = 16  # of a batch that `benchmark_compile` times
STEP = "forward, backward, gradients clipped at 1.0, fused AdamW"


@dataclass(frozen=True)
class StepSpec:
    """One training step to measure, on random tokens, every row `tokens` long. `method`: see `ladder.method_model`."""

    size: str
    method: str
    batch_size: int
    tokens: int
    precision: str


def step_specs() -> list[StepSpec]:
    """What `steps` measures here: every method at both sizes, two batch sizes and two lengths.

    On a GPU also two shapes of 512 tokens, bert-qlora's recipe as it is written, and the other number formats that it
    has, at 16 x 256 tokens of BERT-base.
    """
    gpu, own = device() == "cuda", current_precision()
    shapes = [(batch, tokens) for batch in (4, 16) for tokens in (128, 256)] + [(16, 512), (64, 512)] * gpu
    wanted = [(size, method, *shape, own) for size in SIZES for method in METHODS for shape in shapes]
    if gpu:
        wanted += [("bert-base", "qlora_as_written", *shape, own) for shape in shapes]
        formats = [name for name in number_formats("cuda") if name != own]
        wanted += [("bert-base", method, 16, 256, name) for name in formats for method in METHODS[:3]]
    return [StepSpec(*spec) for spec in wanted]


def measure_step(spec: StepSpec, base_model: str, min_seconds: float | None = None) -> dict[str, object]:
    """Speed and peak memory of `spec` in this process; for a CPU's memory, call it in a fresh one (`in_fresh_process`).

    `libraries_bytes` were held before the model came. `method` may also be one of `methods.METHODS`; then the bytes
    of what it saves are there, too.
    """
    gpu = device() == "cuda"
    if gpu:  # frees what an earlier measurement left
        gc.collect()
        torch.cuda.empty_cache()
    libraries = torch.cuda.memory_allocated() if gpu else psutil.Process().memory_info().rss
    if spec.method in PEFT_METHODS:
        model, how = build_method(spec.method, base_model, spec.precision, seed=0), {}
    else:
        recipe = method_recipe(spec.method)
        model = method_model(spec.method, base_model, spec.precision)
        how = {"optimizer": recipe.optim, "gradient_checkpointing": recipe.gradient_checkpointing}
    step = TrainingStep(model, spec.precision, **how)
    held = sum(weight_bytes(model).values())
    reset_peak_memory(device())
    for _ in range(2):  # the optimizer's state is there in the second
        step.run(step.random_batch(spec.batch_size, spec.tokens))
    peak, peak_method = peak_memory(device())
    seconds = MIN_SECONDS[device()] if min_seconds is None else min_seconds
    speed = timed_window(step, [step.random_batch(spec.batch_size, spec.tokens)], seconds)
    trainable, total = count_parameters(model)
    return {
        **asdict(spec),
        "optimizer": OPTIMIZERS[how.get("optimizer", "adamw_torch")][0],
        "samples_per_second": speed,
        "peak_memory_bytes": peak,
        "peak_memory_method": peak_method,
        "libraries_bytes": libraries,
        "weights_bytes": held,
        "gradients_bytes": sum(p.nbytes for p in model.parameters() if p.requires_grad),
        "optimizer_bytes": step.optimizer_bytes(),
        "trainable_params": trainable,
        "total_params": total,
        **({"saved_bytes": saved_bytes(model)} if spec.method in PEFT_METHODS else {}),
    }


def saved_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights that `save_pretrained` writes: of an adapter, its own and the head's."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def benchmark_methods() -> StudyRecord:
    """What a step of each of `methods.METHODS` costs: sentences of 32 tokens and reviews of 256, batches of 16."""
    shapes = product(PEFT_METHODS, (32, 256))
    specs = [StepSpec("embedded", method, ROWS, tokens, current_precision()) for method, tokens in shapes]
    return replace(benchmark_steps(specs), name="methods", command=f"{COMMAND} methods")


def benchmark_steps(specs: Iterable[StepSpec] | None = None, rounds: int = WINDOWS) -> StudyRecord:
    """Measures `specs` (None: `step_specs`), in rounds: on a CPU each in a fresh process, as memory there is a whole
    process's.

    A step that fails, for want of memory for example, is printed and has no row. Raises RuntimeError when all do.
    """
    specs = list(specs or step_specs())
    measure = measure_step if device() == "cuda" else partial(in_fresh_process, measure_step)
    measured: dict[StepSpec, list[dict]] = {spec: [] for spec in specs}
    with tempfile.TemporaryDirectory() as folder:
        if any(SIZES[spec.size] is None for spec in specs):
            set_seed(0)
            random = AutoModelForSequenceClassification.from_config(REAL_CONFIGS["bert-base-uncased"])
            random.base_model.save_pretrained(folder)
        for spec in specs * rounds:
            if spec not in measured:
                continue
            print(*asdict(spec).values(), end="  ", flush=True)
            try:
                row = measure(spec=spec, base_model=SIZES[spec.size] or folder)
            except RuntimeError as error:
                del measured[spec]
                print(f"failed: {str(error).strip().splitlines()[-1]}", flush=True)
                continue
            measured[spec].append(row)
            print(f"{row['samples_per_second']:7.1f} samples/s {row['peak_memory_bytes'] / 1e9:6.2f} GB", flush=True)
    if not measured:
        raise RuntimeError(f"None of the {len(specs)} steps could be measured; what failed is printed above.")
    return device_record("steps", {"step": STEP}, [_over_rounds(rows) for rows in measured.values()])


def _over_rounds(rows: list[dict]) -> dict:
    """One row of a step's rows of several rounds: the windows of all, and the median peak."""
    windows = [row["samples_per_second"] for row in rows]
    peak = median(row["peak_memory_bytes"] for row in rows)
    return {**rows[0], "windows": windows, "samples_per_second": median(windows), "peak_memory_bytes": peak}


def benchmark_compile() -> StudyRecord:
    """torch.compile against eager steps, in turns: what each length of batch takes to compile, and after how many
    updates that is paid (None: never). On a GPU in the mode that launches whole graphs."""
    rows, precision = [], current_precision()
    for method, tokens in product(("full_finetune", "lora"), (32, 128, 256)):
        steps = {}
        for form in ("eager", "compiled"):
            model = method_model(method, EMBEDDED_BERT, precision)
            if form == "compiled":
                model.compile(dynamic=False, mode="reduce-overhead" if device() == "cuda" else None)
            steps[form] = TrainingStep(model, precision)
        with torch._inductor.config.patch(force_disable_caches=True):  # what an earlier process compiled is on disk
            first = steps["compiled"].timed(steps["compiled"].random_batch(ROWS, tokens))
        windows: dict[str, list[float]] = {form: [] for form in steps}
        for form, step in [*steps.items()] * WINDOWS:
            windows[form].append(timed_window(step, [step.random_batch(ROWS, tokens)], MIN_SECONDS[device()]))
        eager, compiled = (ROWS / median(windows[form]) for form in steps)
        paid = (first - compiled) / (eager - compiled) if eager > compiled else None
        row = {"method": method, "batch_size": ROWS, "tokens": tokens, "compile_seconds": first - compiled}
        rows.append({**row, **windows, "ratio": eager / compiled, "updates_to_pay": paid})
        print(*row.values(), f"{eager / compiled:.2f} x, paid after {paid} updates", flush=True)
    return device_record("compile", {"base_model": "embedded", "step": STEP}, rows)
