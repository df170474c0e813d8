from collections import Counter
from dataclasses import replace
from itertools import islice
from math import ceil

import pytest

from helpers import own_data, recipes
from helpers.claims.evidence import AT_SCALE
from helpers.profiles import EMBEDDED_BERT, PROFILES
from helpers.recipe import DISTILBERT_LINEARS, EVERY_LINEAR
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.studies import reviews, search
from helpers.studies.plan import STUDIES
from helpers.studies.search import best_rate

WHERE = {"base_model": EMBEDDED_BERT, **search.SENTENCES}


def _search(accuracy, seeds=(0, 1)):
    """The rates that a search tries, in order, and the one it chooses, where a rate scores `accuracy(rate)`."""
    rows, tried = {}, []
    while True:
        runs, rate = best_rate("x", {}, search.START, (5e-4, 1e-3, 2e-3), rows, seeds, **WHERE)
        left = [run for run in runs if run.id not in rows]
        if not left:
            return tried, rate
        for run in left:
            rows[run.id] = {"accuracy": accuracy(run.recipe.learning_rate) + 0.01 * run.seed}
            if run.seed == seeds[0]:
                tried.append(run.recipe.learning_rate)


def test_a_search_goes_on_where_the_best_rate_is_at_its_end():
    assert _search(lambda rate: -abs(rate - 1e-3)) == ([5e-4, 1e-3, 2e-3], 1e-3)
    assert _search(lambda rate: rate) == ([5e-4, 1e-3, 2e-3, 4e-3, 8e-3], 8e-3)
    assert _search(lambda rate: -abs(rate - 2.5e-4)) == ([5e-4, 1e-3, 2e-3, 2.5e-4, 1.25e-4], 2.5e-4)


def test_a_search_scores_validation_rows_and_its_mean_over_seeds_decides():
    runs, rate = best_rate("x", {}, search.START, (5e-4, 1e-3, 2e-3), {}, (0, 1), **WHERE)
    assert rate == 1e-3 and {run.scored_on for run in runs} == {"validation"} and len(runs) == 6
    scores = {5e-4: (0.9, 0.5), 1e-3: (0.8, 0.8), 2e-3: (0.6, 0.6)}
    rows = {run.id: {"accuracy": scores[run.recipe.learning_rate][run.seed]} for run in runs}
    assert best_rate("x", {}, search.START, (5e-4, 1e-3, 2e-3), rows, (0, 1), **WHERE)[1] == 1e-3


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_s_runs_are_all_different_and_so_are_their_labels(name):
    runs = list(STUDIES[name]({}))
    assert not [run for run, n in Counter(run.id for run in runs).items() if n > 1]
    labels = Counter((run.study, run.labels, run.seed) for run in runs)
    assert not [label for label, n in labels.items() if n > 1]
    assert {run.study.removesuffix("_search") for run in runs} == {name}


@pytest.mark.parametrize("name", STUDIES)
def test_settings_are_never_chosen_on_rows_or_with_seeds_of_the_result(name):
    runs = list(STUDIES[name]({}))
    searches = ("settings", "many_rows", "all_reviews", "quick", "epochs", "averaging")
    searched = [run for run in runs if run.study.endswith("_search") or name in searches]
    scored = [run for run in runs if run not in searched]
    assert {run.scored_on for run in searched} <= {"validation"} and {run.scored_on for run in scored} <= {"test"}
    assert not {run.seed for run in searched} & {run.seed for run in scored}


def _settings_search(gains):
    """The changes tried in the second round, and those chosen, where each change gains `gains` (else nothing)."""
    rows, tried = {}, set()
    while left := [run for run in STUDIES["settings"](rows) if run.id not in rows]:
        for run in left:
            names = tuple(dict(run.labels)["change"].split(" and ")) if dict(run.labels)["change"] != "start" else ()
            rows[run.id] = {"accuracy": 0.7 + sum(gains.get(name, -0.01) for name in names)}
            tried |= {names} if len(names) == 2 else set()
    return tried, search.chosen_changes(rows)


