"""`python -m helpers.benchmarks`: measures memory, speed and prediction on this device, for notebook 04.

Records go to `cpu/<device>` or `gpu/<device>` below the data folder: they depend on the machine, not on the profile.
Their settings name the device's own `execution`; rows of others stand beside it, and
`device_records.main_rows` tells them apart.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil
import torch
from transformers import AutoModelForSequenceClassification, pipeline, set_seed

from helpers import profiles
from helpers.budget import REAL_CONFIGS
from helpers.checkpoints import label_maps
from helpers.data import LABELS, load_splits
from helpers.device_records import (
    COMMAND,
    benchmark_to_show,
    device_folder,
    device_label,
    device_record,
    own_benchmark,
)
from helpers.efficiency import (
    TrainingStep,
    matmul_peak,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    scatter,
    timed_window,
)
from helpers.execution_race import benchmark_execution
from helpers.inference import SentimentClassifier
from helpers.ladder import SOURCES, ladder, ladder_texts, measure_rungs, method_recipe, methods_race, training_flops
from helpers.models import build_model, count_parameters, load_tokenizer, save_adapter, weight_bytes
from helpers.profiles import EMBEDDED_BERT, PROFILES, Execution, fastest_execution, number_formats, shown
from helpers.recipes import RECIPES
from helpers.results import StudyRecord, write_json
from helpers.studies import scores
from helpers.training import class_probabilities, fit, tokenize_splits

METHODS = ("full_finetune", "lora", "qlora", "qlora_checkpointing")
SIZES = {"bert-base": None, "embedded": EMBEDDED_BERT}  # None: random weights of bert-base-uncased's shape
WINDOWS, MIN_SECONDS = 3, 1.0  # timed windows a measurement, and how long each lasts at least (at least one batch)


@dataclass(frozen=True)
class StepSpec:
    """One training step to measure: on random tokens, every row `tokens` long, with `improved()` settings of 001.

    Frozen weights are stored as training stores them: fp32, and packed by QLoRA. `compile` is `torch.compile`.
    """

    size: str
    method: str
    batch_size: int
    tokens: int
    precision: str
    attention: str
    optimizer: str = "adamw_torch"
    compile: bool = False


def step_specs(execution: Execution) -> list[StepSpec]:
    """What `steps` measures here: every method at both sizes, two batch sizes and two lengths; on a GPU also the rest.

    On a GPU there is a third length and a batch of 64; the other number formats that it has, eager attention, paged
    8-bit AdamW and torch.compile are compared at 16 x 256 tokens.
    """
    gpu = execution.device == "cuda"
    shapes = [(batch, tokens) for batch in (4, 16) for tokens in ((128, 256, 512) if gpu else (128, 256))]
    specs = _main_specs(execution, SIZES, [*shapes, (64, 256)] if gpu else shapes)
    if gpu:
        variants = [{"precision": name} for name in number_formats("cuda") if name != execution.precision]
        variants += [{"attention": "eager"}, {"optimizer": "paged_adamw_8bit"}, {"compile": True}]
        for base in _main_specs(execution, SIZES, [(16, 256)]):
            specs += [replace(base, **change) for change in variants if base.method != "qlora_checkpointing"]
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


def measure_step(spec: StepSpec, device: str, base_model: str, min_seconds: float = MIN_SECONDS) -> dict[str, object]:
    """Speed and peak memory of `spec` in this process; call it in a fresh one (see `in_fresh_process`)."""
    libraries = resident_memory() if device == "cpu" else 0
    checkpointing = spec.method == "qlora_checkpointing"
    execution = Execution(device, spec.precision, spec.attention, checkpointing)
    recipe = method_recipe(spec.method)
    model = build_model(recipe, base_model, execution)
    step = TrainingStep(model, execution, spec.optimizer)
    if spec.compile:
        step.model = torch.compile(model)
    held = sum(weight_bytes(model).values())
    matmul = matmul_peak(device, execution.compute_dtype)  # before and after: a busy machine must not flatter the step
    reset_peak_memory(device)
    step.run(*step.random_batch(spec.batch_size, spec.tokens))
    windows = [timed_window(step, spec.batch_size, spec.tokens, min_seconds) for _ in range(WINDOWS)]
    peak, method = peak_memory(device)
    flops = training_flops(recipe, base_model)(spec.batch_size, spec.tokens)
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


def in_fresh_process(function: str, **arguments) -> object:
    """`function(**arguments)` of this module in a new Python process; arguments and result travel as JSON.

    Raises RuntimeError with the end of its error output when the process fails.
    """
    command = [sys.executable, "-m", "helpers.benchmarks", "--call", function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=profiles.ROOT)
    if done.returncode:
        raise RuntimeError(f"{function}({arguments}) failed:\n{done.stderr[-2_000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def benchmark_steps(execution: Execution, specs: Iterable[StepSpec] | None = None) -> StudyRecord:
    """Measures `specs` (default: `step_specs`), each in a fresh process.

    One that fails, for want of memory for example, is printed and kept in the settings as `failed`; RuntimeError when
    all do.
    """
    specs = list(specs or step_specs(execution))
    dtypes = {"fp32": torch.float32, execution.precision: execution.compute_dtype}
    peaks = {name: matmul_peak(execution.device, dtype) for name, dtype in dtypes.items()}
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        if any(SIZES[spec.size] is None for spec in specs):
            random_bert(Path(folder))
        for spec in specs:
            checkpoint = SIZES[spec.size] or folder
            print(f"{spec.size:10s} {spec.method:20s} batch {spec.batch_size:2d} x {spec.tokens} tokens", end="  ")
            changed = [spec.precision, spec.attention, spec.optimizer.split("_")[0], "compiled" if spec.compile else ""]
            print(f"{' '.join(changed):28s}", end="", flush=True)
            try:
                row = in_fresh_process("call_step", spec=asdict(spec), device=execution.device, base_model=checkpoint)
            except RuntimeError as error:
                failed.append({"spec": asdict(spec), "error": str(error).strip().splitlines()[-1]})
                print(f"failed: {failed[-1]['error']}", flush=True)
                continue
            rows.append(row)
            print(f"{row['samples_per_second']:7.1f} samples/s +-{row['scatter']:4.0%}", end="  ")
            print(f"{row['peak_memory_bytes'] / 1e9:5.2f} GB", flush=True)
    if not rows:
        raise RuntimeError(f"None of the {len(specs)} steps could be measured: {failed[-1]['error']}")
    return device_record("steps", execution, {"matmul_flops_per_second": peaks, "failed": failed}, rows)


def steps_to_show(execution: Execution) -> StudyRecord:
    """The `steps` record for notebook 04. A GPU that has none measures `live_specs`, and saves it for the next time."""
    if execution.device == "cuda" and own_benchmark("steps", execution) is None:
        specs = live_specs(execution)
        print(f"{execution.device_name} has no record yet: {len(specs)} measurements follow, a fresh process each,")
        print(f"two to four minutes in all. `{COMMAND}` measures everything.", flush=True)
        print(f"Wrote {shown(benchmark_steps(execution, specs).save(device_folder(execution)))}")
    return benchmark_to_show("steps", execution)


def random_bert(folder: Path) -> None:
    """Writes a checkpoint of bert-base-uncased's shape with random weights to `folder`."""
    set_seed(0)
    AutoModelForSequenceClassification.from_config(REAL_CONFIGS["bert-base-uncased"]).base_model.save_pretrained(folder)


