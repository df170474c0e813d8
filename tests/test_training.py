import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from helpers.data import split_reviews, tokenize
from helpers.evaluation import predict_logits
from helpers.inference import load_adapter
from helpers.models import build_model
from helpers.profiles import ROOT
from helpers.recipes import RECIPES
from helpers.results import RunRecord
from helpers.training import fine_tune, start_wandb

# Of a record: what is measured, and when it was made.
MEASURED = ("train_seconds", "train_samples_per_second", "peak_memory_bytes", "created_at", "git_commit", "command")


@pytest.fixture
def splits(toy_reviews) -> DatasetDict:
    return split_reviews(toy_reviews, 96, 32, 64)


@pytest.fixture
def recipe(tiny_checkpoints):
    """Settings under which a tiny random encoder learns the toy reviews in a few epochs."""
    return replace(
        RECIPES["lora_bert_sst2"].improved(), base_model=tiny_checkpoints["bert"], learning_rate=2e-2,
        num_train_epochs=1, min_updates=None, modules_to_save=("pooler",), per_device_train_batch_size=8,
        max_length=16, warmup_ratio=0.1,
    )  # fmt: skip


def run(recipe, splits, profile, **options):
    model = build_model(recipe, recipe.base_model, profile.precision, seed=profile.seed)
    return fine_tune(model, recipe, splits, profile, **options)


def test_training_learns_keeps_the_best_epoch_and_writes_its_record(splits, recipe, tiny_profile):
    result = run(replace(recipe, num_train_epochs=5), splits, tiny_profile)
    record, references = result.record, np.array(splits["test"]["label"])
    assert record.metrics["accuracy"] == (result.predictions == references).mean() > 0.85
    assert record.correct.count("1") == (result.predictions == references).sum()
    assert record.accuracy_ci95[0] <= record.metrics["accuracy"] <= record.accuracy_ci95[1]
    assert result.probabilities.shape == (64, 2)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-6)
    losses, validation = record.history["train"], record.history["validation"]
    assert [row["epoch"] for row in validation] == [1, 2, 3, 4, 5] and losses[-1]["loss"] < losses[0]["loss"]
    assert record.adapter_bytes == (result.adapter / "adapter_model.safetensors").stat().st_size > 0
    assert record.train_samples_per_second == pytest.approx(5 * 96 / record.train_seconds)
    assert RunRecord.load(tiny_profile.results / f"{record.name}.json") == record
    assert list(tiny_profile.checkpoints.iterdir()) == [result.adapter], "a run that has ended leaves no checkpoints"

    rows = tokenize(splits["validation"], result.tokenizer, 16)
    logits = predict_logits(result.model, result.tokenizer, list(rows["input_ids"]), "fp32")
    accuracy = (logits.argmax(axis=1) == np.array(rows["label"])).mean()
    assert accuracy == pytest.approx(max(row["accuracy"] for row in validation))


def test_calibrating_divides_the_head_by_one_temperature(splits, recipe, tiny_profile):
    how, prepared = {"save": False, "prepare": lambda trainer: prepared.append(trainer.state.global_step)}, []
    plain, calibrated = (run(recipe, splits, tiny_profile, calibrate=asked, **how) for asked in (False, True))
    assert prepared == [0, 0], "each Trainer is seen before it trains"
    odds = [np.log(one.probabilities[:, 1] / one.probabilities[:, 0]) for one in (plain, calibrated)]
    np.testing.assert_allclose(odds[0] / odds[1], calibrated.record.settings["temperature"], rtol=1e-3)
    assert calibrated.record.metrics == plain.record.metrics and "temperature" not in plain.record.settings


