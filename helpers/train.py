"""One recipe from a terminal, under the profile in force: `python -m helpers.train RECIPE [--improved]`.

On your own texts: `python -m helpers.train --data reviews.csv --text-column text --label-column label --output FOLDER`.
On two GPUs: `torchrun --standalone --nproc_per_node=2 -m helpers.train ...`.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import DatasetDict
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel

from helpers.adapters import INFERENCE_FILE
from helpers.base.paths import shown
from helpers.base.tables import READERS, read_rows
from helpers.base.writing import NotWritten, new_folder
from helpers.data import load_splits
from helpers.evaluation import balanced_accuracy, class_scores
from helpers.fitting.resuming import Occupied, Stopped
from helpers.fitting.trainer import process_state
from helpers.models import build_model, load_tokenizer
from helpers.own_data import OWN_DATA_RECIPE, SHOWN_CLASSES, Findings, examine, own_recipe, split_rows
from helpers.profiles import Execution, Profile, current_profile, fastest_execution
from helpers.publish import MERGED, merge_adapter, push_to_hub, write_report
from helpers.recipe import Recipe
from helpers.recipes import RECIPES
from helpers.report import Baseline, advice, compare_with_baselines, scores_table
from helpers.results import RunRecord, summary
from helpers.training import FineTuned, fine_tune, score_bag_of_words


@dataclass
class _Job:
    """All that a training needs, loaded and checked; `findings` are those of an own file."""

    recipe: Recipe
    profile: Profile
    execution: Execution
    splits: DatasetDict
    model: PeftModel
    findings: Findings | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains a recipe on its own dataset, or on a file with `--data`; returns the exit status.

    On its dataset: as the notebooks do, beside the bag of words on the same rows; writes records and adapter. On a
    file: writes adapter, card and report to `--output`, or nothing at all. Bad input is one line on stderr, status 2,
    and so is a run that another process does now; memory or a disk that runs out, too, status 1. Under `torchrun` all
    processes train, the first writes and prints.
    """
    state = process_state("cuda" if torch.cuda.is_available() else "cpu")
    with ExitStack() as stack:
        if not state.is_main_process:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        options = _options(arguments, state)
        try:
            status = _run(options, state)
        except (MemoryError, NotWritten) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 1
        except Occupied as error:
            if state.is_main_process:
                print(f"error: {error}", file=sys.stderr, flush=True)
            state.wait_for_everyone()  # as in _options
            return 2
        except Stopped as stopped:
            print(stopped, file=sys.stderr, flush=True)
            return stopped.status
    if state.num_processes > 1:
        state.destroy_process_group()
    return status


