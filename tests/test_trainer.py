"""The Trainer by itself: what it is given, memory that runs out, and a loss that is no number."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from sklearn.utils.class_weight import compute_class_weight
from transformers import DataCollatorWithPadding, TrainerControl, TrainerState

from helpers import trainer as trainer_module
from helpers.data import split_reviews, tokenize
from helpers.models import build_model, load_tokenizer
from helpers.recipes import RECIPES
from helpers.trainer import Watcher, make_trainer, train, training_arguments, weighted_loss


@pytest.fixture
def tokens(toy_reviews, tiny_checkpoints) -> DatasetDict:
    """96 rows to train and 32 to validate, of unlike lengths."""
    splits = split_reviews(toy_reviews, 96, 32, 64)
    cut = splits.map(lambda row, index: {"text": " ".join(row["text"].split()[: 5 + index % 5])}, with_indices=True)
    return tokenize(cut, load_tokenizer(tiny_checkpoints["bert"]), 16)


@pytest.fixture
def recipe(tiny_checkpoints):
    return replace(
        RECIPES["lora_bert_sst2"].improved(), base_model=tiny_checkpoints["bert"], learning_rate=2e-2,
        num_train_epochs=2, min_updates=None, per_device_train_batch_size=16, max_length=16, model_dropout=0.0,
        lora_dropout=0.0,
    )  # fmt: skip


def _trained(recipe, tokens, profile, folder=None, look=None, model=None):
    """(the Trainer, the trained weights) of a run; `look(rows)` is called with the size of each batch."""
    model = model or build_model(recipe, recipe.base_model)
    if look:
        hook = lambda module, args, kwargs: look(len(kwargs["input_ids"]))  # noqa: E731
        model.register_forward_pre_hook(hook, with_kwargs=True)
    trained = train(model, load_tokenizer(recipe.base_model), recipe, tokens, profile, folder)
    return trained, {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def test_recipe_and_profile_in_trainer_s_words(tiny_profile, tmp_path):
    profile = replace(tiny_profile, precision="bf16", seed=7)
    arguments = training_arguments(RECIPES["qlora_bert"], profile, tmp_path)
    assert (arguments.learning_rate, arguments.lr_scheduler_type, arguments.weight_decay) == (2e-4, "cosine", 0.01)
    assert arguments.get_warmup_steps(100) == 10
    assert (arguments.optim, arguments.gradient_accumulation_steps) == ("paged_adamw_8bit", 2)
    assert arguments.bf16 and not arguments.fp16 and not arguments.gradient_checkpointing
    assert (arguments.seed, arguments.metric_for_best_model) == (7, "accuracy")
    changed = training_arguments(replace(RECIPES["qlora_bert"], class_weights="balanced"), profile, tmp_path, seed=1)
    assert (changed.seed, changed.metric_for_best_model) == (1, "balanced_accuracy")


def test_accumulated_batches_give_the_loss_and_gradient_of_one_batch(recipe, tokens, tiny_profile):
    logged = []
    for size, steps in ((16, 1), (4, 4)):
        chosen = replace(
            recipe, num_train_epochs=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        only = DatasetDict({**tokens, "train": tokens["train"].select(range(16))})
        history = _trained(chosen, only, tiny_profile)[0].state.log_history
        logged.append(next((row["loss"], row["grad_norm"]) for row in history if "loss" in row))
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)


@pytest.mark.parametrize("length", [40, 300])
def test_long_rows_are_padded_to_few_lengths_and_answer_the_same(recipe, tokens, tiny_profile, tmp_path, length):
    rows = tokens["train"].map(lambda row: {"length": length})
    profile, recipe = replace(tiny_profile, max_length=None), replace(recipe, max_length=64)
    model, tokenizer = build_model(recipe, recipe.base_model).eval(), load_tokenizer(recipe.base_model)
    made = make_trainer(model, tokenizer, recipe, DatasetDict(train=rows), profile, tmp_path, "none")
    short = [{"input_ids": [2, 5, 6, 7, 8, 9, 3], "label": 0}, {"input_ids": [2, 5, 3], "label": 1}]
    batch, plain = made.data_collator(short), DataCollatorWithPadding(tokenizer)(short)
    assert batch["input_ids"].shape == (2, 7 if length < 256 else 32) and batch["attention_mask"].sum() == 10
    torch.testing.assert_close(model(**batch).logits, model(**plain).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_gradient_checkpointing_recomputes_and_learns_the_same(recipe, tokens, tiny_profile, quantization):
    weights, forwards = [], []
    for checkpointing in (False, True):
        chosen = replace(
            recipe, num_train_epochs=1, quantization=quantization, gradient_checkpointing=checkpointing
        )
        model, passes = build_model(chosen, recipe.base_model), []
        layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
        layer.register_forward_hook(lambda *_, passes=passes: passes.append(torch.is_grad_enabled()))
        weights.append(_trained(chosen, tokens, tiny_profile, model=model)[1])
        forwards.append(sum(passes))
    assert forwards == [6, 12]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=0)


def test_balanced_classes_weigh_the_same_however_the_rows_are_batched():
    labels, logits = torch.tensor([0, 0, 0, 1]), torch.randn(4, 2)
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(2), y=labels.tolist()), dtype=torch.float32)
    loss = weighted_loss(labels.tolist())
    whole = torch.nn.functional.cross_entropy(logits, labels, weight, reduction="sum") / 4
    assert loss({"logits": logits}, labels) == pytest.approx(whole.item())
    parts = sum(loss({"logits": logits[part]}, labels[part], 4) for part in (slice(0, 2), slice(2, 4)))
    assert parts.item() == pytest.approx(whole.item())


# -- memory that runs out --------------------------------------------------------------------------------------------


def _cuda_refuses():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def _cpu_refuses():
    torch.empty(2**60, dtype=torch.uint8)  # the allocator says so itself


@pytest.mark.parametrize(("refuse", "quantization"), [(_cpu_refuses, None), (_cuda_refuses, "nf4")])
def test_out_of_memory_trains_anew_in_smaller_batches_of_the_same_updates(
    recipe, tokens, tiny_profile, tmp_path, capsys, refuse, quantization
):
    """Equal to 1e-4, where updates move weights by 2e-2: gradients are added in another order."""
    recipe, sizes = replace(recipe, quantization=quantization), []

    def look(rows):
        sizes.append(rows)
        if rows > 4 and len(sizes) > 10 and torch.is_grad_enabled():  # an epoch has been trained and saved by then
            refuse()

    _, expected = _trained(recipe, tokens, tiny_profile, tmp_path / "whole")
    small, weights = _trained(recipe, tokens, tiny_profile, tmp_path / "small", look)
    assert sizes[0] == 16 and sizes.count(4) >= 48
    assert (small.args.per_device_train_batch_size, small.args.gradient_accumulation_steps) == (4, 4)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Out of memory")]
    assert len(said) == 2 and "batches of 8, 2 in place" in said[0] and "batches of 4, 4 in place" in said[1]


def test_smaller_batches_are_put_under_autocast_again(recipe, tokens, tiny_profile):
    """accelerate puts a model under autocast once, and has to do it again."""
    model, dtypes = build_model(recipe, recipe.base_model, "bf16"), []
    query = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    query.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    look = lambda rows: rows > 8 and _cpu_refuses()  # noqa: E731
    _trained(recipe, tokens, replace(tiny_profile, precision="bf16"), look=look, model=model)
    assert len(dtypes) > 20 and set(dtypes) == {torch.bfloat16}


def test_where_smaller_batches_cannot_help_the_error_says_what_can(recipe, tokens, tiny_profile):
    with pytest.raises(MemoryError, match=r"max_length.*gradient_checkpointing") as error:
        _trained(recipe, tokens, tiny_profile, look=lambda rows: _cpu_refuses())
    assert "\n" not in str(error.value)


def test_several_processes_cannot_change_their_batches(recipe, tokens, tiny_profile, monkeypatch):
    """The others wait for this one's gradients: it can only end them, and say how to start anew."""
    sizes, state = [], trainer_module.process_state()
    monkeypatch.setattr(trainer_module, "process_state", lambda: type("Two", (), {"num_processes": 2}))
    with pytest.raises(MemoryError, match="Among several processes set a smaller per_device_train_batch_size"):
        _trained(recipe, tokens, tiny_profile, look=lambda rows: (sizes.append(rows), _cpu_refuses()))
    assert sizes == [16] and state.num_processes == 1