def test_the_best_change_is_taken_and_what_was_ahead_is_tried_on_top_of_it():
    ahead = {"rank 4": 0.03, "dropout 0.1": 0.02, "batches of 8": 0.008}
    tried, chosen = _settings_search(ahead)
    assert tried == {("rank 4", "dropout 0.1"), ("rank 4", "batches of 8")} and chosen == ("rank 4", "dropout 0.1")
    assert _settings_search({"rank 4": 0.03, "batches of 8": 0.008})[1] == ("rank 4",), "twice the updates for little"
    assert _settings_search({"rank 4": 0.03, "batches of 8": 0.02})[1] == ("rank 4", "batches of 8")
    assert _settings_search({"rank 4": 0.004}) == (set(), ())


def test_our_version_of_the_sst2_post_is_what_the_search_chose():
    rows = {row["run"]: row for row in StudyRecord.load(AT_SCALE / "studies" / "settings.json").rows}
    chosen = search._candidates([search.chosen_changes(rows)])
    for run in chosen:
        assert replace(run, recipe=replace(search.FEW_ROWS, n_train=run.recipe.n_train)).id == run.id
    ours = replace(RECIPES["lora_bert_sst2"].improved(), dataset="rotten_tomatoes")
    kept = {"n_train": None, "n_validation": None, "assumed": (), "overrides": ()}
    assert replace(ours, **kept, learning_rate=1e-3) == replace(search.FEW_ROWS, n_train=None)
    rows = {row["run"]: row for path in AT_SCALE.glob("studies/*.json") for row in StudyRecord.load(path).rows}

    def rates(study, label, name):
        runs = [run for run in STUDIES[study](rows) if run.study == study and dict(run.labels)[label] == name]
        return {run.recipe.learning_rate for run in runs}

    assert {ours.learning_rate} == rates("more_layers", "layers", "query + value")
    assert {own_data.FEW_ROWS_RATE} == rates("one_rate", "method", "lora")


OF_DISTILBERT = {("query", "value"): ("q_lin", "v_lin"), EVERY_LINEAR: DISTILBERT_LINEARS}


def _rows_of(*studies):
    return {row["run"]: row for name in studies for row in StudyRecord.load(AT_SCALE / f"studies/{name}.json").rows}


SEARCHED = ("r", "lora_alpha", "learning_rate", "truncation", "per_device_train_batch_size", "num_train_epochs")


@pytest.mark.parametrize("name", ["qlora_bert", "lora_bert_cased", "lora_distilbert_qv", "lora_distilbert_q"])
def test_our_versions_for_reviews_are_what_the_search_chose(name):
    rows = _rows_of("many_rows", "all_reviews", "epochs")
    chosen = reviews.chosen_epochs(rows, 2_500 if name == "lora_bert_cased" else None)
    ours = RECIPES[name].improved()
    for field in SEARCHED:
        assert getattr(ours, field) == getattr(chosen, field), field
    assert ours.max_length == reviews.chosen_for_reviews(rows).max_length
    if name == "lora_bert_cased":
        assert ours.min_updates == chosen.min_updates and ours.early_stopping_patience is None
    layers = chosen.target_modules
    assert ours.target_modules == (OF_DISTILBERT[layers] if "distilbert" in name else layers)


@pytest.mark.parametrize("later", [None, "200 updates"])
def test_the_change_that_is_best_for_the_fewest_rows_is_scored_on_test_rows(later):
    rows, scored = {}, []
    while left := [run for run in STUDIES["fewest"](rows) if run.id not in rows]:
        scored += [run for run in left if run.study == "fewest"]
        for run in left:
            change, size = (dict(run.labels)[name] for name in ("change", "rows"))
            rows[run.id] = {
                "accuracy": {later: 0.8, "800 updates": 0.7, "batches of 8": 0.9 if size == 500 else 0.5}.get(
                    change, 0.6
                )
            }
    names = ["800 updates", later] if later else ["800 updates"]
    assert Counter((dict(run.labels)["change"], dict(run.labels)["rows"]) for run in scored) == {
        (name, size): 5 for name in names for size in (100, 250, 500)
    }
    assert {run.scored_on for run in scored} == {"test"}


