"""The searches for the settings on reviews: at 4,000 of them, with all, and for the few minutes of `quick`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from helpers.profiles import EMBEDDED_BERT
from helpers.recipe import EVERY_LINEAR, Recipe
from helpers.studies.runs import Run
from helpers.studies.search import FEW_ROWS, RATES, REVIEWS, SEARCH_SEEDS, Rows, best_rate, method

SHORT_REVIEWS = replace(FEW_ROWS, dataset="imdb", max_length=128, truncation="head+tail")
LONGER = (256, 512)


def many_rows(rows: Rows) -> Iterator[Run]:
    """The search for the settings on all reviews, at 4,000 of them: layers, each at its best rate, then which tokens,
    then how many. Its runs on query and value are also those of `few_reviews`.
    """
    yield from _many_rows(rows)[0]


def chosen_for_reviews(rows: Rows) -> Recipe:
    """LoRA's recipe that `many_rows` decides for, as far as its rows are there."""
    return _many_rows(rows)[1]


def _many_rows(rows: Rows) -> tuple[list[Run], Recipe]:
    where = {"base_model": EMBEDDED_BERT, **REVIEWS}
    seeds, few = SEARCH_SEEDS[:1], replace(SHORT_REVIEWS, n_train=4_000)
    runs: list[Run] = []

    def at_best_rate(name: str, recipe: Recipe) -> Recipe:
        searched, rate = best_rate("many_rows", {"change": name}, recipe, RATES["lora"], rows, seeds, **where)
        runs.extend(searched)
        return replace(recipe, learning_rate=rate)

    def run_of(name: str, recipe: Recipe) -> Run:
        labels = (("change", name), ("learning_rate", recipe.learning_rate))
        return Run("many_rows", labels, recipe, seed=seeds[0], scored_on="validation", **where)

    def better_of(chosen: Recipe, tried: Recipe, by: float = 0.0) -> Recipe:
        return tried if _is_better(rows, run_of("", tried), run_of("", chosen), by) else chosen

    every = at_best_rate("every linear layer", replace(few, target_modules=EVERY_LINEAR))
    chosen = better_of(at_best_rate("query + value", few), every, 0.003)
    for name, changes in (
        *((cut, {"truncation": cut}) for cut in ("tail", "head")),
        *((f"{tokens} tokens", {"max_length": tokens}) for tokens in LONGER),
    ):
        tried = replace(chosen, **changes)
        runs.append(run_of(name, tried))
        chosen = better_of(chosen, tried)
    return runs, chosen


def _is_better(rows: Rows, tried: Run, chosen: Run, by: float) -> bool:
    """Whether `tried` gains something, and at least `by`; not before the rows of both are there."""
    if tried.id not in rows or chosen.id not in rows:
        return False
    gain = rows[tried.id]["accuracy"] - rows[chosen.id]["accuracy"]
    return gain > 0 and gain >= by


HALF, QUARTER = "half the rate", "a quarter of the rate"
OF_ALL_REVIEWS = {  # by name, in the order in which several are made: what is changed of a recipe
    "every linear layer": lambda lora: {"target_modules": EVERY_LINEAR, "learning_rate": 5e-4},
    "dropout 0.1": lambda lora: {"model_dropout": 0.1, "lora_dropout": 0.1},
    HALF: lambda lora: {"learning_rate": lora.learning_rate / 2},
    QUARTER: lambda lora: {"learning_rate": lora.learning_rate / 4},
}
TRIED_FIRST = ((), (HALF,), ("dropout 0.1",), ("every linear layer",), ("every linear layer", "dropout 0.1"))


def all_reviews(rows: Rows) -> Iterator[Run]:
    """What the recipe lacks on all reviews, where it learns its training rows by heart: changes, then more on top."""
    yield from _all_reviews(rows)[0]


def chosen_for_all_reviews(rows: Rows) -> Recipe:
    """The recipe that `all_reviews` decides for, of as many tokens as `many_rows` chose, as far as rows are there."""
    return _changed(chosen_for_reviews(rows), _all_reviews(rows)[1])


