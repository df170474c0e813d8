from dataclasses import replace

import pytest
from peft import LoraConfig

from helpers.models import build_model
from helpers.recipes import RECIPES, Override

BERT, SST2 = RECIPES["qlora_bert"], RECIPES["lora_bert_sst2"]
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"

# What each source states, copied from it by hand.
STATED = {
    "lora_distilbert_q": {
        "base_model": "distilbert-base-uncased", "r": 4, "lora_alpha": 32, "lora_dropout": 0.01,
        "target_modules": ("q_lin",), "learning_rate": 1e-3, "per_device_train_batch_size": 4, "num_train_epochs": 1,
    },
    "qlora_bert": {
        "base_model": "bert-base-uncased", "dataset": "dipanjanS/imdb_sentiment_finetune_dataset20k", "r": 16,
        "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ("query", "value"), "quantization": "nf4",
        "learning_rate": 2e-4, "num_train_epochs": 3, "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.01,
        "optim": "paged_adamw_8bit", "max_length": 256, "early_stopping_patience": 2,
    },
    "lora_bert_cased": {"base_model": "bert-base-cased", "lora_alpha": 1, "num_train_epochs": 30},
    "lora_distilbert_qv": {
        "base_model": "distilbert-base-uncased", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1,
        "target_modules": ("q_lin", "v_lin"), "num_train_epochs": 3, "per_device_train_batch_size": 16,
    },
    "lora_bert_sst2": {
        "base_model": "bert-base-uncased", "dataset": "glue/sst2", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1,
        "max_length": 128, "num_train_epochs": 3, "per_device_train_batch_size": 8, "weight_decay": 0.01,
        "n_train": 2_000, "n_validation": 500,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_recipes_say_what_their_sources_state(name):
    recipe = RECIPES[name]
    assert {field: getattr(recipe, field) for field in STATED[name]} == STATED[name]
    assert (recipe.name, recipe.variant, recipe.method) == (name, "as_written", "adapter")
    assert set(RECIPES) == set(STATED)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_improved_changes_what_it_lists_and_gives_reasons(recipe):
    improved = recipe.improved()
    assert improved.variant == "improved"
    for override in recipe.overrides:
        value = tuple(override.value) if isinstance(override.value, list) else override.value
        assert getattr(improved, override.field) == value != getattr(recipe, override.field)
        assert len(override.reason) > 10
    unchanged = replace(improved, variant="as_written", **{o.field: getattr(recipe, o.field) for o in recipe.overrides})
    assert unchanged == recipe


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_a_source_leaves_open_is_explained(recipe):
    for name, reason in dict(recipe.not_stated).items():
        assert hasattr(recipe, name) and name not in STATED[recipe.name]
        assert len(reason) > 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", 0.2), ("lora_alpha", 0), ("learning_rate", -1e-3), ("learning_rate", 0.0),
        ("target_modules", ()), ("use_rslora", "perhaps"), ("base_model", ""), ("num_train_epochs", 0),
        ("gradient_accumulation_steps", 0), ("max_length", 4), ("lora_dropout", 1.0), ("warmup_ratio", -0.1),
        ("weight_decay", -1.0), ("quantization", "int3"), ("truncation", "middle"), ("lr_scheduler_type", "step"),
        ("optim", "sgd"), ("method", "best"), ("model_dropout", 1.5), ("n_train", 0), ("early_stopping_patience", -1),
        ("overrides", (Override("r", 8, "a reason"), 7)), ("name", "a/b"),
    ],
)  # fmt: skip
def test_an_impossible_recipe_is_refused_by_field_name(field, value):
    with pytest.raises(ValueError, match=field):
        replace(BERT, **{field: value})


def test_the_lora_config_is_peft_s_own():
    config = replace(BERT, modules_to_save=("pooler",)).lora_config()
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (16, 32, 0.1, "SEQ_CLS")
    assert config.target_modules == {"query", "value"}
    assert config.modules_to_save == ["pooler"]
    assert replace(BERT, target_modules=("all-linear",)).lora_config().target_modules == "all-linear"


def test_rslora_divides_by_the_root_of_the_rank(tiny_checkpoints):
    for use_rslora, scaling in ((False, 32 / 16), (True, 32 / 4)):
        recipe = replace(BERT, quantization=None, use_rslora=use_rslora)
        model = build_model(recipe, tiny_checkpoints["bert"])
        assert model.get_submodule(QUERY).scaling["default"] == scaling


def test_a_target_can_be_the_end_of_a_layer_s_name(tiny_checkpoints):
    for target, layers in {"attention.output.dense": 2, "output.dense": 4, "intermediate.dense": 2}.items():
        model = build_model(replace(BERT, quantization=None, target_modules=(target,)), tiny_checkpoints["bert"])
        assert sum("lora_A" in name for name, _ in model.named_parameters()) == layers


def test_few_rows_take_as_many_epochs_as_the_fewest_updates():
    recipe = replace(SST2, num_train_epochs=3, min_updates=400, per_device_train_batch_size=16)
    assert [recipe.epochs(n) for n in (100, 1_000, 100_000)] == [58, 7, 3]
    assert replace(recipe, gradient_accumulation_steps=2).epochs(1_000) == 13


def test_a_method_without_an_adapter_has_no_4_bits():
    full, head = BERT.full_finetune(), BERT.with_method("head_only")
    assert (full.method, full.variant, full.quantization, full.optim) == ("full_finetune",) * 2 + (None, "adamw_torch")
    assert (head.method, head.variant, head.learning_rate) == ("head_only", "head_only", BERT.learning_rate)


def test_settings_given_as_text_change_a_recipe_and_its_name():
    recipe = SST2.with_settings(
        ["r=32", "learning_rate=1e-3", "target_modules=query, key", "model_dropout=None", "use_rslora=True"]
    )
    assert (recipe.r, recipe.learning_rate, recipe.target_modules) == (32, 1e-3, ("query", "key"))
    assert (recipe.model_dropout, recipe.use_rslora, recipe.lora_alpha) == (None, True, 32)
    assert recipe.name.startswith("lora_bert_sst2,r=32,learning_rate=1e-3,")
    assert SST2.with_settings([]) == SST2
    of_the_hub = SST2.with_settings(["dataset=USER/NAME"])
    assert of_the_hub.dataset == "USER/NAME" and of_the_hub.name == "lora_bert_sst2,dataset=USER--NAME"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rank=32", "'rank=32' sets nothing; it must be FIELD=VALUE, with a FIELD of .*'r', 'lora_alpha'"),
        ("r", "sets nothing"),
        ("r=", "sets nothing"),
        ("name=other", "sets nothing"),
        ("r=0.2", "r\n.*0.2"),
        ("r=two", "r\n.*two"),
        ("learning_rate=2", "learning_rate"),
        ("truncation=middle", "truncation"),
        (f"target_modules={'(' * 500}", "name"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        SST2.with_settings([setting])
