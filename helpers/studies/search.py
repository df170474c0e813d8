"""Where the searches for settings start, what they try, and how the best is chosen."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from helpers.profiles import EMBEDDED_BERT
from helpers.recipe import EVERY_LINEAR, Recipe
from helpers.recipes import RECIPES
from helpers.studies.runs import Run

Rows = dict[str, dict]  # the rows that are done, by the run's name
Plan = Callable[[Rows], Iterator[Run]]

SENTENCES = {"n_validation": 1_000, "n_test": 2_000}  # of Rotten Tomatoes; 5,530 are left to train
REVIEWS = {"n_validation": 2_490, "n_test": 2_490}  # of IMDb; 19,922 are left: 80/10/10
SEARCH_SEEDS = (100, 101)


# Where the searches start, from what others published: LoRA on every linear layer, about ten times full fine-tuning's
# rate (Schulman et al. 2025), small batches, no dropout, and enough updates where rows are few.
START = replace(
    RECIPES["lora_bert_sst2"],
    variant="improved",
    dataset="rotten_tomatoes",
    target_modules=EVERY_LINEAR,
    r=16,
    lora_alpha=32,
    lora_dropout=0.0,
    model_dropout=0.0,
    learning_rate=1e-3,
    num_train_epochs=3,
    min_updates=400,
    per_device_train_batch_size=16,
    lr_scheduler_type="cosine",
    warmup_ratio=0.06,
    weight_decay=0.0,
    n_validation=None,
    assumed=(),
    overrides=(),
)
RATES = {
    "lora": (5e-4, 1e-3, 2e-3),
    "qlora": (5e-4, 1e-3, 2e-3),
    "full_finetune": (5e-5, 1e-4, 2e-4),
    "head_only": (2e-3, 4e-3, 8e-3),
}


def method(name: str, recipe: Recipe) -> Recipe:
    """`recipe` as one of the methods that are compared: its adapter, in 4 bits, or none."""
    if name in ("lora", "qlora"):
        return replace(recipe, quantization="nf4" if name == "qlora" else None)
    plain = {} if name in ("full_finetune", "head_only") else {"min_updates": None}  # epochs mean nothing to a baseline
    return replace(recipe.by(name), **plain)


def best_rate(
    study: str,
    labels: dict,
    recipe: Recipe,
    rates: Sequence[float],
    rows: Rows,
    seeds: Iterable[int],
    sizes: Sequence[int] = (),
    **where,
) -> tuple[list[Run], float]:
    """The runs that search `recipe`'s rate on validation rows, and the best rate as far as their rows are there.

    With `sizes` it is the best for all these numbers of training rows together, by the mean.
    """
    seeds = tuple(seeds)

    def runs_at(rate: float) -> list[Run]:
        runs = []
        for size in sizes or (recipe.n_train,):
            marked = tuple({**({"rows": size} if sizes else {}), **labels, "learning_rate": rate}.items())
            tried = replace(recipe, learning_rate=rate, n_train=size)
            runs += [Run(study, marked, tried, seed=seed, scored_on="validation", **where) for seed in seeds]
        return runs

    rates = sorted(rates)
    while True:
        runs = [run for rate in rates for run in runs_at(rate)]
        if any(run.id not in rows for run in runs):
            return runs, rates[1]
        means = [np.mean([rows[run.id]["accuracy"] for run in runs_at(rate)]) for rate in rates]
        best = int(np.argmax(means))
        if len(rates) == 5 or 0 < best < len(rates) - 1:
            return runs, rates[best]
        rates = [rates[0] / 2, *rates] if best == 0 else [*rates, rates[-1] * 2]


CHANGES = {
    "query + value": {"target_modules": ("query", "value")},
    "pooler trained": {"modules_to_save": ("pooler",)},
    "rank 4": {"r": 4, "lora_alpha": 8},
    "rate 5e-4": {"learning_rate": 5e-4},
    "rate 2e-3": {"learning_rate": 2e-3},
    "batches of 32": {"per_device_train_batch_size": 32},
    "batches of 8": {"per_device_train_batch_size": 8, "min_updates": 800},
    "800 updates": {"min_updates": 800},
    "dropout 0.1": {"model_dropout": 0.1, "lora_dropout": 0.1},
    "weight decay 0.1": {"weight_decay": 0.1},
}


def settings(rows: Rows) -> Iterator[Run]:
    """The search for improved()'s settings: one change each, then a second on top, at two sizes, on validation rows."""
    first = _candidates([(), *((name,) for name in CHANGES)])
    yield from first
    if all(run.id in rows for run in first) and (taken := _best_change(rows, (), list(CHANGES))):
        yield from _candidates([(*taken, name) for name in _ahead(rows, taken)])


def chosen_changes(rows: Rows) -> tuple[str, ...]:
    """Which of CHANGES the search decides for; KeyError where rows of it are missing."""
    taken = _best_change(rows, (), list(CHANGES))
    return _best_change(rows, taken, _ahead(rows, taken)) if taken else taken


def _candidates(of_changes: list[tuple[str, ...]]) -> list[Run]:
    where = {"base_model": EMBEDDED_BERT, "scored_on": "validation", **SENTENCES}
    runs = []
    for seed in SEARCH_SEEDS:
        for n_train in (500, 2_000):
            for names in of_changes:
                recipe = replace(START, n_train=n_train, **{k: v for name in names for k, v in CHANGES[name].items()})
                labels = (("change", " and ".join(names) or "start"), ("rows", n_train))
                runs.append(Run("settings", labels, recipe, seed=seed, **where))
    return runs


def _mean_accuracy(rows: Rows, names: tuple[str, ...]) -> float:
    return float(np.mean([rows[run.id]["accuracy"] for run in _candidates([names])]))