def _options(arguments: Sequence[str] | None, state: PartialState) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(sorted(RECIPES))
    parser.add_argument("recipe", nargs="?", choices=sorted(RECIPES), metavar="RECIPE", help=names)
    parser.add_argument("--improved", action="store_true", help="our version of the recipe, not the source's own")
    parser.add_argument("--track", action="store_true", help="log to W&B where a key or WANDB_MODE=offline is set")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the adapter; default: the profile's own")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run's FOLDER")
    parser.add_argument("--restart", action="store_true", help="begin anew where a run that was stopped would go on")
    parser.add_argument("--batch-size", type=int, metavar="ROWS", help="rows that a device holds at once, a part of "
                        "the recipe's batch; updates stay as large")  # fmt: skip
    parser.add_argument("--class-weights", choices=("balanced",), help="each class counts the same in the loss, "
                        "however few its rows, and the epoch with the best balanced accuracy is kept")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE",
                        help="another value for a setting of the recipe, such as r=32; may be repeated")  # fmt: skip
    own = parser.add_argument_group("your own data (every row of the file is used; the recipe is our version of it)")
    own.add_argument("--data", type=Path, metavar="FILE", help=f"a file that ends in {', '.join(READERS)}; "
                     "--output then takes model card and report, too")  # fmt: skip
    own.add_argument("--text-column", metavar="NAME")
    own.add_argument("--label-column", metavar="NAME", help="any number of classes, as words or numbers")
    own.add_argument("--recipe", dest="own_recipe", choices=sorted(RECIPES), metavar="RECIPE", default=OWN_DATA_RECIPE,
                     help=f"default {OWN_DATA_RECIPE}")  # fmt: skip
    own.add_argument("--base-model", metavar="NAME", help="an encoder's hub name or folder; default: the profile's")
    own.add_argument("--drop-incomplete", action="store_true", help="leave out rows without text or label")
    own.add_argument("--merge", action="store_true", help=f"also write a plain model, to FOLDER/{MERGED}")
    own.add_argument("--push-to", metavar="USER/NAME", help="upload to this private repository if a token is set")
    try:
        with nullcontext() if state.is_main_process else redirect_stderr(sys.stdout):  # which leads nowhere
            options = parser.parse_args(arguments)
            if options.data:
                if options.recipe:
                    parser.error("with --data, name the recipe as --recipe RECIPE")
                needed = ("text_column", "label_column", "output")
                if missing := [name for name in needed if getattr(options, name) is None]:
                    parser.error(f"--data needs {', '.join('--' + name.replace('_', '-') for name in missing)} too")
            elif not options.recipe:
                parser.error(f"name a RECIPE ({names}), or a file with --data")
            elif options.base_model:
                parser.error("--base-model goes with --data; a recipe takes --set base_model=NAME, under PROFILE=hub")
    except SystemExit:
        state.wait_for_everyone()  # torchrun ends all processes once one has ended: the first is to speak before
        raise
    return options


def _run(options: argparse.Namespace, state: PartialState) -> int:
    job = problem = None
    with state.local_main_process_first():  # what one downloads or prepares, the others of its machine find there
        try:
            if options.output:
                _check_output(options.output.resolve(), options.overwrite)
            job = _job_on_file(options) if options.data else _job(options)
        except (ValueError, OSError) as error:
            problem = " ".join(str(error).replace("drop_incomplete", "--drop-incomplete").split())
    if problems := [problem for problem in gather_object([problem]) if problem]:
        if state.is_main_process:
            print(f"error: {problems[0]}", file=sys.stderr, flush=True)
        state.wait_for_everyone()  # as in _options
        return 2
    bag = None
    if not job.findings and state.is_main_process:
        bag, _ = score_bag_of_words(job.recipe, job.splits, job.profile)
    output = options.output.resolve() if options.output else None
    checkpoints = job.profile.checkpoints / f".{output.name}-{crc32(str(output).encode()):08x}" if output else None
    with new_folder(output) if output and state.is_main_process else nullcontext() as folder:
        result = fine_tune(
            job.model, job.recipe, job.splits, job.profile, job.execution,
            track=options.track, output=folder, checkpoints=checkpoints, restart=options.restart,
            keep=checkpoints is not None,
        )  # fmt: skip
        if result and job.findings:
            if options.merge:
                merge_adapter(folder, folder / MERGED)
            baselines = compare_with_baselines(result.record, job.splits, job.execution)
            write_report(result, job.splits, job.findings, baselines)
    if result and checkpoints:  # now that all is in its place
        shutil.rmtree(checkpoints, ignore_errors=True)
    if result and job.findings:
        _say_how_the_file_went(options, job, result, baselines)
    elif result:
        _say_how_the_recipe_went(options, job, result, bag)
    return 0


def _job(options: argparse.Namespace) -> _Job:
    profile, execution = current_profile(), fastest_execution()
    recipe = RECIPES[options.recipe].improved() if options.improved else RECIPES[options.recipe]
    recipe = _as_asked(options, recipe)
    if profile.embedded and recipe.base_model != RECIPES[options.recipe].base_model:
        raise ValueError(f"PROFILE={profile.name} has its own encoder; PROFILE=hub loads {recipe.base_model!r}.")
    splits = load_splits(recipe, profile)
    print(f"Profile {profile.name}: {recipe.name}, {recipe.variant}, {len(splits['train']):,} reviews", flush=True)
    model = build_model(recipe, profile.base_model(recipe.base_model), execution, profile.seed)
    return _Job(recipe, profile, execution, splits, model)


