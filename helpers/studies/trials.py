"""A study in one go: several recipes with several seeds on the same rows."""

from collections.abc import Iterable, Sequence

from datasets import DatasetDict
from tqdm.auto import tqdm

from helpers.data import dataset_name
from helpers.fitting.loop import fit
from helpers.models import build_model, count_parameters
from helpers.profiles import Execution, Profile
from helpers.recipe import Recipe
from helpers.results import StudyRecord
from helpers.studies.compare import scores
from helpers.training import class_probabilities, tokenize_splits


def run_study(
    name: str,
    runs: Sequence[tuple[dict[str, object], Recipe]],
    splits: DatasetDict,
    profile: Profile,
    execution: Execution,
    *,
    command: str,
    seeds: Iterable[int] = (0, 1),
    score_on: str = "validation",
) -> StudyRecord:
    """Trains each recipe with each seed on `splits["train"]` and scores its last step on `splits[score_on]`.

    `runs` pairs each recipe with the labels its rows carry, such as `{"r": 8}`; all recipes must share dataset,
    checkpoint, `max_length` and `truncation`, since the rows are tokenized once. A seed fixes head, adapter and order.
    Each row has the labels and `seed, n_train, trainable_params, train_seconds, accuracy, accuracy_ci95, correct`.
    Writes the record to `Data/<profile>/results/studies` and returns it.
    """
    seeds = tuple(seeds)
    first = runs[0][1]
    shared = ("base_model", "dataset", "max_length", "truncation")
    for _, recipe in runs:
        if differing := [field for field in shared if getattr(recipe, field) != getattr(first, field)]:
            raise ValueError(f"The recipes of one study must share {', '.join(differing)}.")
    tokenizer, tokens = tokenize_splits(first, splits, profile)
    base_model = profile.base_model(first.base_model)
    rows = []
    bar = tqdm([(labels, recipe, seed) for labels, recipe in runs for seed in seeds], desc=name)
    for labels, recipe, seed in bar:
        bar.set_postfix(labels, refresh=False)
        model = build_model(recipe, base_model, execution, seed)
        trainable, _ = count_parameters(model)
        fitted = fit(model, tokenizer, recipe, tokens["train"], None, execution, seed)
        predictions = class_probabilities(model, tokenizer, tokens[score_on], execution).argmax(axis=1)
        row = {**labels, "seed": seed, "n_train": len(tokens["train"]), "trainable_params": trainable}
        rows.append({**row, "train_seconds": round(fitted.seconds, 2), **scores(predictions, splits[score_on])})
    settings = {
        "base_model": base_model,
        "dataset": dataset_name(first.dataset, profile),
        "scored_on": score_on,
        "n_scored": len(splits[score_on]),
        "max_length": profile.tokens(first.max_length),
        "precision": execution.precision,
        "seeds": list(seeds),
    }
    record = StudyRecord(name, command, profile.name, execution.device_name, settings, rows)
    record.save(profile.results / "studies")
    return record
