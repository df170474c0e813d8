from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from helpers import training
from helpers.checkpoints import resolve_checkpoint
from helpers.data import LABELS, split_reviews, tokenize
from helpers.evaluation import predict_logits
from helpers.inference import SentimentClassifier
from helpers.models import build_model, load_tokenizer
from helpers.profiles import EMBEDDED_BERT, Execution
from helpers.recipes import RECIPES
from helpers.results import RunRecord
from helpers.training import fine_tune, make_trainer, score_bag_of_words, score_untrained, training_arguments


@pytest.fixture
def splits(toy_reviews) -> DatasetDict:
    return split_reviews(toy_reviews, 96, 32, 64)


@pytest.fixture
def recipe(tiny_checkpoints):
    """Settings under which a tiny random encoder learns the toy reviews in a few epochs."""
    return replace(
        RECIPES["lora_bert_sst2"].improved(),
        base_model=tiny_checkpoints["bert"],
        learning_rate=2e-2,
        num_train_epochs=5,
        per_device_train_batch_size=8,
        max_length=16,
        warmup_ratio=0.1,
    )


def test_training_learns_keeps_the_best_epoch_and_writes_its_record(splits, recipe, tiny_profile, fp32):
    result = fine_tune(build_model(recipe, recipe.base_model, fp32), recipe, splits, tiny_profile, fp32)
    record, references = result.record, np.array(splits["test"]["label"])
    assert record.metrics["accuracy"] > 0.85
    assert record.metrics["accuracy"] == (result.predictions == references).mean()
    assert result.probabilities.shape == (64, 2)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array(record.confusion_matrix).sum() == 64
    assert record.accuracy_ci95[0] <= record.metrics["accuracy"] <= record.accuracy_ci95[1]
    validation = record.history["validation"]
    assert [row["epoch"] for row in validation] == [1, 2, 3, 4, 5]
    assert record.history["train"][-1]["loss"] < record.history["train"][0]["loss"]
    assert record.adapter_bytes == (result.adapter / "adapter_model.safetensors").stat().st_size > 0
    assert record.train_seconds > 0 and record.peak_memory_bytes > 1e8
    assert RunRecord.load(tiny_profile.results / f"{record.name}.json") == record

    tokenizer = load_tokenizer(recipe.base_model)
    rows = tokenize(splits["validation"], tokenizer, 16)
    predicted = training.class_probabilities(result.model, tokenizer, rows, fp32).argmax(axis=1)
    best = max(row["accuracy"] for row in validation)
    assert (predicted == np.array(splits["validation"]["label"])).mean() == pytest.approx(best)