def _job_on_file(options: argparse.Namespace) -> _Job:
    if options.push_to:
        validate_repo_id(options.push_to)
    execution = fastest_execution()
    rows = read_rows(options.data, options.text_column, options.label_column)
    recipe, profile = own_recipe(options.own_recipe, options.data, len(rows), current_profile(), options.base_model)
    recipe = _as_asked(options, recipe)
    findings = examine(rows, load_tokenizer(recipe.base_model), profile.tokens(recipe.max_length))
    print(f"{options.data.name}\n{findings.table().to_string(header=False, index_names=False)}\n", flush=True)
    splits = split_rows(rows, profile.seed, options.drop_incomplete)
    labels = tuple(splits["train"].features["label"].names)
    model = build_model(recipe, recipe.base_model, execution, profile.seed, labels)
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in splits.items())
    print(f"{recipe.name} on {recipe.base_model}: {sizes} rows", flush=True)
    return _Job(recipe, profile, execution, splits, model, findings)


def _as_asked(options: argparse.Namespace, recipe: Recipe) -> Recipe:
    recipe = _in_batches_of(options.batch_size, recipe.with_settings(options.settings))
    return replace(recipe, class_weights=options.class_weights or recipe.class_weights)


def _in_batches_of(rows: int | None, recipe: Recipe) -> Recipe:
    """`recipe` with batches of `rows` (None: its own) and as many of them to an update as keep its size."""
    if rows is None:
        return recipe
    update = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    if rows < 1 or update % rows:
        parts = ", ".join(str(part) for part in range(1, update + 1) if update % part == 0)
        raise ValueError(
            f"--batch-size {rows} does not divide {recipe.name}'s update of {update} rows; choose {parts}."
        )
    return replace(recipe, per_device_train_batch_size=rows, gradient_accumulation_steps=update // rows)


def _say_how_the_recipe_went(options: argparse.Namespace, job: _Job, result: FineTuned, bag: RunRecord) -> None:
    if options.output:  # which fine_tune writes no record for
        result.record.save(job.profile.results)
    print(f"\n{summary([result.record, bag], job.profile)}\nAdapter: {options.output or shown(result.adapter)}")


def _say_how_the_file_went(
    options: argparse.Namespace, job: _Job, result: FineTuned, baselines: Sequence[Baseline]
) -> None:
    record, test = result.record, job.splits["test"]
    accuracy = f"Accuracy {record.score} on {record.n_test:,} test rows"
    scores = class_scores(result.predictions, test["label"], test.features["label"].names)
    table = f"{scores.head(SHOWN_CLASSES).round(3).to_string()}\n"
    if len(scores) > SHOWN_CLASSES:
        table += f"... and {len(scores) - SHOWN_CLASSES:,} more classes in report/class_scores.csv\n"
    if job.findings.skewed:
        value, low, high = balanced_accuracy(record.confusion_matrix)
        print(f"\nBalanced accuracy {value:.1%} [{low:.1%}, {high:.1%}], which leads where classes are skewed")
    print(f"\n{table}\n{accuracy}\n")
    print(f"{scores_table(record, baselines, job.findings.skewed).to_string()}")
    print(f"{advice(record, baselines, job.findings.skewed)}\n")
    print(f"Adapter and model card: {options.output}   Report: {options.output / 'report'}")
    print(push_to_hub(options.output / MERGED if options.merge else options.output, options.push_to))


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_file():
        raise FileExistsError(f"--output {output} is a file; it must be a folder, new or empty.")
    if output.is_dir() and any(output.iterdir()):
        if not (output / INFERENCE_FILE).is_file():
            raise FileExistsError(f"--output {output} holds other files; choose a new folder.")
        if not overwrite:
            raise FileExistsError(f"--output {output} holds an earlier run; choose a new folder, or --overwrite it.")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for a label that this terminal cannot show
    sys.exit(main())
