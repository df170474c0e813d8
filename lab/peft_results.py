"""The runs of study `methods` in the form of peft's own method_comparison: `python -m lab.peft_results`.

One JSON a run with the field names of that benchmark, in `Data/full/method_comparison`. What it measures on a GPU alone
is None. Memory (here a whole process's) and time are those of the benchmark `methods`, as runs share their machine.
"""

import json
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig

from helpers.files import shown, write_text
from helpers.profiles import data_dir
from helpers.results import StudyRecord
from helpers.start import command
from lab.devices import record_to_show
from lab.methods import METHODS
from lab.studies import StudyRun, read_runs, read_study

HASHED = ("transformers", "peft", "datasets", "bitsandbytes", "torch")


def peft_result(run: StudyRun, row: Mapping[str, Any], cost: Mapping[str, Any], study: StudyRecord) -> dict[str, Any]:
    """What peft's benchmark logs of a run, of a `row` of `study` and of the `cost` of its method's step."""
    recipe, config = run.recipe, METHODS[run.peft].config
    samples = row["n_train"] * row["epochs"]
    train_config = {
        "model_id": study.settings["base_model"],
        "dtype": {"bf16": "bfloat16", "fp32": "float32"}[study.settings["precision"]],
        "max_seq_length": recipe.max_length,
        "batch_size": recipe.per_device_train_batch_size,
        "max_steps": row["updates"],
        "compile": False,
        "seed": run.seed,
        "grad_norm_clip": 1.0,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        "lr_scheduler": recipe.lr_scheduler_type,
        "use_amp": study.settings["precision"] != "fp32",
        "autocast_adapter_dtype": True,
    }
    score = {"step": row["updates"], "test accuracy": row["accuracy"], "train loss": row["last_loss"]}
    packages = {f"{name}-version": study.versions[name] for name in HASHED}
    return {
        "run_info": {
            "created_at": row["at"],
            "total_time": row["seconds"],
            "experiment_name": f"{run.peft}/{study.settings['base_model']}-seed{run.seed}",
            "peft_branch": f"v{study.versions['peft']}",
            "train_config": train_config,
            "peft_config": config.to_dict() | {"task_type": "SEQ_CLS"} if isinstance(config, PeftConfig) else None,
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": cost["peak_memory_bytes"],
            "accelerator_memory_reserved_99th": None,
            "train_time": samples / cost["samples_per_second"],
            "file_size": cost["saved_bytes"],
            "num_trainable_params": row["trainable_params"],
            "num_total_params": cost["total_params"],
            "status": "success",
            "metrics": [score | {"train samples": samples}],
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {study.settings["dataset"]: {"sha": None, "created_at": None}},
            "package_info": packages | {f"{name}-commit-hash": None for name in HASHED},
            "system_info": {"accelerator": row["device"]},
            "pytorch_info": f"PyTorch {study.versions['torch']}",
        },
    }


def peft_results() -> None:
    """Writes a file for each run that has its row."""
    study, folder = read_study("methods"), data_dir() / "full" / "method_comparison"
    costs = {row["method"]: row for row in record_to_show("methods").rows if row["tokens"] == 32}
    for run in read_runs("methods"):
        for row in study.rows:
            if run.peft and run.labels.items() <= row.items() and run.seed == row["seed"]:
                name = f"{run.peft.replace(', ', '-').replace(' ', '-')}--{study.settings['base_model']}-seed{run.seed}"
                result = peft_result(run, row, costs[run.peft], study)
                write_text(folder / f"{name}.json", json.dumps(result, indent=2, default=sorted) + "\n")
    print(f"Wrote {len(list(folder.glob('*.json')))} results to {shown(folder)}")


main = command(peft_results)
