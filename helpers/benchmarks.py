"""`python -m helpers.benchmarks`: measures memory, speed and prediction on this device, for notebook 04.

Records go to `Data/cpu/<device>` or `Data/gpu/<device>`: they depend on the machine, not on the profile.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import AutoModelForSequenceClassification, pipeline, set_seed

from helpers.budget import REAL_CONFIGS
from helpers.data import load_splits
from helpers.efficiency import (
    TrainingStep,
    matmul_peak,
    peak_memory,
    reset_peak_memory,
    resident_memory,
)
from helpers.inference import SentimentClassifier
from helpers.ladder import ladder, ladder_texts, measure_rungs, method_recipe, methods_race, training_flops
from helpers.models import (
    build_model,
    count_parameters,
    load_tokenizer,
    save_adapter,
    store_frozen_linears,
    weight_bytes,
)
from helpers.profiles import DATA_DIR, EMBEDDED_BERT, PROFILES, Execution, fastest_execution
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.studies import scores
from helpers.training import class_probabilities, fit, tokenize_splits

COMMAND = "python -m helpers.benchmarks"
METHODS = ("full_finetune", "lora", "qlora", "qlora_checkpointing")
SIZES = {"bert-base": None, "embedded": EMBEDDED_BERT}  # None: random weights of bert-base-uncased's shape
MIN_SECONDS = 3.0  # a timed window lasts at least this long, and at least one batch


def device_folder(execution: Execution) -> Path:
    """`Data/cpu/<device>` or `Data/gpu/<device>`: where this device's records are."""
    name = re.sub(r"[^a-z0-9]+", "-", execution.device_name.lower()).strip("-")
    return DATA_DIR / ("gpu" if execution.device == "cuda" else "cpu") / name


def load_benchmarks(name: str) -> list[StudyRecord]:
    """The record `name` of every device that has one, CPUs first."""
    return [StudyRecord.load(path) for path in sorted(DATA_DIR.glob(f"[cg]pu/*/{name}.json"))]


@dataclass(frozen=True)
class StepSpec:
    """One training step to measure: on random tokens, every row `tokens` long, with `improved()` settings of 001.

    LoRA's frozen layers are stored in the precision that they are multiplied in (`models.store_frozen_linears`).
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

    On a GPU the lengths are three, and precisions, attention and optimizers are compared at 256 tokens.
    """
    gpu = execution.device == "cuda"
    shapes = [(batch, tokens) for batch in (4, 16) for tokens in ((128, 256, 512) if gpu else (128, 256))]
    specs = [
        StepSpec(size, method, batch, tokens, execution.precision, execution.attention)
        for size in SIZES
        for method in METHODS
        for batch, tokens in shapes
    ]
    if gpu:
        for size in SIZES:
            base = StepSpec(size, "qlora", 16, 256, execution.precision, execution.attention)
            variants = [{"precision": name} for name in ("fp32", "fp16", "bf16") if name != base.precision]
            variants += [{"attention": "eager"}, {"optimizer": "paged_adamw_8bit"}]
            specs += [replace(base, method=m, **change) for m in METHODS[:3] for change in variants]
    return specs


def measure_step(spec: StepSpec, device: str, base_model: str, min_seconds: float = MIN_SECONDS) -> dict[str, object]:
    """Speed and peak memory of `spec` in this process; call it in a fresh one (see `in_fresh_process`)."""
    libraries = resident_memory() if device == "cpu" else 0
    checkpointing = spec.method == "qlora_checkpointing"
    execution = Execution(device, spec.precision, spec.attention, checkpointing)
    recipe = method_recipe(spec.method)
    model = build_model(recipe, base_model, execution)
    store_frozen_linears(model, execution)
    step = TrainingStep(model, execution, spec.optimizer)
    held = sum(weight_bytes(model).values())
    matmul = matmul_peak(device, execution.compute_dtype)  # before and after: a busy machine must not flatter the step
    reset_peak_memory(device)
    step.run(*step.random_batch(spec.batch_size, spec.tokens))
    seconds, steps = 0.0, 0
    while not steps or seconds < min_seconds:
        batch = step.random_batch(spec.batch_size, spec.tokens)
        seconds, steps = seconds + step.timed(*batch), steps + 1
    peak, method = peak_memory(device)
    flops = training_flops(recipe, base_model)(spec.batch_size, spec.tokens)
    matmul = max(matmul, matmul_peak(device, execution.compute_dtype))
    trainable, total = count_parameters(model)
    return {
        **asdict(spec),
        "samples_per_second": spec.batch_size * steps / seconds,
        "peak_memory_bytes": peak,
        "peak_memory_method": method,
        "libraries_bytes": libraries,
        "weights_bytes": held,
        "gradients_bytes": sum(p.nbytes for p in model.parameters() if p.requires_grad),
        "optimizer_bytes": step.optimizer_bytes(),
        "trainable_params": trainable,
        "total_params": total,
        "matmul_share": flops * steps / seconds / matmul,
    }