def test_one_rate_is_the_best_of_all_sizes_together():
    rows = {}
    while left := [run for run in STUDIES["one_rate"](rows) if run.id not in rows]:
        for run in left:
            rate, size = run.recipe.learning_rate, run.recipe.n_train
            rows[run.id] = {"accuracy": {5e-4: 0.7, 2.5e-4: 0.9 if size == 100 else 0.6}.get(rate, 0.5)}
    scored = [run for run in STUDIES["one_rate"](rows) if run.study == "one_rate"]
    assert {run.recipe.learning_rate for run in scored if run.recipe.method == "adapter"} == {5e-4}
    assert set(Counter((run.recipe.method, run.recipe.n_train) for run in scored).values()) == {5} and len(scored) == 50


def test_more_layers_are_compared_at_their_rates_for_both_sizes_and_both_are_scored():
    rows = {}
    best = {"query + value": 2.5e-4, "every linear layer, rank 4": 2e-3, "every weight": 5e-5}
    while left := [run for run in STUDIES["more_layers"](rows) if run.id not in rows]:
        for run in left:
            near = abs(run.recipe.learning_rate - best[dict(run.labels)["layers"]])
            rows[run.id] = {"accuracy": 0.9 - near if run.recipe.n_train == 1_000 else 0.8}
    scored = [run for run in STUDIES["more_layers"](rows) if run.study == "more_layers"]
    assert Counter((dict(run.labels)["layers"], run.recipe.n_train, run.recipe.learning_rate) for run in scored) == {
        (layers, size, rate): 5 for layers, rate in best.items() for size in (1_000, 2_000)
    }
    known = {run.id for run in STUDIES["one_rate"]({}) if dict(run.labels)["method"] == "lora"}
    first = [run for run in STUDIES["more_layers"]({}) if dict(run.labels)["layers"] == "query + value"]
    assert {run.id for run in first} <= known, "query and value was searched at these rates before"


def test_few_rows_has_the_methods_sizes_and_seeds_that_it_promises():
    scored = [run for run in STUDIES["few_rows"]({}) if run.study == "few_rows"]
    seeds = Counter((dict(run.labels)["rows"], dict(run.labels)["method"]) for run in scored)
    methods = {"bag_of_words", "frozen_encoder", "head_only", "lora", "full_finetune"}
    for size in (100, 250, 500, 1_000, 2_000, "all"):
        assert {method for rows, method in seeds if rows == size} >= methods
        assert all(n >= (5 if size != "all" and size <= 1_000 else 3) for (rows, _), n in seeds.items() if rows == size)
    for size in (500, 2_000):
        assert seeds[size, "qlora"] == seeds[size, "full_finetune"] == 5
    for run in scored:
        recipe = run.recipe
        if recipe.method in ("adapter", "full_finetune", "head_only"):
            n_train = recipe.n_train or 5_530
            updates = recipe.epochs(n_train) * ceil(n_train / recipe.per_device_train_batch_size)
            assert updates >= 400 and recipe.epochs(n_train) >= 3


def test_the_sources_are_run_as_they_are_written():
    runs = {run.recipe.name: run for run in STUDIES["sources"]({})}
    assert set(runs) == set(recipes.RECIPES)
    for name, run in runs.items():
        allowed = {"max_length": 256, "n_train": 2_500, "dataset": "rotten_tomatoes"}
        changed = {field for field in allowed if getattr(run.recipe, field) != getattr(recipes.RECIPES[name], field)}
        assert replace(run.recipe, **{f: getattr(recipes.RECIPES[name], f) for f in changed}) == recipes.RECIPES[name]
    assert Counter(run.recipe.name for run in STUDIES["sources"]({}))["lora_bert_sst2"] == 5


def _searched_reviews(accuracy):
    """What `many_rows` tries, in order, and what it chooses, where a run scores `accuracy(recipe)`."""
    rows, tried = {}, []
    while left := [run for run in STUDIES["many_rows"](rows) if run.id not in rows]:
        tried.append(left[0].recipe)
        rows[left[0].id] = {"accuracy": accuracy(left[0].recipe)}
    return tried, reviews.chosen_for_reviews(rows)


