"""One recipe from a terminal, under the profile in force: `python -m helpers.train RECIPE [--improved]`.

On your own texts: `python -m helpers.train --data reviews.csv --text-column text --label-column label --output FOLDER`.
On two GPUs: `torchrun --standalone --nproc_per_node=2 -m helpers.train ...`.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
from huggingface_hub.utils import validate_repo_id
from pydantic import ValidationError

from helpers.data import load_splits
from helpers.files import ENDINGS, new_folder, read_rows, shown
from helpers.inference import INFERENCE_FILE, merge_adapter, push_to_hub
from helpers.models import build_model, load_tokenizer
from helpers.own_data import OWN_DATA_RECIPE, SHOWN_CLASSES, examine, own_recipe, split_rows
from helpers.profiles import Profile, current_profile
from helpers.recipe import Recipe
from helpers.recipes import RECIPES
from helpers.report import MERGED, advice, class_scores, compare_with_baselines, scores_table, write_report
from helpers.results import summary
from helpers.start import prepare_process
from helpers.trainer import process_state
from helpers.training import checkpoint_folder, fine_tune, score_bag_of_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a recipe on its own dataset, or on a file with `--data`; returns the exit status.

    On its dataset: as the notebooks do, beside the bag of words on the same rows; writes records and adapter. On a
    file: writes adapter, card and report to `--output`, or nothing at all. Bad input is one line on stderr, status 2;
    memory or a disk that runs out, too, status 1. Under `torchrun` the first process writes and prints.
    """
    prepare_process()
    options = parse(arguments)
    state = process_state()
    quiet = nullcontext() if state.is_main_process else redirect_stdout(open(os.devnull, "w"))  # noqa: SIM115
    with quiet:
        try:
            return train_on_file(options) if options.data else train_recipe(options)
        except (ValueError, OSError, MemoryError) as error:
            # A setting or a file is wrong in all processes alike; the first speaks before any of them ends.
            if state.is_main_process:
                print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
            return 1 if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno) else 2
        except KeyboardInterrupt:
            print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
            return 130


