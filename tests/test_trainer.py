"""The Trainer by itself: what it is given, memory that runs out, and a loss that is no number."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from sklearn.utils.class_weight import compute_class_weight
from transformers import TrainerControl, TrainerState

from helpers import trainer as trainer_module
from helpers.data import split_reviews, tokenize
from helpers.models import build_model, load_tokenizer
from helpers.profiles import DTYPES
from helpers.recipes import RECIPES
from helpers.trainer import Watcher, train, training_arguments, weighted_loss

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


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
        num_train_epochs=2, min_updates=None, per_device_train_batch_size=16, max_length=16,
    )  # fmt: skip


def _trained(recipe, tokens, profile, folder=None, look=None, model=None):
    """(the Trainer, the trained weights) of a run; `look(rows)` is called with the size of each batch."""
    model = model or build_model(recipe, recipe.base_model)

    def hook(module, args, kwargs):
        look(len(kwargs["input_ids"]))

    if look:
        model.register_forward_pre_hook(hook, with_kwargs=True)
    trained = train(model, load_tokenizer(recipe.base_model), recipe, tokens, profile, folder)
    return trained, {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _alike(found: dict, expected: dict) -> None:
    """Equal to 1e-4, where updates move weights by 2e-2: gradients are added in another order."""
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_recipe_and_profile_in_trainer_s_words(tiny_profile, tmp_path):
    profile = replace(tiny_profile, precision="bf16", seed=7)
    arguments = training_arguments(RECIPES["qlora_bert"], profile, tmp_path)
    assert (arguments.learning_rate, arguments.lr_scheduler_type, arguments.weight_decay) == (2e-4, "cosine", 0.01)
    assert (arguments.optim, arguments.gradient_accumulation_steps) == ("paged_adamw_8bit", 2)
    assert arguments.get_warmup_steps(100) == 10 and arguments.seed == 7 and arguments.bf16 and not arguments.fp16


@pytest.mark.parametrize(("quantization", "optim"), [(None, "adamw_torch"), ("nf4", "paged_adamw_8bit")])
def test_gradient_checkpointing_recomputes_and_learns_the_same(recipe, tokens, tiny_profile, quantization, optim):
    weights, forwards = [], []
    for checkpointing in (False, True):
        how = {"quantization": quantization, "optim": optim, "gradient_checkpointing": checkpointing}
        chosen = replace(recipe, num_train_epochs=1, **how)
        model, passes = build_model(chosen, recipe.base_model), []
        hook = lambda *_, passes=passes: passes.append(torch.is_grad_enabled())  # noqa: E731
        model.get_submodule(QUERY).register_forward_hook(hook)
        weights.append(_trained(chosen, tokens, tiny_profile, model=model)[1])
        forwards.append(sum(passes))
    assert forwards == [6, 12]
    _alike(*weights)


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(recipe, tokens, tiny_profile, monkeypatch):
    weights, compiled = [], []
    for on in ("", "1"):
        monkeypatch.setenv("COMPILE", on)
        trainer, found = _trained(replace(recipe, num_train_epochs=1), tokens, tiny_profile)
        weights.append(found)
        compiled.append(trainer.args.torch_compile)
    assert compiled == [False, True]
    _alike(*weights)


def test_balanced_classes_weigh_the_same_however_the_rows_are_batched():
    labels, logits = torch.tensor([0, 0, 0, 1]), torch.randn(4, 2)
    weight = torch.from_numpy(compute_class_weight("balanced", classes=np.arange(2), y=labels.tolist())).float()
    whole = torch.nn.functional.cross_entropy(logits, labels, weight, reduction="sum").item() / 4
    loss = weighted_loss(labels.tolist())
    assert loss({"logits": logits}, labels) == pytest.approx(whole)
    parts = sum(loss({"logits": logits[part]}, labels[part], 4) for part in (slice(0, 2), slice(2, 4)))
    assert parts.item() == pytest.approx(whole)


def _cuda_refuses():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def _cpu_refuses():
    torch.empty(2**60, dtype=torch.uint8)  # the allocator says so itself


@pytest.mark.parametrize(
    ("refuse", "quantization", "precision"),
    [(_cpu_refuses, None, "bf16"), pytest.param(_cuda_refuses, "nf4", "fp32", marks=pytest.mark.slow)],
)
def test_out_of_memory_trains_anew_in_smaller_batches_of_the_same_updates(
    recipe, tokens, tiny_profile, tmp_path, capsys, refuse, quantization, precision
):
    recipe, profile = replace(recipe, quantization=quantization), replace(tiny_profile, precision=precision)
    model, sizes, dtypes = build_model(recipe, recipe.base_model, precision), [], []
    model.get_submodule(QUERY).register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))

    def look(rows):
        sizes.append(rows)
        if rows > 4 and len(sizes) > 10 and torch.is_grad_enabled():  # an epoch has been trained and saved by then
            refuse()

    small, weights = _trained(recipe, tokens, profile, tmp_path / "small", look, model)
    assert sizes[0] == 16 and sizes.count(4) >= 48 and set(dtypes) == {DTYPES[precision]}
    assert (small.args.per_device_train_batch_size, small.args.gradient_accumulation_steps) == (4, 4)
    if precision == "fp32":
        _alike(weights, _trained(recipe, tokens, profile, tmp_path / "whole")[1])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Out of memory")]
    assert len(said) == 2 and "batches of 8, 2" in said[0] and "batches of 4, 4" in said[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_where_smaller_batches_cannot_help_the_error_says_what_can(
    recipe, tokens, tiny_profile, monkeypatch, processes
):
    sizes, state = [], type("State", (), {"num_processes": processes})
    recipe = replace(recipe, per_device_train_batch_size=4)
    monkeypatch.setattr(trainer_module, "process_state", lambda: state)
    said = r"max_length.*gradient_checkpointing.*several processes.* smaller per_device_train_batch_size"
    with pytest.raises(MemoryError, match=said) as error:
        _trained(recipe, tokens, tiny_profile, look=lambda rows: (sizes.append(rows), _cpu_refuses()))
    assert "\n" not in str(error.value) and sizes == ([4, 2, 1] if processes == 1 else [4])


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


def test_what_is_saved_is_looked_at_first(monkeypatch):
    monkeypatch.setattr(trainer_module, "perf_counter", iter((1, 62, 63)).__next__)
    arguments, control = type("Arguments", (), {"world_size": 1, "save_strategy": "epoch"}), TrainerControl()
    Watcher().on_step_end(arguments, TrainerState(), control)
    assert control.should_save and control.should_log


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fp16", [False, True])
def test_what_is_no_number_is_told_but_gradients_that_fp16_s_scaler_mends(fp16, value):
    arguments, healthy = type("Arguments", (), {"fp16": fp16, "output_dir": "."}), {"loss": 0.5, "grad_norm": 1.0}
    for name in ("loss", "eval_loss", "train_loss", "grad_norm", "learning_rate"):
        told = name.endswith("loss") or (name == "grad_norm" and not fp16)
        match = f"{name} is {value} after 3 updates"
        with pytest.raises(ValueError, match=match) if told else nullcontext():
            Watcher().on_log(arguments, TrainerState(global_step=3), TrainerControl(), logs=healthy | {name: value})
