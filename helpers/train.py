"""One recipe from a terminal, under the profile in force: `python -m helpers.train RECIPE [--improved]`.

On your own texts: `python -m helpers.train --data reviews.csv --text-column text --label-column label --output FOLDER`.
On more of them: `python -m helpers.train --data more.csv --continue-from FOLDER --output ANOTHER`.
On two GPUs: `torchrun --standalone --nproc_per_node=2 -m helpers.train ...`.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub.utils import validate_repo_id

from helpers.checkpoints import model_folder
from helpers.data import joined, load_splits, text_hashes
from helpers.export import check_empty, check_exportable, export_onnx, merge_adapter, push_to_hub
from helpers.files import new_folder, shown
from helpers.inference import INFERENCE_FILE, MERGED, ONNX, TRAINING_TEXTS, load_adapter
from helpers.models import adapted, build_model, load_tokenizer
from helpers.own_data import OWN_DATA_RECIPE, SHOWN_CLASSES, examine, listed, own_recipe, split_rows, token_limit
from helpers.profiles import current_profile
from helpers.recipes import RECIPES, Recipe
from helpers.report import advice, class_scores, compare_with_baselines, scores_table, write_report
from helpers.results import summary
from helpers.start import exit_status, one_line, prepare_process
from helpers.tables import ENDINGS, read_rows
from helpers.tasks import TASKS, label_names, read_labels
from helpers.trainer import process_state
from helpers.training import checkpoint_folder, fine_tune, score_bag_of_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a recipe on its own dataset, or on a file with `--data`; returns the status (see `start.exit_status`)."""
    prepare_process()
    options, state = parse(arguments), process_state()
    if not state.is_main_process:  # under torchrun the first process prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    work = train_on_file if options.data else train_recipe
    stopped = "Stopped. The same command goes on from the last checkpoint."
    return exit_status(lambda: work(options), stopped, says=state.is_main_process)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; what is missing or does not go together ends the process, status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = parser.add_argument, ", ".join(sorted(RECIPES))
    add("recipe", nargs="?", choices=RECIPES, metavar="RECIPE", help=names)
    add("--improved", action="store_true", help="our version of the recipe, not the source's own")
    add("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE", help="such as r=32; repeatable")
    add("--seed", type=int, default=42, help="fixes the split, the head, the adapter and the order (default 42)")
    add("--output", type=Path, metavar="FOLDER", help="for the adapter; default: the profile's own")
    add("--overwrite", action="store_true", help="replace an earlier run's FOLDER")
    add("--restart", action="store_true", help="begin anew where a run that was stopped would go on")
    add("--track", action="store_true", help="log to W&B where a key or WANDB_MODE=offline is set")
    own = parser.add_argument_group("your own data (every row of the file is used; the recipe is our version of it)")
    add = own.add_argument
    add("--data", type=Path, metavar="FILE", help=f"a file that ends in {', '.join(ENDINGS)}, or datasets' folder")
    add("--text-column", metavar="NAME", help="default: guessed, and said")
    add("--text-pair-column", metavar="NAME", help="a second text: the model reads both together")
    add("--label-column", metavar="NAME", help="classes, lists of labels, or numbers; default: guessed, and said")
    add("--task", choices=TASKS, help="one class a text, several labels, or a number; default: as labels look")
    add("--label-separator", metavar="TEXT", help="between the labels of a text (default: ; or | where that is clear)")
    add("--recipe", dest="own_recipe", choices=RECIPES, help=f"default {OWN_DATA_RECIPE}")
    add("--base-model", metavar="NAME", help="an encoder's hub name or folder; default: the profile's")
    add("--continue-from", metavar="ADAPTER", help="go on training this folder or hub name; its LoRA settings hold")
    add("--class-weights", choices=("balanced",), help="each class counts the same, however few its rows")
    add("--calibrate", action="store_true", help="fit a temperature on validation rows: probabilities as sure as right")
    add("--drop-incomplete", action="store_true", help="leave out rows without text or label")
    add("--merge", action="store_true", help=f"also write a plain model, to FOLDER/{MERGED}")
    add("--export", choices=("onnx",), help=f"also write fp32 and INT8 for onnxruntime, to FOLDER/{ONNX}")
    add("--push-to", metavar="USER/NAME", help="upload to this private repository if a token is set")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be a number from 0 to 4294967295")
    if options.data and (options.recipe or not options.output):
        parser.error("--data needs --output; with it, name the recipe as --recipe RECIPE")
    if not options.data and (options.base_model or options.continue_from or not options.recipe):
        parser.error(f"name a RECIPE ({names}), or a file with --data; --base-model and --continue-from go with --data")
    idle = [one.option_strings[0] for one in own._group_actions if getattr(options, one.dest)]
    if idle and not options.data:
        parser.error(f"{idle[0]} goes with --data")
    if options.continue_from and (options.base_model or options.own_recipe):
        parser.error("--continue-from keeps the adapter's base model and settings: no --base-model or --recipe with it")
    options.own_recipe = options.own_recipe or OWN_DATA_RECIPE
    return options