def one_line(error: Exception) -> str:
    """An error's message in one line; of a setting that is refused, its name and why."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}={one['input']!r}: {one['msg']}" for one in error.errors())
    return " ".join(str(error).replace("drop_incomplete", "--drop-incomplete").split())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; what is missing or does not go together ends the process, status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(sorted(RECIPES))
    add = parser.add_argument
    add("recipe", nargs="?", choices=sorted(RECIPES), metavar="RECIPE", help=names)
    add("--improved", action="store_true", help="our version of the recipe, not the source's own")
    add("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE",
        help="another value for a setting of the recipe, such as r=32; may be repeated")  # fmt: skip
    add("--seed", type=int, default=42, help="fixes the split, the head, the adapter and the order (default 42)")
    add("--output", type=Path, metavar="FOLDER", help="for the adapter; default: the profile's own")
    add("--overwrite", action="store_true", help="replace an earlier run's FOLDER")
    add("--restart", action="store_true", help="begin anew where a run that was stopped would go on")
    add("--track", action="store_true", help="log to W&B where a key or WANDB_MODE=offline is set")
    own = parser.add_argument_group("your own data (every row of the file is used; the recipe is our version of it)")
    add = own.add_argument
    add("--data", type=Path, metavar="FILE", help=f"a file that ends in {', '.join(ENDINGS)}")
    add("--text-column", metavar="NAME")
    add("--label-column", metavar="NAME", help="any number of classes, as words or numbers")
    add("--recipe", dest="own_recipe", choices=sorted(RECIPES), metavar="RECIPE", default=OWN_DATA_RECIPE,
        help=f"default {OWN_DATA_RECIPE}")  # fmt: skip
    add("--base-model", metavar="NAME", help="an encoder's hub name or folder; default: the profile's")
    add("--class-weights", choices=("balanced",), help="each class counts the same, however few its rows")
    add("--drop-incomplete", action="store_true", help="leave out rows without text or label")
    add("--merge", action="store_true", help=f"also write a plain model, to FOLDER/{MERGED}")
    add("--push-to", metavar="USER/NAME", help="upload to this private repository if a token is set")
    options = parser.parse_args(arguments)
    needed = [name for name in ("text_column", "label_column", "output") if getattr(options, name) is None]
    if options.data and (options.recipe or needed):
        missing = ", ".join("--" + name.replace("_", "-") for name in needed)
        parser.error(f"--data needs {missing} too" if needed else "with --data, name the recipe as --recipe RECIPE")
    if not options.data and (options.base_model or not options.recipe):
        parser.error(f"name a RECIPE ({names}), or a file with --data; --base-model goes with --data")
    return options


def train_recipe(options: argparse.Namespace) -> int:
    """Trains a recipe on its own dataset, beside the bag of words."""
    profile = replace(current_profile(), seed=options.seed)
    recipe = RECIPES[options.recipe].improved() if options.improved else RECIPES[options.recipe]
    recipe = as_asked(options, recipe, profile)
    check_output(options)
    splits = load_splits(recipe, profile)
    print(f"Profile {profile.name}: {recipe.name}, {recipe.variant}, {len(splits['train']):,} reviews", flush=True)
    model = build_model(recipe, profile.base_model(recipe.base_model), profile.precision, seed=profile.seed)
    result = fine_tune(
        model, recipe, splits, profile, output=options.output, restart=options.restart, track=options.track
    )
    if result:
        bag = score_bag_of_words(recipe, splits, profile)
        result.record.save(profile.results)
        print(f"\n{summary([result.record, bag], profile)}\nAdapter: {shown(result.adapter)}")
    return 0


def as_asked(options: argparse.Namespace, recipe: Recipe, profile: Profile) -> Recipe:
    """`recipe` with `--set`. Raises ValueError for a setting that the profile would not take as it is asked for."""
    changed = recipe.with_settings(options.settings)
    caps = {"max_length": profile.max_length, "num_train_epochs": profile.max_epochs, "n_train": profile.n_train}
    for field, cap in caps.items():
        asked, value = any(one.split("=")[0].strip() == field for one in options.settings), getattr(changed, field)
        if asked and cap and value != min(value, cap):
            raise ValueError(
                f"{field}={value} is more than PROFILE={profile.name} takes, {cap}; PROFILE=full takes it."
            )
        if asked and field == "n_train" and cap:
            raise ValueError(f"PROFILE={profile.name} has its own n_train, {cap}; PROFILE=full takes {value}.")
    if profile.embedded and changed.base_model != recipe.base_model:
        raise ValueError(f"PROFILE={profile.name} has its own encoder; PROFILE=hub loads {changed.base_model!r}.")
    return changed


def train_on_file(options: argparse.Namespace) -> int:
    """Trains on a file of the user's; the folder `--output` appears when all in it is written."""
    check_output(options)
    if options.push_to:
        validate_repo_id(options.push_to)
    rows, profile = read_rows(options.data, options.text_column, options.label_column), current_profile()
    base_model = options.base_model or profile.base_model(RECIPES[options.own_recipe].base_model)
    findings = examine(rows, load_tokenizer(base_model))
    profile = replace(profile, seed=options.seed)
    recipe, profile = own_recipe(options.own_recipe, options.data, findings.usable, profile, base_model)
    limit = recipe.max_length
    recipe = recipe.with_settings(options.settings) if options.settings else recipe
    if recipe.max_length > limit and any(one.startswith("max_length") for one in options.settings):
        raise ValueError(f"max_length={recipe.max_length} is more than {limit}, what the encoder or the profile takes.")
    recipe = replace(recipe, class_weights=options.class_weights or recipe.class_weights)
    table = findings.table(recipe.max_length).to_string(header=False, index_names=False)
    print(f"{options.data.name}\n{table}\n", flush=True)
    splits = split_rows(rows, profile.seed, options.drop_incomplete)
    labels = splits["train"].features["label"].names
    model = build_model(recipe, recipe.base_model, profile.precision, seed=profile.seed, labels=tuple(labels))
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in splits.items())
    print(f"{recipe.name} on {recipe.base_model}: {sizes} rows", flush=True)
    output = options.output.resolve()
    with new_folder(output) if process_state().is_main_process else nullcontext() as folder:
        result = fine_tune(model, recipe, splits, profile, output=folder, restart=options.restart, track=options.track)
        if result is None:
            return 0
        if options.merge:
            merge_adapter(folder, folder / MERGED)
        baselines = compare_with_baselines(result, splits)
        write_report(result, splits, findings, baselines)
    shutil.rmtree(checkpoint_folder(recipe, splits, profile, output), ignore_errors=True)
    scores = class_scores(result.predictions, np.array(splits["test"]["label"]), labels)
    print(f"\n{scores.head(SHOWN_CLASSES).round(3).to_string()}\n")
    print(f"Accuracy {result.record.score} on {result.record.n_test:,} test rows\n")
    print(scores_table(result, baselines, findings.skewed).to_string())
    print(f"{advice(result, baselines, findings.skewed)}\n")
    print(f"Adapter and model card: {options.output}   Report: {options.output / 'report'}")
    print(push_to_hub(options.output / MERGED if options.merge else options.output, options.push_to))
    return 0


def check_output(options: argparse.Namespace) -> None:
    """Raises FileExistsError where `--output` is a file or holds something that `--overwrite` does not replace."""
    output = options.output
    if output and output.exists() and (output.is_file() or any(output.iterdir())):
        if not (output / INFERENCE_FILE).is_file():
            raise FileExistsError(f"--output {output} is not empty; choose a new folder.")
        if not options.overwrite:
            raise FileExistsError(f"--output {output} holds an earlier run; choose a new folder, or --overwrite it.")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for a label that this terminal cannot show
    sys.exit(main())
