"""One recipe from a terminal, under the profile in force: `python -m helpers.train RECIPE [--improved]`.

On your own texts: `python -m helpers.train --data reviews.csv --text-column text --label-column label --output FOLDER`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from helpers import own_data
from helpers.data import load_splits
from helpers.evaluation import class_scores
from helpers.models import INFERENCE_FILE, adapt_recipe, build_model, load_tokenizer
from helpers.profiles import DATA_DIR, Profile, current_profile, fastest_execution
from helpers.publish import MERGED, merge_adapter, push_to_hub, write_report
from helpers.recipes import RECIPES, Recipe
from helpers.results import new_folder
from helpers.series import summary
from helpers.training import fine_tune, score_bag_of_words

OWN_DATA_RECIPE = "lora_distilbert_qv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a recipe on its own dataset, or on a file with `--data`; returns the exit status.

    On its dataset: as the notebooks do, beside the bag of words on the same rows; writes records and adapter. On a
    file: writes adapter, card and report to `--output`, or nothing at all. Bad input is one line on stderr, status 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m helpers.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(sorted(RECIPES))
    parser.add_argument("recipe", nargs="?", choices=sorted(RECIPES), metavar="RECIPE", help=names)
    parser.add_argument("--improved", action="store_true", help="our version of the recipe, not the source's own")
    parser.add_argument("--track", action="store_true", help="log to W&B where a key or WANDB_MODE=offline is set")
    own = parser.add_argument_group("your own data (every row of the file is used; the recipe is our version of it)")
    own.add_argument("--data", type=Path, metavar="FILE", help=f"a file that ends in {', '.join(own_data.READERS)}")
    own.add_argument("--text-column", metavar="NAME")
    own.add_argument("--label-column", metavar="NAME", help="any number of classes, as words or numbers")
    own.add_argument("--output", type=Path, metavar="FOLDER", help="for adapter, model card and report")
    own.add_argument("--recipe", dest="own_recipe", choices=sorted(RECIPES), metavar="RECIPE", default=OWN_DATA_RECIPE,
                     help=f"default {OWN_DATA_RECIPE}")  # fmt: skip
    own.add_argument("--base-model", metavar="NAME", help="an encoder's hub name or folder; default: the profile's")
    own.add_argument("--drop-incomplete", action="store_true", help="leave out rows without text or label")
    own.add_argument("--merge", action="store_true", help=f"also write a plain model, to FOLDER/{MERGED}")
    own.add_argument("--push-to", metavar="USER/NAME", help="upload to this private repository if a token is set")
    own.add_argument("--overwrite", action="store_true", help="replace an earlier run's FOLDER")
    options = parser.parse_args(arguments)
    if options.data:
        if options.recipe:
            parser.error("with --data, name the recipe as --recipe RECIPE")
        if missing := [name for name in ("text_column", "label_column", "output") if getattr(options, name) is None]:
            parser.error(f"--data needs {', '.join('--' + name.replace('_', '-') for name in missing)} too")
        return _train_on_file(options)
    if not options.recipe:
        parser.error(f"name a RECIPE ({names}), or a file with --data")
    profile, execution = current_profile(), fastest_execution()
    recipe = RECIPES[options.recipe].improved() if options.improved else RECIPES[options.recipe]
    splits = load_splits(recipe, profile)
    print(f"Profile {profile.name}: {recipe.name}, {recipe.variant}, {len(splits['train']):,} reviews", flush=True)
    bag, _ = score_bag_of_words(recipe, splits, profile)
    model = build_model(recipe, profile.base_model(recipe.base_model), execution, profile.seed)
    result = fine_tune(model, recipe, splits, profile, execution, track=options.track)
    print(f"\n{summary([result.record, bag], profile)}\nAdapter: {result.adapter.relative_to(DATA_DIR.parent)}")
    return 0


def own_recipe(name: str, file: str | Path, profile: Profile, base_model: str | None = None) -> tuple[Recipe, Profile]:
    """Our version of recipe `name` and the profile to train it under, on every row of `file`.

    `base_model` is a hub name or a folder; None is the profile's own checkpoint. The profile still caps the token
    limit, but neither rows nor epochs. Raises what `models.adapt_recipe` raises.
    """
    recipe = RECIPES[name].improved()
    base_model = base_model or profile.base_model(recipe.base_model)
    if os.path.isdir(base_model):
        base_model = os.path.abspath(base_model)  # the adapter must find it from anywhere
    recipe = adapt_recipe(replace(recipe, dataset=Path(file).name, n_train=None, n_validation=None), base_model)
    return recipe, replace(profile, embedded=False, n_train=None, n_validation=None, n_test=None, max_epochs=None)


def _train_on_file(options: argparse.Namespace) -> int:
    execution, output = fastest_execution(), options.output.resolve()
    try:
        _check_output(output, options.overwrite)
        if options.push_to:
            validate_repo_id(options.push_to)
        rows = own_data.read_rows(options.data, options.text_column, options.label_column)
        recipe, profile = own_recipe(options.own_recipe, options.data, current_profile(), options.base_model)
        tokenizer = load_tokenizer(recipe.base_model)
        findings = own_data.examine(rows, tokenizer, profile.tokens(recipe.max_length))
        print(f"{options.data.name}\n{findings.table().to_string(header=False, index_names=False)}\n", flush=True)
        splits = own_data.split_rows(rows, profile.seed, options.drop_incomplete)
        labels = tuple(splits["train"].features["label"].names)
        model = build_model(recipe, recipe.base_model, execution, profile.seed, labels)
    except (ValueError, OSError) as error:
        message = str(error).replace("drop_incomplete", "--drop-incomplete")
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in splits.items())
    print(f"{recipe.name} on {recipe.base_model}: {sizes} rows", flush=True)
    with new_folder(output) as folder:
        result = fine_tune(model, recipe, splits, profile, execution, track=options.track, output=folder)
        if options.merge:
            merge_adapter(folder, folder / MERGED)
        write_report(result, splits, findings)
    record = result.record
    low, high = record.accuracy_ci95
    print(f"\n{class_scores(result.predictions, splits['test']['label'], labels).round(3).to_string()}\n")
    print(f"Accuracy {record.metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}] on {record.n_test:,} test rows")
    print(f"Adapter and model card: {options.output}   Report: {options.output / 'report'}")
    print(push_to_hub(options.output / MERGED if options.merge else options.output, options.push_to))
    return 0


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_file():
        raise FileExistsError(f"--output {output} is a file; it must be a folder, new or empty.")
    if output.is_dir() and any(output.iterdir()):
        if not (output / INFERENCE_FILE).is_file():
            raise FileExistsError(f"--output {output} holds other files; choose a new folder.")
        if not overwrite:
            raise FileExistsError(f"--output {output} holds an earlier run; choose a new folder, or --overwrite it.")


if __name__ == "__main__":
    sys.exit(main())