def train_recipe(options: argparse.Namespace) -> None:
    """Trains a recipe on its own dataset, beside the bag of words."""
    check_output(options)
    profile = replace(current_profile(), seed=options.seed)
    recipe = RECIPES[options.recipe].improved() if options.improved else RECIPES[options.recipe]
    fixed = {"n_train": profile.n_train, "n_validation": profile.n_validation, "base_model": profile.embedded}
    fixed["min_updates"] = profile.max_epochs  # which cuts short what it adds
    caps = {"max_length": profile.max_length, "num_train_epochs": profile.max_epochs}
    recipe = as_asked(recipe, options, caps, {name for name, value in fixed.items() if value})
    splits = load_splits(recipe, profile)
    print(f"Profile {profile.name}: {recipe.name}, {recipe.variant}, {len(splits['train']):,} reviews", flush=True)
    model = build_model(recipe, profile.base_model(recipe.base_model), profile.precision, seed=profile.seed)
    print(adapted(model), flush=True)
    own = options.output and process_state().is_main_process  # opened now, so that what cannot be written ends here
    with new_folder(options.output.resolve()) if own else nullcontext() as folder:
        how = {"output": folder, "restart": options.restart, "track": options.track}
        result = fine_tune(model, recipe, splits, profile, **how)
    if result:
        bag = score_bag_of_words(recipe, splits, profile)
        result.record.save(profile.results)
        shutil.rmtree(checkpoint_folder(recipe, splits, profile), ignore_errors=True)
        print(f"\n{summary([result.record, bag])}\nAdapter: {shown(options.output or result.adapter)}")


def as_asked(recipe: Recipe, options: argparse.Namespace, caps: dict[str, int | None], fixed: set[str]) -> Recipe:
    """`recipe` with `--set`. Raises ValueError for a setting in `fixed`, or above the most that `caps` has for it."""
    changed = recipe.with_settings(options.settings)
    for name in {one.split("=")[0].strip() for one in options.settings}:
        value, cap = getattr(changed, name), caps.get(name)
        if name in fixed or (cap and value > cap):
            how = "comes from the file, the model or the profile" if name in fixed else f"is {cap} at most here"
            raise ValueError(f"{name}={value} is not taken: {name} {how} (PROFILE={current_profile().name}).")
    return changed


def check_continued(settings: dict, task: str, labels: Sequence[str], pairs: bool) -> None:
    """Raises ValueError where the training of an adapter cannot go on with a file's labels, task or pairs."""
    if task == "regression":
        raise ValueError("An adapter that answers a number cannot go on training: train a new one on both files.")
    if list(labels) != settings["labels"]:
        known, found = listed(settings["labels"]), listed(list(labels))
        raise ValueError(f"The adapter keeps its labels, {known}, and the file has {found}: train a new adapter on it.")
    if (task, pairs) != (settings["task"], settings.get("pairs", False)):
        raise ValueError(f"The adapter is for --task {settings['task']}, and reads pairs or single texts as before.")