def test_another_error_is_not_taken_for_memory_that_ran_out(recipe, tokens, tiny_profile):
    def break_off(rows):
        raise RuntimeError("some other error")

    with pytest.raises(RuntimeError, match="some other error"):
        _trained(recipe, tokens, tiny_profile, look=break_off)


# -- a loss that is no number ----------------------------------------------------------------------------------------


def test_a_training_that_diverges_stops_within_a_logging_step(recipe, tokens, tiny_profile, tmp_path):
    passes, recipe = [], replace(recipe, per_device_train_batch_size=2, num_train_epochs=1)  # 48 updates
    model = build_model(recipe, recipe.base_model)

    def break_weights(rows):
        passes.append(rows)
        if len(passes) == 20:
            with torch.no_grad():
                next(weight for name, weight in model.named_parameters() if "lora_B" in name).fill_(math.nan)

    with pytest.raises(ValueError, match=r"^\w+ is nan after \d+ updates: .*lower learning_rate") as error:
        _trained(recipe, tokens, tiny_profile, tmp_path / "run", break_weights, model)
    assert "\n" not in str(error.value) and len(passes) <= 20 + math.ceil(48 / 10)


@pytest.mark.parametrize(("precision", "name"), [("fp32", "grad_norm"), ("bf16", "grad_norm"), ("fp16", "loss")])
def test_a_logged_value_that_is_no_number_is_told(tmp_path, precision, name):
    _log(tmp_path, precision, {"loss": 0.5, "grad_norm": 1.0})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} is {value} after 3 updates"):
            _log(tmp_path, precision, {"loss": 0.5, "grad_norm": 1.0, name: value})


def test_gradients_that_overflow_under_fp16_are_the_scaler_s_to_mend(tmp_path):
    _log(tmp_path, "fp16", {"loss": 0.5, "grad_norm": math.inf})


def _log(folder, precision: str, logs: dict[str, float]) -> None:
    """A made-up log of a run in that precision: fp16 itself trains on a GPU alone."""
    arguments = type("Arguments", (), {"fp16": precision == "fp16", "output_dir": str(folder)})
    Watcher().on_log(arguments, TrainerState(global_step=3), TrainerControl(), logs=logs)