def test_layers_for_all_reviews_are_compared_at_their_best_rates_and_then_tokens():
    best_rates = {EVERY_LINEAR: 5e-4, ("query", "value"): 1e-3}

    def accuracy(recipe, every=0.01, longer=0.004):
        gained = every if recipe.target_modules == EVERY_LINEAR else 0.0
        near = -0.05 * (recipe.learning_rate != best_rates[recipe.target_modules])
        length = {128: 0.0, 256: longer}.get(recipe.max_length, longer - 0.001)
        return 0.8 + gained + near + length + 0.001 * (recipe.truncation == "tail")

    tried, chosen = _searched_reviews(accuracy)
    assert (chosen.target_modules, chosen.learning_rate) == (EVERY_LINEAR, 5e-4)
    assert (chosen.truncation, chosen.max_length) == ("tail", 256), "more tokens gain nothing"
    assert [(recipe.truncation, recipe.max_length) for recipe in tried[-3:]] == [
        *(("head", 128), ("tail", 256), ("tail", 512))
    ], "each step with what the one before it chose"
    _, chosen = _searched_reviews(lambda recipe: accuracy(recipe, every=0.002, longer=-0.002))
    assert (chosen.target_modules, chosen.learning_rate, chosen.max_length) == (("query", "value"), 1e-3, 128)


def _all_reviews_search(gains):
    """The changes that are tried in the second round, and the recipe chosen, where each change gains `gains`."""
    rows, rounds = {}, []
    while left := [run for run in STUDIES["all_reviews"](rows) if run.id not in rows]:
        rounds.append([dict(run.labels)["change"] for run in left])
        for run in left:
            names = dict(run.labels)["change"].split(", ")
            rows[run.id] = {"accuracy": 0.9 + sum(gains.get(name, -0.01) for name in names if name != "as it is")}
    return rounds[1:], reviews.chosen_for_all_reviews(rows)


def test_changes_for_all_reviews_are_taken_where_they_gain_enough_and_then_on_top_of_one_another():
    assert _all_reviews_search({"dropout 0.1": 0.002})[0] == [], "none gains 0.3 points"
    second, chosen = _all_reviews_search({"half the rate": 0.008, "dropout 0.1": 0.004, "a quarter of the rate": 0.001})
    assert second == [["a quarter of the rate", "dropout 0.1, half the rate"]]
    assert (chosen.learning_rate, chosen.model_dropout, chosen.target_modules) == (5e-4, 0.1, ("query", "value"))
    second, chosen = _all_reviews_search({"every linear layer": 0.01, "dropout 0.1": 0.005, "half the rate": 0.001})
    assert second == [["every linear layer, dropout 0.1, half the rate"]]
    assert (chosen.learning_rate, chosen.model_dropout, chosen.target_modules) == (5e-4, 0.1, EVERY_LINEAR)
    assert chosen.max_length == reviews.chosen_for_reviews({}).max_length, "the tokens are those of many_rows"


def test_epochs_are_compared_on_what_the_searches_before_them_chose():
    rows = {row["run"]: row for path in AT_SCALE.glob("studies/*.json") for row in StudyRecord.load(path).rows}
    runs = list(STUDIES["epochs"](rows))
    assert runs[0].id in rows, "three epochs on all reviews are a run of `all_reviews`"
    assert replace(runs[1].recipe, num_train_epochs=3) == runs[0].recipe and runs[1].recipe.num_train_epochs == 5
    tried = {(run.recipe.num_train_epochs, run.recipe.learning_rate) for run in runs if run.recipe.n_train == 2_500}
    assert {(epochs, rate) for epochs in (3, 8) for rate in (2.5e-4, 5e-4, 1e-3)} <= tried
    assert all(run.recipe.early_stopping_patience is None for run in runs), "the last step counts"


