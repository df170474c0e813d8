from dataclasses import replace

import pytest
from peft import LoraConfig

from helpers.claims.verdicts import CLAIMS
from helpers.models import build_model
from helpers.recipe import Override
from helpers.recipes import RECIPES, WRITE_UPS

BERT = RECIPES["qlora_bert"]
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"

# What each source states, copied from it by hand.
STATED = {
    "lora_distilbert_q": {
        "source": "query-only",
        "base_model": "distilbert-base-uncased",
        "r": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.01,
        "target_modules": ("q_lin",),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
    },
    "qlora_bert": {
        "source": "bert-qlora",
        "base_model": "bert-base-uncased",
        "dataset": "dipanjanS/imdb_sentiment_finetune_dataset20k",
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ("query", "value"),
        "quantization": "nf4",
        "learning_rate": 2e-4,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "optim": "paged_adamw_8bit",
        "max_length": 256,
        "early_stopping_patience": 2,
    },
    "lora_bert_cased": {
        "source": "thirty-epoch",
        "base_model": "bert-base-cased",
        "lora_alpha": 1,
        "num_train_epochs": 30,
    },
    "lora_distilbert_qv": {
        "source": "Assignment 7",
        "base_model": "distilbert-base-uncased",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ("q_lin", "v_lin"),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
    },
    "lora_bert_sst2": {
        "source": "SST-2 post",
        "base_model": "bert-base-uncased",
        "dataset": "glue/sst2",
        "r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "max_length": 128,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "weight_decay": 0.01,
        "n_train": 2_000,
        "n_validation": 500,
    },
}


@pytest.mark.parametrize("name", STATED)
def test_recipes_say_what_their_sources_state(name):
    recipe = RECIPES[name]
    assert {field: getattr(recipe, field) for field in STATED[name]} == STATED[name]
    assert recipe.variant == "as_written"


def test_recipes_and_claims_name_the_write_ups_they_are_from():
    assert {recipe.source for recipe in RECIPES.values()} == set(WRITE_UPS) == {claim.source for claim in CLAIMS}


def test_every_source_has_its_recipe():
    assert set(RECIPES) == set(STATED)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_improved_changes_what_it_lists_and_gives_reasons(recipe):
    improved = recipe.improved()
    assert improved.variant == "improved"
    for override in recipe.overrides:
        assert getattr(improved, override.field) == override.value != getattr(recipe, override.field)
        assert len(override.reason) > 10
    unchanged = replace(improved, variant="as_written", **{o.field: getattr(recipe, o.field) for o in recipe.overrides})
    assert unchanged == recipe


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_a_source_leaves_open_is_explained(recipe):
    stated = STATED[recipe.name]
    for name, reason in recipe.assumed:
        assert hasattr(recipe, name) and name not in stated
        assert "stated" in reason or "states" in reason or "not" in reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", 0.2),
        ("lora_alpha", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", 0.0),
        ("target_modules", ("q_lin",)),
        ("target_modules", ()),
        ("target_modules", ("attention.output.q_lin",)),
        ("use_rslora", "yes"),
        ("dataset", "  "),
        ("base_model", ""),
        ("num_train_epochs", 0),
        ("per_device_train_batch_size", True),
        ("gradient_accumulation_steps", 0),
        ("max_length", 4),
        ("lora_dropout", 1.0),
        ("warmup_ratio", -0.1),
        ("weight_decay", -1.0),
        ("quantization", "int3"),
        ("truncation", "middle"),
        ("lr_scheduler_type", "step"),
        ("optim", "sgd"),
        ("variant", "best"),
        ("model_dropout", 1.5),
        ("n_train", 0),
        ("early_stopping_patience", -1),
        ("overrides", (Override("rank", 8, "no such field"),)),
    ],
)
def test_an_impossible_recipe_is_refused_by_field_name(field, value):
    with pytest.raises(ValueError, match=rf"Recipe\.{field} "):
        replace(BERT, **{field: value})