def in_fresh_process(function: str, **arguments) -> object:
    """`function(**arguments)` of this module in a new Python process; arguments and result travel as JSON.

    Raises RuntimeError with the end of its error output when the process fails.
    """
    command = [sys.executable, "-m", "helpers.benchmarks", "--call", function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DATA_DIR.parent)
    if done.returncode:
        raise RuntimeError(f"{function}({arguments}) failed:\n{done.stderr[-2_000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def benchmark_steps(execution: Execution, specs: Iterable[StepSpec] | None = None) -> StudyRecord:
    """Measures `specs` (default: `step_specs`), each in a fresh process."""
    specs = list(specs or step_specs(execution))
    dtypes = {"fp32": torch.float32, execution.precision: execution.compute_dtype}
    peaks = {name: matmul_peak(execution.device, dtype) for name, dtype in dtypes.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if any(SIZES[spec.size] is None for spec in specs):
            random_bert(Path(folder))
        for spec in specs:
            checkpoint = SIZES[spec.size] or folder
            row = in_fresh_process("call_step", spec=asdict(spec), device=execution.device, base_model=checkpoint)
            rows.append(row)
            print(f"{spec.size:10s} {spec.method:20s} batch {spec.batch_size:2d} x {spec.tokens} tokens", end="  ")
            print(f"{row['samples_per_second']:7.1f} samples/s  {row['peak_memory_bytes'] / 1e9:5.2f} GB", flush=True)
    settings = {"matmul_flops_per_second": peaks}
    return StudyRecord("steps", f"{COMMAND} steps", None, execution.device_name, settings, rows)


def random_bert(folder: Path) -> None:
    """Writes a checkpoint of bert-base-uncased's shape with random weights to `folder`."""
    set_seed(0)
    AutoModelForSequenceClassification.from_config(REAL_CONFIGS["bert-base-uncased"]).base_model.save_pretrained(folder)


def call_step(spec: dict, device: str, base_model: str) -> dict[str, object]:
    """`measure_step` for a spec that came as JSON."""
    return measure_step(StepSpec(**spec), device, base_model)


# The ladders, and the number of tokens that texts are cut to in each.
LADDER_TOKENS = {"lora_distilbert_qv": 256, "lora_bert_sst2": 128, "qlora_bert": 256}


def benchmark_ladder(execution: Execution, names: Iterable[str] = (*LADDER_TOKENS, "methods")) -> StudyRecord:
    """Measures each ladder, and the race of LoRA, QLoRA and full fine-tuning at 128 tokens, a fresh process each."""
    rows = []
    for name in names:
        measured = in_fresh_process("measure_ladder", name=name)
        for row in measured:
            print(f"{name:20s} {row['change']:50s} {row['samples_per_second']:7.1f} samples/s", end="  ")
            print(f"{row['ratio']:6.1f} x  {row['matmul_share']:4.0%} of the peak", flush=True)
            rows.append({"ladder": name, **row})
    settings = {"base_model": "embedded", "tokens": LADDER_TOKENS | {"methods": 128}}
    return StudyRecord("ladder", f"{COMMAND} ladder", None, execution.device_name, settings, rows)


def measure_ladder(name: str) -> list[dict[str, object]]:
    """Rows of one ladder, or of the race "methods", measured in this process on embedded texts."""
    execution = fastest_execution()
    recipe = RECIPES["qlora_bert" if name == "methods" else name]
    rungs = methods_race(execution) if name == "methods" else ladder(name, execution)
    profile = PROFILES["full"]
    tokens = 128 if name == "methods" else LADDER_TOKENS[name]
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
    return StudyRecord(
        "prediction", f"{COMMAND} prediction", None, execution.device_name, {"base_model": base_model}, rows
    )


def benchmark_accuracy(execution: Execution) -> StudyRecord:
    """Trains source 004 at its own scale: as written, and improved on the source's execution and on the fastest.

    All runs have its epochs and are scored on the same test sentences, for paired tests: speed must cost nothing.
    """
    recipe = RECIPES["lora_bert_sst2"]
    profile = replace(PROFILES["quick"], n_train=recipe.n_train, n_validation=recipe.n_validation, max_epochs=None)
    source = ladder(recipe.name, execution)[0].execution
    splits = load_splits(recipe, profile)
    base_model = profile.base_model(recipe.base_model)
    rows = []
    for settings, name, used in (
        (recipe, "fastest", execution),
        (recipe.improved(), "source's", source),
        (recipe.improved(), "fastest", execution),
    ):
        tokenizer, tokens = tokenize_splits(settings, splits, profile)
        model = build_model(settings, base_model, used, profile.seed)
        fitted = fit(model, tokenizer, settings, tokens["train"], None, used, profile.seed)
        predictions = class_probabilities(model, tokenizer, tokens["test"], used).argmax(axis=1)
        row = {"settings": settings.variant, "execution": name, "train_seconds": fitted.seconds}
        rows.append(row | scores(predictions, splits["test"]))
        print(f"{settings.variant:12s} {name:10s} {fitted.seconds:6.0f} s  {rows[-1]['accuracy']:.1%}", flush=True)
    shared = {"recipe": recipe.name, "base_model": base_model, "n_train": len(splits["train"])}
    shared |= {"epochs": recipe.num_train_epochs, "n_test": len(splits["test"])}
    return StudyRecord("accuracy", f"{COMMAND} accuracy", None, execution.device_name, shared, rows)


def benchmark_adapter(execution: Execution) -> StudyRecord:
    """Trains source 004's recipe, improved, and checks what it says of the result.

    Compares every tensor of the base before and after, bit by bit, and asks `pipeline` on the saved folder for a label.
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
        answer = pipeline("text-classification", model=str(folder), device=execution.device)(text)[0]
    row = {
        "base_tensors": len(frozen),
        "changed_base_tensors": sum(not torch.equal(parameter, before) for parameter, before in frozen),
        "text": text,
        "pipeline_label": answer["label"],
        "pipeline_score": answer["score"],
    }
    shared = {"recipe": recipe.name, "base_model": base_model, "n_train": len(splits["train"])}
    return StudyRecord("adapter", f"{COMMAND} adapter", None, execution.device_name, shared, [row])


BENCHMARKS = {
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
    print(f"{execution.device_name}, {execution.precision}: close other programs while this runs", flush=True)
    for name in options.names or BENCHMARKS:
        path = BENCHMARKS[name](execution).save(device_folder(execution))
        print(f"Wrote {path.relative_to(DATA_DIR.parent)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