def _all_reviews(rows: Rows) -> tuple[list[Run], tuple[str, ...]]:
    where = {"base_model": EMBEDDED_BERT, "scored_on": "validation", **REVIEWS}
    recipe = replace(chosen_for_reviews(rows), n_train=None, max_length=256)

    def run_of(names: tuple[str, ...]) -> Run:
        labels = (("change", ", ".join(names) or "as it is"),)
        return Run("all_reviews", labels, _changed(recipe, names), seed=SEARCH_SEEDS[0], **where)

    def accuracy(names: tuple[str, ...]) -> float:
        return rows[run_of(names).id]["accuracy"]

    def better_of(taken: tuple[str, ...], tried: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        best = max(tried, key=accuracy, default=taken)
        return best if accuracy(best) - accuracy(taken) >= 0.003 else taken

    runs = [run_of(names) for names in TRIED_FIRST]
    if any(run.id not in rows for run in runs):
        return runs, ()
    taken = better_of((), TRIED_FIRST)
    ahead = [names[0] for names in TRIED_FIRST if len(names) == 1 and accuracy(names) > accuracy(())]
    on_top = [{*taken, QUARTER} - {HALF}] if HALF in taken else []
    on_top += [{*taken, name} for name in ahead if name not in taken]
    ordered = [tuple(name for name in OF_ALL_REVIEWS if name in names) for names in on_top] if taken else []
    ordered = [names for names in ordered if names not in TRIED_FIRST]
    runs += map(run_of, ordered)
    if any(run.id not in rows for run in runs):
        return runs, taken
    return runs, better_of(taken, ordered)


def _changed(recipe: Recipe, names: Iterable[str]) -> Recipe:
    for name in names:
        recipe = replace(recipe, **OF_ALL_REVIEWS[name](recipe))
    return recipe


EPOCHS = {None: (3, 5), 2_500: (3, 8)}  # by the number of reviews; None: all


def epochs(rows: Rows) -> Iterator[Run]:
    """How many epochs on all reviews, with the recipe that `all_reviews` chose, and on the thirty-epoch post's 2,500,
    with that of `many_rows`, each number at its best rate.
    """
    for n_train, counts in EPOCHS.items():
        for count in counts:
            yield from _with_epochs(rows, n_train, count)[0]


def chosen_epochs(rows: Rows, n_train: int | None) -> Recipe:
    """The recipe with as many epochs, and at the rate, that `epochs` decides for, as far as its rows are there."""
    (_, few), (runs, more) = (_with_epochs(rows, n_train, count) for count in EPOCHS[n_train])
    tried, chosen = (replace(runs[0], recipe=recipe) for recipe in (more, few))
    return more if _is_better(rows, tried, chosen, 0.003) else few


def _with_epochs(rows: Rows, n_train: int | None, count: int) -> tuple[list[Run], Recipe]:
    """The runs with `count` epochs, and the recipe at the best of their rates."""
    where, seeds = {"base_model": EMBEDDED_BERT, **REVIEWS}, SEARCH_SEEDS[:1]
    labels = {"reviews": n_train or "all", "epochs": count}
    sized = {"n_train": n_train, "max_length": 256, "num_train_epochs": count}
    if n_train is None:
        recipe = replace(chosen_for_all_reviews(rows), **sized)
        marked = tuple({**labels, "learning_rate": recipe.learning_rate}.items())
        return [Run("epochs", marked, recipe, seed=seeds[0], scored_on="validation", **where)], recipe
    recipe = replace(chosen_for_reviews(rows), **sized)
    runs, rate = best_rate("epochs", labels, recipe, (2.5e-4, 5e-4, 1e-3), rows, seeds, **where)
    return runs, replace(recipe, learning_rate=rate)


def averaging(rows: Rows) -> Iterator[Run]:
    """Three epochs on all reviews, the run of `epochs`: its last weights, or their mean over the last epoch."""
    [last], _ = _with_epochs(rows, None, 3)
    for name, run in (("the last", last), ("mean of the last epoch", replace(last, averaged=True))):
        yield replace(run, study="averaging", labels=(("weights", name),))


QUICK = {"as before": (1_000, 128), "256 tokens": (1_000, 256), "2,000 reviews": (2_000, 128)}  # reviews, tokens


def quick(rows: Rows) -> Iterator[Run]:
    """What the profile `quick` spends its minutes on, tokens or reviews, with the recipe that `all_reviews` chose."""
    where = {"base_model": EMBEDDED_BERT, "scored_on": "validation", **REVIEWS}
    for seed in SEARCH_SEEDS:
        for name, (n_train, max_length) in QUICK.items():
            sized = {"n_train": n_train, "max_length": max_length, "num_train_epochs": 2}
            recipe = replace(chosen_for_all_reviews(rows), **sized)
            for method_name in ("lora", "bag_of_words"):
                yield Run(
                    "quick", (("size", name), ("method", method_name)), method(method_name, recipe), seed=seed, **where
                )