def _ahead(rows: Rows, taken: tuple[str, ...]) -> list[str]:
    start = _mean_accuracy(rows, ())
    return [name for name in CHANGES if name not in taken and _mean_accuracy(rows, (name,)) > start]


def _best_change(rows: Rows, taken: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """`taken` and the best of `names` on top of it, where that gains enough."""
    gains = {name: _mean_accuracy(rows, (*taken, name)) - _mean_accuracy(rows, taken) for name in names}
    best = max(gains, key=gains.get, default=None)
    enough = best and gains[best] >= (0.01 if "min_updates" in CHANGES[best] else 0.005)
    return (*taken, best) if enough else taken


# What `settings` chose. The studies search its rate anew; our version of the SST-2 post has that of `more_layers`.
FEW_ROWS = replace(
    RECIPES["lora_bert_sst2"].improved(),
    dataset="rotten_tomatoes",
    learning_rate=1e-3,
    n_validation=None,
    assumed=(),
    overrides=(),
)
FEWER = {  # by name, what is changed of a recipe at the sizes where LoRA was behind
    "every linear layer, half the rate": lambda lora: {
        "target_modules": EVERY_LINEAR, "learning_rate": lora.learning_rate / 2
    },
    "every linear layer, rank 4": lambda lora: {"target_modules": EVERY_LINEAR, "r": 4, "lora_alpha": 8},
    "rank 64, half the rate": lambda lora: {"r": 64, "lora_alpha": 128, "learning_rate": lora.learning_rate / 2},
    "pooler trained": lambda lora: {"modules_to_save": ("pooler",)},
    "800 updates": lambda lora: {"min_updates": 800},
    "batches of 8": lambda lora: {"per_device_train_batch_size": 8},
    "dropout 0.1": lambda lora: {"model_dropout": 0.1, "lora_dropout": 0.1},
    "200 updates": lambda lora: {"min_updates": 200},
    "a quarter of the rate": lambda lora: {"learning_rate": lora.learning_rate / 4},
}  # fmt: skip
PLANNED_FIRST = list(FEWER)[:-2]  # the last two came when most of these were in


def fewest(rows: Rows) -> Iterator[Run]:
    """What LoRA lacks on 100 to 500 sentences: changes to it at the rates that `few_rows` found, the best scored."""
    where = {"base_model": EMBEDDED_BERT, **SENTENCES}
    sized = []
    for size in (100, 250, 500):
        lora, labels = replace(FEW_ROWS, n_train=size), {"rows": size, "method": "lora"}
        rate = best_rate("few_rows_search", labels, lora, RATES["lora"], rows, SEARCH_SEEDS, **where)[1]
        sized.append(replace(lora, learning_rate=rate))

    def runs(study: str, name: str, seeds: Sequence[int], scored_on: str) -> list[Run]:
        changed = [replace(lora, **FEWER[name](lora)) for lora in sized]
        labelled = [((("change", name), ("rows", lora.n_train)), lora) for lora in changed]
        return [Run(study, *pair, seed=seed, scored_on=scored_on, **where) for pair in labelled for seed in seeds]

    tried = {name: runs("fewest_search", name, SEARCH_SEEDS, "validation") for name in FEWER}
    for searched in tried.values():
        yield from searched
    if all(run.id in rows for searched in tried.values() for run in searched):
        means = {name: np.mean([rows[run.id]["accuracy"] for run in searched]) for name, searched in tried.items()}
        for best in dict.fromkeys(max(names, key=means.get) for names in (FEWER, PLANNED_FIRST)):
            yield from runs("fewest", best, range(5), "test")


def one_rate(rows: Rows) -> Iterator[Run]:
    """One rate for all sizes: LoRA's and full fine-tuning's for 100 to 2,000 sentences, from five seeds at each."""
    rates = {"lora": (2.5e-4, 5e-4, 1e-3), "full_finetune": (2.5e-5, 5e-5, 1e-4)}
    variants = {name: (method(name, FEW_ROWS), tried) for name, tried in rates.items()}
    yield from _at_one_rate("one_rate", "method", variants, (100, 250, 500, 1_000, 2_000), rows)


LAYERS = {  # by name, what trains and the rates that are tried first
    "query + value": (FEW_ROWS, (2.5e-4, 5e-4, 1e-3)),
    "every linear layer, rank 4": (replace(FEW_ROWS, target_modules=EVERY_LINEAR, r=4, lora_alpha=8), RATES["lora"]),
    "every weight": (method("full_finetune", FEW_ROWS), (2.5e-5, 5e-5, 1e-4)),
}


def more_layers(rows: Rows) -> Iterator[Run]:
    """Whether every linear layer is worth its time from 1,000 sentences on: five seeds, one rate for both sizes.

    And what full fine-tuning gains there from a rate for these two sizes alone.
    """
    yield from _at_one_rate("more_layers", "layers", LAYERS, (1_000, 2_000), rows)


def _at_one_rate(study: str, label: str, variants: dict, sizes: Sequence[int], rows: Rows) -> Iterator[Run]:
    """Each recipe with the one of its rates that is best for all sizes together, searched and then scored."""
    where = {"base_model": EMBEDDED_BERT, **SENTENCES}
    for name, (recipe, rates) in variants.items():
        runs, rate = best_rate(f"{study}_search", {label: name}, recipe, rates, rows, range(100, 105), sizes, **where)
        yield from runs
        for size in sizes:
            marked = (("rows", size), (label, name), ("learning_rate", rate))
            for seed in range(5):
                yield Run(study, marked, replace(recipe, n_train=size, learning_rate=rate), seed=seed, **where)