def call_step(spec: dict, device: str, base_model: str) -> dict[str, object]:
    """`measure_step` for a spec that came as JSON."""
    return measure_step(StepSpec(**spec), device, base_model)


def benchmark_ladder(execution: Execution, names: Iterable[str] = (*SOURCES, "methods")) -> StudyRecord:
    """Measures each ladder, and the race of LoRA, QLoRA and full fine-tuning at 128 tokens, a fresh process each."""
    rows = []
    for name in names:
        measured = in_fresh_process("measure_ladder", name=name, execution=asdict(execution))
        for row in measured:
            print(f"{name:20s} {row['change']:50s} {row['samples_per_second']:7.1f} samples/s", end="  ")
            print(f"{row['ratio']:6.1f} x  {row['matmul_share']:4.0%} of the peak", end="")
            print("  (within the scatter of the row before)" if row["within_scatter"] else "", flush=True)
            rows.append({"ladder": name, **row})
    tokens = {name: source.tokens for name, source in SOURCES.items()} | {"methods": 128}
    return device_record("ladder", execution, {"base_model": "embedded", "tokens": tokens}, rows)


def measure_ladder(name: str, execution: dict) -> list[dict[str, object]]:
    """Rows of one ladder, or of the race "methods", measured in this process on embedded texts."""
    fastest, race = Execution(**execution), name == "methods"
    recipe = RECIPES["qlora_bert" if race else name]
    rungs = methods_race(fastest) if race else ladder(name, fastest)
    profile = PROFILES["full"]
    tokens = 128 if race else SOURCES[name].tokens
    return measure_rungs(rungs, ladder_texts(recipe, profile), profile.base_model(recipe.base_model), tokens)