def test_one_seed_fixes_the_run(splits, recipe, tiny_profile, fp32):
    recipe = replace(recipe, num_train_epochs=1, model_dropout=0.1, lora_dropout=0.1)
    runs = [
        fine_tune(
            build_model(recipe, recipe.base_model, fp32, seed), recipe, splits, replace(tiny_profile, seed=seed), fp32
        )
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(runs[0].probabilities, runs[1].probabilities)
    assert not np.array_equal(runs[0].probabilities, runs[2].probabilities)


def test_a_trained_model_leaves_the_precision_it_was_trained_in(splits, recipe, tiny_profile, fp32):
    """accelerate wraps the forward pass in autocast; left there, an fp32 prediction would silently run in bf16."""
    recipe = replace(recipe, num_train_epochs=1)
    bf16 = Execution("cpu", "bf16", "eager")
    result = fine_tune(build_model(recipe, recipe.base_model, bf16), recipe, splits, tiny_profile, bf16)
    reloaded = SentimentClassifier.from_pretrained(result.adapter, fp32)
    ids = reloaded.tokenizer(["the movie was great", "awful plot"])["input_ids"]
    in_memory = predict_logits(result.model, result.tokenizer, ids, fp32)
    np.testing.assert_allclose(in_memory, predict_logits(reloaded.model, reloaded.tokenizer, ids, fp32), atol=1e-5)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_gradient_checkpointing_recomputes_and_learns_the_same(splits, tiny_profile, fp32, quantization):
    small = DatasetDict({name: rows.select(range(16)) for name, rows in splits.items()})
    recipe = replace(
        RECIPES["lora_bert_sst2"].improved(),
        base_model=resolve_checkpoint(EMBEDDED_BERT),
        quantization=quantization,
        per_device_train_batch_size=8,
        num_train_epochs=1,
        warmup_ratio=0.0,
    )
    losses = []
    for execution in (fp32, replace(fp32, gradient_checkpointing=True)):
        model = build_model(recipe, recipe.base_model, execution)
        forwards = []
        layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
        layer.register_forward_hook(lambda *_, seen=forwards: seen.append(torch.is_grad_enabled()))
        losses.append(fine_tune(model, recipe, small, tiny_profile, execution).record.history["train"][-1]["loss"])
        assert sum(forwards) == (4 if execution.gradient_checkpointing else 2)  # of two steps
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_early_stopping_stops(splits, recipe, tiny_profile, fp32):
    recipe = replace(recipe, learning_rate=1e-9, num_train_epochs=20, early_stopping_patience=2)
    record = fine_tune(build_model(recipe, recipe.base_model, fp32), recipe, splits, tiny_profile, fp32).record
    assert len(record.history["validation"]) == 3  # nothing is learned: the first epoch stays the best


def test_the_optimizers_of_the_recipes_run_on_a_quantized_model_on_cpu(splits, tiny_profile):
    execution = Execution("cpu", "bf16", "eager")
    small = DatasetDict({name: rows.select(range(32)) for name, rows in splits.items()})
    for optim in ("adamw_torch", "paged_adamw_8bit"):
        recipe = replace(
            RECIPES["qlora_bert"].improved(),
            base_model=resolve_checkpoint(EMBEDDED_BERT),
            optim=optim,
            num_train_epochs=2,
            warmup_ratio=0.0,
        )
        model = build_model(recipe, recipe.base_model, execution)
        # Predicting first may make bitsandbytes repack the 4-bit weights; training must cope with it.
        score_untrained(model, recipe, small, tiny_profile, execution)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        fine_tune(model, recipe, small, tiny_profile, execution)
        moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
        assert len(moved) > 20, optim


def test_recipe_and_execution_in_trainer_s_words(recipe, tmp_path):
    arguments = training_arguments(RECIPES["qlora_bert"], 320, Execution("cpu", "bf16", "eager"), str(tmp_path), seed=7)
    assert arguments.learning_rate == 2e-4
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.get_warmup_steps(100) == 10
    assert arguments.weight_decay == 0.01
    assert arguments.optim == "paged_adamw_8bit"
    assert arguments.gradient_accumulation_steps == 2
    assert arguments.bf16 and not arguments.fp16
    assert (arguments.seed, arguments.metric_for_best_model, arguments.logging_steps) == (7, "accuracy", 1)


def test_accumulated_batches_give_the_loss_and_gradient_of_one_batch(splits, recipe, fp32, tmp_path):
    tokenizer = load_tokenizer(recipe.base_model)
    tokens = tokenize(splits["train"].select(range(16)), tokenizer, 16)
    logged = []
    for size, steps in ((16, 1), (4, 4)):
        chosen = replace(
            recipe, num_train_epochs=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        model = build_model(chosen, recipe.base_model, fp32)
        trainer = make_trainer(model, tokenizer, chosen, tokens, tokens, fp32, str(tmp_path), 0)
        trainer.train()
        logged.append(next((row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row))
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)


def test_schedules_reach_the_optimizer(splits, recipe, fp32, tmp_path):
    tokens = tokenize(splits["train"], load_tokenizer(recipe.base_model), 16)
    rates = {}
    for schedule in ("linear", "cosine"):
        chosen = replace(recipe, lr_scheduler_type=schedule, warmup_ratio=0.0, learning_rate=1e-2)
        model = build_model(chosen, recipe.base_model, fp32)
        trainer = make_trainer(model, load_tokenizer(recipe.base_model), chosen, tokens, tokens, fp32, str(tmp_path), 0)
        trainer.create_optimizer_and_scheduler(100)
        for _ in range(25):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        rates[schedule] = trainer.lr_scheduler.get_last_lr()[0]
    assert rates == pytest.approx({"linear": 7.5e-3, "cosine": 1e-2 * (1 + 0.5**0.5) / 2})


def test_baselines_are_scored_on_the_same_rows(splits, recipe, tiny_profile, fp32):
    bag, predictions = score_bag_of_words(recipe, splits, tiny_profile)
    assert bag.variant == "bag_of_words" and bag.metrics["accuracy"] > 0.9
    assert (predictions == np.array(splits["test"]["label"])).mean() == bag.metrics["accuracy"]
    untrained = score_untrained(build_model(recipe, recipe.base_model, fp32), recipe, splits, tiny_profile, fp32)
    assert (untrained.variant, untrained.n_train, untrained.n_test) == ("untrained", 0, 64)
    assert 0.3 < untrained.metrics["accuracy"] < 0.7
    assert {path.name for path in tiny_profile.results.iterdir()} == {f"{bag.name}.json", f"{untrained.name}.json"}


def test_tracking_follows_the_run_offline(splits, recipe, tiny_profile, fp32, monkeypatch, wandb_folder, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = replace(recipe, num_train_epochs=1)
    fine_tune(build_model(recipe, recipe.base_model, fp32), recipe, splits, tiny_profile, fp32, track=True)
    written = b"".join(path.read_bytes() for path in wandb_folder.glob("wandb/offline-run-*/*.wandb"))
    assert b"eval/accuracy" in written and b"test/confusion_matrix" in written
    assert "logging offline" in capsys.readouterr().out
    assert LABELS[0].encode() in written


@pytest.mark.parametrize("variant", ["full_finetune", "head_only"])
def test_without_an_adapter_the_encoder_trains_or_stays(variant, splits, recipe, tiny_profile, fp32):
    recipe = replace(getattr(recipe, variant)(), num_train_epochs=1)
    model = build_model(recipe, recipe.base_model, fp32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fine_tune(model, recipe, splits, tiny_profile, fp32)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= changed
    assert any("attention" in name for name in changed) == (variant == "full_finetune")
    assert result.adapter is None and result.record.variant == variant
    assert (result.record.trainable_params == result.record.total_params) == (variant == "full_finetune")
