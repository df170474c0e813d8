"""The studies at the sources' own scale: their recipes as written, our versions, and what costs nothing."""

from collections.abc import Iterator
from dataclasses import replace

from helpers.profiles import EMBEDDED_BERT, PROFILES
from helpers.recipe import LOWER_RATES, Recipe
from helpers.recipes import RECIPES
from helpers.studies.reviews import SHORT_REVIEWS
from helpers.studies.runs import Run
from helpers.studies.search import RATES, REVIEWS, SEARCH_SEEDS, Rows, best_rate, method

# As the sources have them. Where they state no size: all reviews or, for thirty epochs, 2,500; no limit: 256 tokens.
WRITTEN = {
    "lora_bert_sst2": {"dataset": "rotten_tomatoes"},
    "lora_distilbert_q": {"max_length": 256},
    "lora_bert_cased": {"max_length": 256, "n_train": 2_500},
    "qlora_bert": {},
    "lora_distilbert_qv": {"max_length": 256},
}
SEEDS = {"lora_bert_sst2": range(42, 47)}  # the others have one, our LoRA on all reviews a second

BEFORE = {  # what three of our versions were
    "lora_distilbert_qv": {"target_modules": ("q_lin", "v_lin"), "learning_rate": 1e-3, "variant": "query_value"},
    "lora_bert_cased": {
        "num_train_epochs": 30, "min_updates": None, "early_stopping_patience": 2, "variant": "thirty_epochs"
    },
    "lora_bert_sst2": {"learning_rate": 2.5e-4, "variant": "half_rate"},
}  # fmt: skip


def sources(rows: Rows) -> Iterator[Run]:
    """The SST-2 post exactly, five seeds; the others as written, at their own scale, one seed."""
    for name, changes in WRITTEN.items():
        for seed in SEEDS.get(name, (42,)):
            yield _at_scale("sources", replace(RECIPES[name], **changes), seed)


def improved(rows: Rows) -> Iterator[Run]:
    """Our version of each source's recipe on the same rows, and three as they were before a later search.

    The query-only post's is the same recipe as Assignment 7's. Full fine-tuning comes when `few_reviews` has searched
    its rate, at that and at two lower ones. LoRA has a second seed.
    """
    for name in ("lora_distilbert_qv", "qlora_bert", "lora_bert_cased", "lora_bert_sst2"):
        for seed in SEEDS.get(name, (42,)):
            yield _at_scale("improved", _ours(name), seed)
    yield _at_scale("improved", _ours("lora_distilbert_qv"), 43)
    for name, before in BEFORE.items():
        for seed in SEEDS.get(name, (42,)):
            yield _at_scale("improved", replace(_ours(name), **before), seed)
    searched, rate = _full_finetuning_on_reviews(rows)
    if all(run.id in rows for run in searched):
        whole = RECIPES["lora_distilbert_qv"].improved().full_finetune()
        yield _at_scale("improved", replace(whole, learning_rate=rate), 42)
        for variant, part in LOWER_RATES.items():
            yield _at_scale("improved", replace(whole, learning_rate=rate * part, variant=variant), 42)


def _ours(name: str) -> Recipe:
    """Our version of a recipe on as many rows as the source has."""
    return replace(RECIPES[name].improved(), **{k: v for k, v in WRITTEN[name].items() if k != "max_length"})


def _full_finetuning_on_reviews(rows: Rows) -> tuple[list[Run], float]:
    """The search of `few_reviews` for full fine-tuning's rate on 4,000 reviews, and the best as far as it is done."""
    where = {"base_model": EMBEDDED_BERT, **REVIEWS}
    recipe = method("full_finetune", replace(SHORT_REVIEWS, n_train=4_000))
    labels = {"rows": 4_000, "method": "full_finetune"}
    return best_rate("few_reviews_search", labels, recipe, RATES["full_finetune"], rows, SEARCH_SEEDS[:1], **where)


def baselines(rows: Rows) -> Iterator[Run]:
    """What costs nothing, on the training and test rows of `sources`: bag of words (whole texts, and as cut for the
    encoder in the sources' versions and in ours), frozen encoder, and the head alone.
    """
    for name in ("lora_distilbert_q", "lora_bert_cased"):
        at_scale = _at_scale("baselines", replace(RECIPES[name], **WRITTEN[name], truncation="head+tail"), 42)
        for method_name, text in (
            ("bag_of_words", "whole"),
            ("bag_of_words", "cut"),
            ("bag_of_words", "cut to 512"),
            ("frozen_encoder", "cut"),
        ):
            labels = (("rows_of", name), ("method", method_name), ("text", text))
            recipe = method(method_name, at_scale.recipe)
            cut_text = text != "whole" and method_name == "bag_of_words"
            recipe = replace(recipe, max_length=512) if text == "cut to 512" else recipe
            yield replace(at_scale, labels=labels, recipe=recipe, at_scale=False, cut_text=cut_text)
        head = replace(at_scale.recipe, per_device_train_batch_size=16, learning_rate=4e-3, num_train_epochs=3)
        yield replace(
            at_scale, recipe=method("head_only", replace(head, model_dropout=0.0)), labels=(("rows_of", name),)
        )


def _at_scale(study: str, recipe: Recipe, seed: int) -> Run:
    sentences = recipe.dataset == "rotten_tomatoes"
    where = {"n_validation": recipe.n_validation or 1_000, "n_test": 2_000} if sentences else REVIEWS
    labels = (("recipe", recipe.name), ("variant", recipe.variant))
    base_model = PROFILES["full"].base_model(recipe.base_model)
    return Run(study, labels, recipe, base_model, **where, seed=seed, at_scale=True)
