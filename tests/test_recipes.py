from dataclasses import replace

import pytest

from helpers.recipes import RECIPES

BERT, SST2 = RECIPES["qlora_bert"], RECIPES["lora_bert_sst2"]

# What each source states is held by test_studies: the records of runs as written have the same settings.


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_a_source_leaves_open_and_what_improved_changes_has_its_reason(recipe):
    assert (recipe.variant, recipe.method) == ("as_written", "adapter")
    assert all(hasattr(recipe, field) and len(reason) > 10 for field, reason in recipe.not_stated.items())
    improved = recipe.improved()
    changed = set(recipe.overrides)
    assert improved.variant == "improved" and all(len(one["reason"]) > 10 for one in recipe.overrides.values())
    assert not {field for field in changed if getattr(improved, field) == getattr(recipe, field)}
    back = {field: getattr(recipe, field) for field in changed}
    assert replace(improved, variant="as_written", **back) == recipe


def test_an_impossible_recipe_is_refused_by_field_name():
    wrong = {"r": 0, "learning_rate": 0.0, "target_modules": (), "max_length": 4, "lora_dropout": 1.0, "name": "a/b"}
    wrong |= {"quantization": "int3", "truncation": "middle", "optim": "sgd", "method": "best", "n_train": 0}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=field):
            replace(BERT, **{field: value})


def test_lora_is_what_the_recipe_says():
    config = replace(BERT, use_rslora=True, modules_to_save=("pooler",)).lora_config()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (16, 32, 0.1, True)
    assert (config.target_modules, config.modules_to_save) == ({"query", "value"}, ["pooler"])
    assert replace(BERT, target_modules=("all-linear",)).lora_config().target_modules == "all-linear"


def test_settings_given_as_text_change_a_recipe_and_its_name():
    recipe = SST2.with_settings(["r=32", "learning_rate=1e-3", "target_modules=query, key", "model_dropout=None"])
    assert (recipe.r, recipe.learning_rate, recipe.target_modules) == (32, 1e-3, ("query", "key"))
    assert (recipe.model_dropout, recipe.lora_alpha) == (None, 32)
    assert recipe.name.startswith("lora_bert_sst2,r=32,learning_rate=1e-3,")
    assert SST2.with_settings(["dataset=USER/NAME"]).name == "lora_bert_sst2,dataset=USER--NAME"
    assert SST2.with_settings([]) == SST2
    long = [SST2.with_settings([f"target_modules={'dense,' * 40}query", f"r={r}"]).name for r in (1, 2)]
    assert [len(name) for name in long] == [159, 159] and long[0] != long[1], "as a file may be named"
    assert SST2.improved().with_settings(["num_train_epochs=1"]).epochs(42) == 1
    assert replace(SST2, min_updates=400, gradient_accumulation_steps=4).epochs(1_000) == 13