def prepare_file(options: argparse.Namespace):
    """What there is to train on a file of the user's: model, recipe, splits, profile and findings."""
    if options.push_to:
        validate_repo_id(options.push_to)
    if options.export:
        check_exportable(pairs=bool(options.text_pair_column))
    rows = read_rows(options.data, options.text_column, options.label_column, options.text_pair_column)
    (rows, task, why), profile = read_labels(rows, options.task, options.label_separator), current_profile()
    base_model = options.base_model or profile.base_model(RECIPES[options.own_recipe].base_model)
    held = {}
    if options.continue_from:
        model, _, settings = load_adapter(options.continue_from, profile.precision, train=True)
        lora, base_model = model.active_peft_config, settings["base_model"]
        held = {name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")}
        held |= {name: tuple(sorted(getattr(lora, name) or ())) for name in ("target_modules", "modules_to_save")}
        held |= {name: settings[name] for name in ("quantization", "truncation", "source")} | {"model_dropout": 0.0}
    for kept in (options.data, Path(base_model)):
        if kept.exists() and kept.resolve().is_relative_to(options.output.resolve()):
            raise ValueError(f"--output {options.output} would take the place of {kept}; name another folder.")
    findings, profile = examine(rows, load_tokenizer(base_model)), replace(profile, seed=options.seed)
    recipe, profile = own_recipe(options.own_recipe, options.data, findings.usable, profile, base_model)
    recipe = replace(recipe, task=task, **({"truncation": "head"} if "pair" in rows else {}))
    caps = {"max_length": token_limit(recipe.base_model)}
    fixed = {"n_train", "n_validation", "dataset", "base_model", *(["truncation"] if "pair" in rows else ()), *held}
    if held:
        recipe = replace(recipe, **held, max_length=settings["max_length"], name=f"{recipe.name},from {held['source']}")
    recipe = as_asked(recipe, options, caps, fixed)
    recipe = replace(recipe, class_weights=options.class_weights or recipe.class_weights)
    if (recipe.class_weights or options.calibrate) and task != "single":
        asked = "Class weights are" if recipe.class_weights else "--calibrate is"
        raise ValueError(f"{asked} for one class a text, and this is --task {task} ({why}).")
    table = findings.table(recipe.max_length).to_string(header=False, index_names=False)
    print(f"{options.data.name}: {why}\n{table}\n", flush=True)
    splits = split_rows(rows, profile.seed, options.drop_incomplete)
    labels = tuple(label_names(splits["train"]))
    if not held:
        model = build_model(recipe, recipe.base_model, profile.precision, seed=profile.seed, labels=labels)
    else:
        check_continued(settings, task, labels, "pair" in rows)
    print(f"{recipe.name} on {recipe.base_model}: {len(splits['train']):,} rows to train\n{adapted(model)}", flush=True)
    return model, recipe, splits, profile, findings


def train_on_file(options: argparse.Namespace) -> None:
    """Trains on a file of the user's; the folder `--output` appears when all in it is written."""
    check_output(options)
    model, recipe, splits, profile, findings = prepare_file(options)
    with new_folder(options.output.resolve()) if process_state().is_main_process else nullcontext() as folder:
        how = {name: getattr(options, name) for name in ("restart", "track", "calibrate")}
        result = fine_tune(model, recipe, splits, profile, output=folder, **how)
        if result is None:
            return
        # A merged base lies in its adapter's folder.
        earlier = model_folder(options.continue_from) if options.continue_from else Path(recipe.base_model).parent
        result.record.settings["seen_in_training"] = add_training_texts(earlier, folder, splits["test"])
        if options.merge:
            merge_adapter(folder, folder / MERGED)
        exported = ""
        if options.export:
            try:
                exported = export_onnx(folder, folder / ONNX, splits["test"]["text"][:])
            except Exception as error:  # the model is trained, whatever torch makes of it
                exported = f"Not exported: {one_line(error)}"
        baselines = compare_with_baselines(result, splits)
        write_report(result, splits, findings, baselines)
        check_output(options)  # another run may have come before it
    shutil.rmtree(checkpoint_folder(recipe, splits, profile), ignore_errors=True)
    print(f"\n{class_scores(result, splits).head(SHOWN_CLASSES).round(3).to_string()}\n")
    title = result.record.task.title
    print(f"{title[0].upper()}{title[1:]} {result.record.score} on {result.record.n_test:,} test rows\n")
    print(scores_table(result, baselines, findings.skewed).to_string())
    print(f"{advice(result, baselines, findings.skewed)}\n{exported}")
    print(f"Adapter and model card: {options.output}   Report: {options.output / 'report'}")
    print(push_to_hub(options.output / MERGED if options.merge else options.output, options.push_to))


def add_training_texts(earlier: Path, folder: Path, test: Dataset) -> int:
    """Adds what the adapter in `earlier` was trained on to what `folder` knows; says and returns how many rows of
    `test` are of that."""
    seen = 0
    if (earlier / TRAINING_TEXTS).is_file():
        known = np.load(earlier / TRAINING_TEXTS)
        np.save(folder / TRAINING_TEXTS, np.union1d(known, np.load(folder / TRAINING_TEXTS)))
        if seen := np.isin(text_hashes(joined(test)), known).sum():
            print(f"{seen:,} test rows were seen in the adapter's own training: the score is too good.", flush=True)
    return int(seen)


def check_output(options: argparse.Namespace) -> None:
    """Raises FileExistsError where `--output` is a file or holds something that `--overwrite` does not replace."""
    if options.output and not (options.output / INFERENCE_FILE).is_file():
        check_empty(options.output)
    elif options.output and not options.overwrite:
        raise FileExistsError(f"{options.output} holds an earlier run; choose a new folder, or --overwrite it.")


if __name__ == "__main__":
    sys.exit(main())