def test_the_lora_config_is_peft_s_own():
    config = replace(BERT, modules_to_save=("pooler",)).lora_config()
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.task_type) == (16, 32, "SEQ_CLS")
    assert config.target_modules == {"query", "value"}
    assert config.modules_to_save == ["pooler"]
    assert replace(BERT, target_modules=("all-linear",)).lora_config().target_modules == "all-linear"


def test_the_name_of_a_folder_says_nothing_about_its_layers(tmp_path):
    (tmp_path / "bert-mine").mkdir()
    change = {"target_modules": ("Wqkv",)}
    assert replace(RECIPES["qlora_bert"], base_model=str(tmp_path / "bert-mine"), **change).target_modules == ("Wqkv",)
    with pytest.raises(ValueError, match="target_modules"):
        replace(RECIPES["qlora_bert"], base_model="bert-on-the-hub", **change)


def test_rslora_divides_by_the_root_of_the_rank(tiny_checkpoints, fp32):
    for use_rslora, scaling in ((False, 32 / 16), (True, 32 / 4)):
        recipe = replace(BERT, base_model=tiny_checkpoints["bert"], quantization=None, use_rslora=use_rslora)
        model = build_model(recipe, recipe.base_model, fp32)
        assert model.get_submodule(QUERY).scaling["default"] == scaling


def test_a_target_can_be_the_end_of_a_layer_s_name(tiny_checkpoints, fp32):
    targets = {"attention.output.dense": 2, "output.dense": 4, "intermediate.dense": 2}
    for target, layers in targets.items():
        recipe = replace(BERT, base_model=tiny_checkpoints["bert"], quantization=None, target_modules=(target,))
        model = build_model(recipe, recipe.base_model, fp32)
        assert sum("lora_A" in name for name, _ in model.named_parameters()) == layers
    assert replace(BERT, target_modules=tuple(targets)).target_modules == tuple(targets)


def test_settings_given_as_text_change_a_recipe_and_its_name():
    recipe = RECIPES["lora_bert_sst2"].with_settings(
        ["r=32", "learning_rate=1e-3", "target_modules=query, key", "model_dropout=None", "use_rslora=True"]
    )
    assert (recipe.r, recipe.learning_rate, recipe.target_modules) == (32, 1e-3, ("query", "key"))
    assert (recipe.model_dropout, recipe.use_rslora, recipe.lora_alpha) == (None, True, 32)
    assert recipe.name.startswith("lora_bert_sst2,r=32,learning_rate=1e-3,")
    assert RECIPES["lora_bert_sst2"].with_settings([]) == RECIPES["lora_bert_sst2"]
    assert RECIPES["lora_bert_sst2"].with_settings(["truncation=tail"]).truncation == "tail"
    four = [
        "per_device_train_batch_size=32",
        "gradient_accumulation_steps=2",
        "num_train_epochs=5",
        "learning_rate=1e-3",
    ]
    assert len(RECIPES["lora_bert_sst2"].with_settings(four).name) > 100
    of_the_hub = RECIPES["lora_bert_sst2"].with_settings(["dataset=USER/NAME"])
    assert of_the_hub.dataset == "USER/NAME" and of_the_hub.name == "lora_bert_sst2,dataset=USER--NAME"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rank=32", "'rank=32' sets nothing; it must be FIELD=VALUE, with a FIELD of .*'r', 'lora_alpha'"),
        ("r", "sets nothing"),
        ("r=", "sets nothing"),
        ("name=other", "sets nothing"),
        ("r=0.2", r"Recipe.r is 0.2; it must be a whole number"),
        ("r=two", r"Recipe.r is 'two'"),
        ("learning_rate=2", "Recipe.learning_rate is 2"),
        ("target_modules=q_lin", "Recipe.target_modules"),
        ("truncation=middle", "Recipe.truncation is 'middle'"),
        (f"target_modules={'(' * 500}", "Recipe"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        RECIPES["lora_bert_sst2"].with_settings([setting])