def benchmark_prediction(execution: Execution, repeats: int = 5) -> StudyRecord:
    """Texts a second of `pipeline`, one at a time, and of `SentimentClassifier.predict`, in interleaved windows.

    On IMDb reviews and on Rotten Tomatoes sentences, with an adapter as `save_adapter` writes it.
    """
    recipe, profile = RECIPES["lora_bert_sst2"].improved(), PROFILES["full"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        base_model = profile.base_model(recipe.base_model)
        folder = save_adapter(
            build_model(recipe, base_model, execution),
            load_tokenizer(base_model),
            Path(scratch) / "adapter",
            base_model=base_model,
            quantization=None,
            max_length=512,
            truncation="head",
        )
        classifier = SentimentClassifier.from_pretrained(folder, execution)
        one_at_a_time = pipeline(
            "text-classification", model=str(folder), device=execution.device, truncation=True, max_length=512
        )
        for dataset, count in (("imdb", 100), ("rotten_tomatoes", 400)):
            texts = load_splits(replace(recipe, dataset=dataset), profile)["test"]["text"][:count]
            seconds: dict[str, list[float]] = {"pipeline, one at a time": [], "SentimentClassifier.predict": []}
            for repeat in range(repeats + 1):
                start = perf_counter()
                for text in texts:
                    one_at_a_time(text)
                middle = perf_counter()
                classifier.predict(texts)
                end = perf_counter()
                if repeat:  # the first pass of each warms up: kernels are made for every new shape
                    seconds["pipeline, one at a time"].append(middle - start)
                    seconds["SentimentClassifier.predict"].append(end - middle)
            first = median(seconds["pipeline, one at a time"])
            for method, times in seconds.items():
                rate = {"texts_per_second": count / median(times), "ratio": first / median(times)}
                rows.append({"dataset": dataset, "texts": count, "method": method, **rate, "seconds": times})
                print(f"{dataset:16s} {method:28s} {rate['texts_per_second']:7.1f} texts/s {rate['ratio']:5.1f} x")
    return device_record("prediction", execution, {"base_model": base_model}, rows)


def benchmark_accuracy(execution: Execution) -> StudyRecord:
    """Trains source 004 at its own scale: as written, and improved on the source's execution and on the fastest.

    All runs have its epochs and are scored on the same test sentences, for paired tests: speed must cost nothing. A GPU
    also trains the improved recipe in fp16 and in fp32, all else as in the fastest.
    """
    recipe = RECIPES["lora_bert_sst2"]
    profile = replace(PROFILES["quick"], n_train=recipe.n_train, n_validation=recipe.n_validation, max_epochs=None)
    source = ladder(recipe.name, execution)[0].execution
    splits = load_splits(recipe, profile)
    base_model = profile.base_model(recipe.base_model)
    rows = []
    runs = [(recipe, "fastest", execution), (recipe.improved(), "source's", source)]
    runs.append((recipe.improved(), "fastest", execution))
    if execution.device == "cuda":
        others = [name for name in ("fp32", "fp16") if name != execution.precision]
        runs += [(recipe.improved(), name, replace(execution, precision=name)) for name in others]
    for settings, name, used in runs:
        tokenizer, tokens = tokenize_splits(settings, splits, profile)
        model = build_model(settings, base_model, used, profile.seed)
        fitted = fit(model, tokenizer, settings, tokens["train"], None, used, profile.seed)
        predictions = class_probabilities(model, tokenizer, tokens["test"], used).argmax(axis=1)
        row = {"settings": settings.variant, "execution": name, "precision": used.precision}
        row |= {"attention": used.attention, "train_seconds": fitted.seconds}
        rows.append(row | scores(predictions, splits["test"]))
        print(f"{settings.variant:12s} {name:10s} {fitted.seconds:6.0f} s  {rows[-1]['accuracy']:.1%}", flush=True)
    shared = {"recipe": recipe.name, "base_model": base_model, "n_train": len(splits["train"])}
    shared |= {"epochs": recipe.num_train_epochs, "n_test": len(splits["test"])}
    return device_record("accuracy", execution, shared, rows)


def benchmark_adapter(execution: Execution) -> StudyRecord:
    """Trains source 004's recipe, improved, and checks what it says of the result.

    Compares every tensor of the base before and after, bit by bit. Asks `pipeline` for a label: on the saved folder,
    on one whose base names no labels, as BERT on the hub, and on that with the names given.
    """
    recipe, text = RECIPES["lora_bert_sst2"].improved(), "The movie was absolutely wonderful!"
    profile = replace(PROFILES["quick"], n_train=recipe.n_train, n_validation=recipe.n_validation, max_epochs=None)
    base_model, splits = profile.base_model(recipe.base_model), load_splits(recipe, profile)
    tokenizer, tokens = tokenize_splits(recipe, splits, profile)
    model = build_model(recipe, base_model, execution, profile.seed)
    frozen = [
        (parameter, parameter.detach().clone()) for parameter in model.parameters() if not parameter.requires_grad
    ]
    fit(model, tokenizer, recipe, tokens["train"], None, execution, profile.seed)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"quantization": None, "max_length": recipe.max_length, "truncation": recipe.truncation}
        folder = save_adapter(model, tokenizer, Path(scratch) / "adapter", base_model=base_model, **settings)
        nameless = _without_names(folder, Path(scratch))
        labels, indices = label_maps(LABELS)
        named = AutoModelForSequenceClassification.from_pretrained(nameless, id2label=labels, label2id=indices)
        answer, bare, with_names = (
            pipeline("text-classification", model=asked, tokenizer=str(folder), device=execution.device)(text)[0]
            for asked in (str(folder), str(nameless), named)
        )
    row = {
        "base_tensors": len(frozen),
        "changed_base_tensors": sum(not torch.equal(parameter, before) for parameter, before in frozen),
        "text": text,
        "pipeline_label": answer["label"],
        "pipeline_score": answer["score"],
        "label_without_names": bare["label"],
        "label_with_names": with_names["label"],
    }
    shared = {"recipe": recipe.name, "base_model": base_model, "n_train": len(splits["train"])}
    return device_record("adapter", execution, shared, [row])


