"""What this device measures, for notebook 04 and the claims on memory and speed."""

from dataclasses import replace
from itertools import product
from typing import Annotated

from typer import Argument

from helpers.data import load_splits
from helpers.files import shown
from helpers.models import build_model
from helpers.profiles import PROFILES, current_precision, device
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.start import command
from helpers.training import fine_tune
from lab.budget import print_budgets
from lab.devices import device_folder, device_label, device_record
from lab.ladder import benchmark_ladder
from lab.steps import benchmark_compile, benchmark_methods, benchmark_steps

SEEDS = (0, 1, 2)


def benchmark_accuracy() -> StudyRecord:
    """Trains the SST-2 post's recipe, improved, by full fine-tuning, LoRA and QLoRA in fp16 and fp32 (claim B7)."""
    recipe = RECIPES["lora_bert_sst2"].improved()
    methods = {"full_finetune": recipe.full_finetune(), "lora": recipe, "qlora": replace(recipe, quantization="nf4")}
    sizes = {"n_train": recipe.n_train, "n_validation": recipe.n_validation, "max_epochs": None}
    profile = replace(PROFILES["quick"], **sizes)
    splits, base_model, rows = load_splits(recipe, profile), profile.base_model(recipe.base_model), []
    for (method, of_method), precision, seed in product(methods.items(), ("fp16", "fp32"), SEEDS):
        model = build_model(of_method, base_model, precision, seed=seed)
        run = fine_tune(model, of_method, splits, replace(profile, precision=precision, seed=seed), save=False).record
        row = {"settings": method, "precision": precision, "seed": seed, "accuracy": run.metrics["accuracy"]}
        rows.append({**row, "accuracy_ci95": run.accuracy_ci95, "correct": run.correct})
        print(f"{method:13s} {precision} seed {seed} {row['accuracy']:.1%}", flush=True)
    return device_record("accuracy", {"recipe": recipe.name, "base_model": base_model, **sizes}, rows)


BENCHMARKS = {
    "steps": benchmark_steps,
    "ladder": benchmark_ladder,
    "compile": benchmark_compile,
    "methods": benchmark_methods,
    "accuracy": benchmark_accuracy,
}


def benchmarks(names: Annotated[list[str] | None, Argument()] = None) -> None:
    """Measures this device: steps and ladder, or those of budget, steps, ladder, compile, methods, accuracy named.

    Each but budget, which counts, writes a record to cpu/<device> or gpu/<device> below the data folder.
    """
    if unknown := sorted({*(names or ())} - {"budget", *BENCHMARKS}):
        raise ValueError(f"no benchmark {unknown[0]!r}; there is budget, {', '.join(BENCHMARKS)}")
    if "accuracy" in (names or ()) and device() == "cpu":
        raise ValueError("accuracy compares fp16 with fp32, and fp16 trains on a GPU alone")
    for name in names or ("steps", "ladder"):
        if name == "budget":
            print_budgets()
            continue
        print(f"{device_label()}, {current_precision()}: close other programs while this runs", flush=True)
        print(f"Wrote {shown(BENCHMARKS[name]().save(device_folder()))}", flush=True)


main = command(benchmarks)