def _epochs_search(accuracy):
    """The recipes for all and for 2,500 reviews that `epochs` chooses, where a run scores `accuracy(recipe)`."""
    rows = _rows_of("many_rows", "all_reviews")  # three epochs on all reviews are among these, with 91.57 %
    while left := [run for run in STUDIES["epochs"](rows) if run.id not in rows]:
        rows |= {run.id: {"accuracy": accuracy(run.recipe)} for run in left}
    return [reviews.chosen_epochs(rows, n_train) for n_train in (None, 2_500)]


def test_more_epochs_have_to_gain_enough_each_at_its_best_rate():
    def accuracy(recipe, more=0.004):
        best = 5e-4 if recipe.num_train_epochs == 8 else 1e-3
        near = -0.05 * (recipe.learning_rate != best and recipe.n_train is not None)
        return 0.9157 + near + more * (recipe.num_train_epochs in (5, 8))

    all_of_them, few = _epochs_search(accuracy)
    assert (all_of_them.num_train_epochs, few.num_train_epochs, few.learning_rate) == (5, 8, 5e-4)
    all_of_them, few = _epochs_search(lambda recipe: accuracy(recipe, more=0.002))
    assert (all_of_them.num_train_epochs, few.num_train_epochs, few.learning_rate) == (3, 3, 1e-3)


def test_averaging_is_one_change_of_a_run_that_is_there():
    rows = {row["run"]: row for path in AT_SCALE.glob("studies/*.json") for row in StudyRecord.load(path).rows}
    last, mean = STUDIES["averaging"](rows)
    assert last.id in rows and replace(mean, labels=last.labels, averaged=False) == last


def test_quick_is_what_its_search_chose():
    rows = {row["run"]: row for path in AT_SCALE.glob("studies/*.json") for row in StudyRecord.load(path).rows}
    ahead = dict.fromkeys(reviews.QUICK, 0.0)
    for run in STUDIES["quick"](rows):
        labels = dict(run.labels)
        ahead[labels["size"]] += rows[run.id]["accuracy"] * (1 if labels["method"] == "lora" else -1)
    quick = PROFILES["quick"]
    assert (quick.n_train, quick.max_length) == reviews.QUICK[max(ahead, key=ahead.get)]


def test_the_search_on_4_000_reviews_is_the_one_that_few_reviews_makes():
    of_many = [run for run in STUDIES["many_rows"]({}) if dict(run.labels)["change"] == "query + value"]
    of_few = {run.id for run in STUDIES["few_reviews"]({}) if dict(run.labels)["method"] == "lora"}
    assert len(of_many) == 3 and {run.id for run in of_many} <= of_few


def test_every_version_of_ours_is_run_once():
    run = {run.recipe.name for run in STUDIES["improved"]({}) if run.recipe.variant == "improved"}
    (same,) = set(RECIPES) - run
    other = RECIPES["lora_distilbert_qv"].improved()
    assert replace(RECIPES[same].improved(), name=other.name, source=other.source, overrides=(), assumed=()) == replace(
        other, overrides=(), assumed=()
    ), "what is left out is another's recipe"


def test_full_fine_tuning_on_all_reviews_waits_for_its_rate():
    assert not [run for run in STUDIES["improved"]({}) if run.recipe.method == "full_finetune"]
    searched = [run for run in STUDIES["few_reviews"]({}) if run.study == "few_reviews_search"]
    rows = {run.id: {"accuracy": 0.9 if run.recipe.learning_rate == 1e-4 else 0.8} for run in searched}
    whole, *lower = [run for run in STUDIES["improved"](rows) if run.recipe.method == "full_finetune"]
    assert whole.recipe.learning_rate == 1e-4 and whole.recipe.n_train is None
    assert {run.recipe.variant: run.recipe.learning_rate for run in lower} == {
        "full_half_rate": 5e-5,
        "full_quarter_rate": 2.5e-5,
    }


def test_seeds_come_before_settings_in_the_settings_search():
    """A sitting that ends early leaves every candidate with one seed, not half of them with two."""
    first = list(islice(STUDIES["settings"]({}), 22))
    assert {run.seed for run in first} == {search.SEARCH_SEEDS[0]}