def _without_names(adapter: Path, scratch: Path) -> Path:
    """A copy of `adapter` on a copy of its base whose config does not name the labels."""
    copy = Path(shutil.copytree(adapter, scratch / "nameless"))
    settings = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(shutil.copytree(settings["base_model_name_or_path"], scratch / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    write_json(base / "config.json", {k: v for k, v in config.items() if k not in ("id2label", "label2id")})
    write_json(copy / "adapter_config.json", {**settings, "base_model_name_or_path": str(base)})
    return copy


BENCHMARKS = {
    "execution": benchmark_execution,
    "ladder": benchmark_ladder,
    "prediction": benchmark_prediction,
    "steps": benchmark_steps,
    "accuracy": benchmark_accuracy,
    "adapter": benchmark_adapter,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks named (all without a name) and writes their records."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)  # a measurement in this process, see above
    options = parser.parse_args(arguments)
    if options.call:
        print(json.dumps(globals()[options.call[0]](**json.loads(options.call[1]))))
        return 0
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {unknown[0]!r}; there is {', '.join(BENCHMARKS)}")
    execution = fastest_execution()
    print(f"{device_label(execution)}, {execution.precision}: close other programs while this runs", flush=True)
    if (busy := psutil.cpu_percent(interval=1.0)) > 20:
        print(f"They use {busy:.0f} % of the processor now: what follows will scatter.", flush=True)
    for name in options.names or BENCHMARKS:
        path = BENCHMARKS[name](execution).save(device_folder(execution))
        print(f"Wrote {shown(path)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