def test_a_trained_model_leaves_the_precision_it_was_trained_in_and_is_freed(splits, recipe, tiny_profile, tmp_path):
    profile, whole = replace(tiny_profile, precision="bf16"), recipe.with_method("full_finetune")
    result = fine_tune(build_model(whole, recipe.base_model, "bf16"), whole, splits, profile, save=False)
    same = build_model(whole, recipe.base_model)
    same.load_state_dict(result.model.state_dict())
    ids = result.tokenizer(["the movie was great", "awful plot"])["input_ids"]
    in_memory, expected = (predict_logits(model, result.tokenizer, ids, "fp32") for model in (result.model, same))
    np.testing.assert_allclose(in_memory, expected, atol=1e-6)
    model = weakref.ref(result.model)
    del result
    gc.collect()
    assert model() is None


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_frozen_base_is_stored_as_it_is_multiplied_and_answers_the_same_when_loaded(
    quantization, splits, recipe, tiny_profile, tmp_path
):
    profile, recipe = replace(tiny_profile, precision="bf16"), replace(recipe, quantization=quantization)
    result = run(recipe, splits, profile, output=tmp_path / "mine" / "model")
    assert result.adapter == tmp_path / "mine" / "model" and not tiny_profile.results.exists()
    frozen = [(name, one) for name, one in result.model.named_parameters() if not one.requires_grad]
    stored = {parameter.dtype for name, parameter in frozen if "LayerNorm" not in name}
    assert stored == ({torch.bfloat16, torch.uint8} if quantization else {torch.bfloat16})
    assert {parameter.dtype for parameter in result.model.parameters() if parameter.requires_grad} == {torch.float32}
    ids = result.tokenizer(["the movie was great", "awful plot"])["input_ids"]
    exact, _, _ = load_adapter(result.adapter, "fp32")
    logits = predict_logits(exact, result.tokenizer, ids, "fp32")
    np.testing.assert_allclose(predict_logits(result.model, result.tokenizer, ids, "bf16"), logits, atol=0.02)
    whole = build_model(recipe, recipe.base_model, "fp32")
    assert {parameter.dtype for parameter in whole.parameters()} - {torch.uint8} == {torch.float32}


@pytest.mark.parametrize("method", ["full_finetune", "head_only"])
def test_without_an_adapter_the_encoder_trains_or_stays(method, splits, recipe, tiny_profile):
    recipe = recipe.with_method(method)
    model = build_model(recipe, recipe.base_model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fine_tune(model, recipe, splits, tiny_profile)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= changed
    assert any("attention" in name for name in changed) == (method == "full_finetune")
    assert result.adapter is None and result.record.variant == method
    assert (result.record.trainable_params == result.record.total_params) == (method == "full_finetune")


@pytest.mark.slow
def test_another_process_gives_the_same_record_and_the_same_bytes(tmp_path):
    settings = [word for one in ("num_train_epochs=1", "max_length=16", "model_dropout=0.1") for word in ("--set", one)]
    found = []
    for place in (tmp_path / "here", tmp_path / "there"):
        command = [sys.executable, "-m", "helpers.train", "lora_bert_sst2", *settings]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "DATA_DIR": str(place)}, capture_output=True)
        assert done.returncode == 0, done.stderr[-3_000:]
        found.append({path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()})
    here, there = found
    assert here.keys() == there.keys() and sum(path.suffix == ".safetensors" for path in here) == 1
    for path in here:
        if path.parent.name == "results":
            records = [json.loads(files[path]) for files in found]
            assert [(records[0].pop(name), records[1].pop(name)) for name in MEASURED] and records[0] == records[1]
        else:
            assert here[path] == there[path], path


def test_tracking_is_off_without_a_key_and_follows_the_run_offline(splits, recipe, tiny_profile, wandb_folder, capsys):
    assert start_wandb(recipe) == "none" and capsys.readouterr().out.startswith("W&B: off")
    (wandb_folder / ".env").write_text("WANDB_MODE=offline\n")
    run(recipe, splits, tiny_profile, track=True)
    written = b"".join(path.read_bytes() for path in wandb_folder.glob("wandb/offline-run-*/*.wandb"))
    assert b"eval/accuracy" in written and b"test/accuracy" in written
    assert "logging offline" in capsys.readouterr().out
