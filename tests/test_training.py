from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, DatasetDict
from filelock import FileLock
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import DataCollatorWithPadding, Trainer

from helpers import training
from helpers.checkpoints import resolve_checkpoint
from helpers.data import LABELS, split_reviews, tokenize
from helpers.evaluation import predict_logits
from helpers.fitting import loop
from helpers.fitting.loop import fit
from helpers.fitting.resuming import Occupied
from helpers.fitting.trainer import make_trainer, training_arguments
from helpers.inference import SentimentClassifier
from helpers.models import attach_lora, build_model, load_classifier, load_tokenizer, nf4_config
from helpers.own_data import adapt_recipe
from helpers.profiles import EMBEDDED_BERT, Execution, fastest_execution
from helpers.recipes import RECIPES
from helpers.results import RunRecord
from helpers.training import fine_tune, score_bag_of_words, score_untrained


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
        min_updates=None,
        modules_to_save=("pooler",),
        per_device_train_batch_size=8,
        max_length=16,
        warmup_ratio=0.1,
    )


@pytest.mark.parametrize(("processes", "epochs"), [(1, 10), (2, 20)])
def test_the_fewest_updates_hold_however_many_processes_share_the_rows(
    splits, recipe, tiny_profile, fp32, monkeypatch, processes, epochs
):
    trained = []
    state = SimpleNamespace(num_processes=processes, is_main_process=False)
    monkeypatch.setattr("helpers.training.process_state", lambda device: state)
    monkeypatch.setattr("helpers.training.fit", lambda model, tokenizer, recipe, *rest, **more: trained.append(recipe))
    recipe = replace(recipe, min_updates=120)  # 96 rows in batches of 8
    fine_tune(build_model(recipe, recipe.base_model, fp32), recipe, splits, tiny_profile, fp32)
    assert [run.num_train_epochs for run in trained] == [epochs]


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


def test_a_cpu_keeps_freed_memory_while_it_trains_and_gives_it_back(recipe, splits, tiny_profile, fp32, monkeypatch):
    told = []
    monkeypatch.setattr("helpers.fitting.loop.keep_freed_memory", lambda wanted: told.append(wanted))
    monkeypatch.setattr("helpers.fitting.loop.return_freed_memory", lambda: told.append("returned"))
    recipe = replace(recipe, num_train_epochs=1)
    for keep in (True, False):
        execution = replace(fp32, keep_memory=keep)
        fine_tune(build_model(recipe, recipe.base_model, execution), recipe, splits, tiny_profile, execution)
    assert told == [True, "returned", False, "returned"]


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
        min_updates=None,
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


@pytest.mark.parametrize(
    ("name", "long", "multiple", "tokens"),
    [("bert", 10, 32, 32), ("bert", 10, 24, 7), ("bert", 16, 32, 7), ("roberta", 10, 32, 7)],
)
def test_long_rows_are_padded_to_a_multiple_that_fits_the_encoder_s_positions(
    tiny_encoders, recipe, fp32, tmp_path, monkeypatch, name, long, multiple, tokens
):
    """The longest row has 16 tokens. One of 62, all that the RoBERTa here has positions for, must not become 64."""
    monkeypatch.setattr("helpers.fitting.trainer.LONG", long)
    monkeypatch.setattr("helpers.fitting.trainer.MULTIPLE", multiple)
    base_model = tiny_encoders[name]
    model, tokenizer = build_model(adapt_recipe(recipe, base_model), base_model, fp32), load_tokenizer(base_model)
    rows = Dataset.from_dict({"input_ids": [16 * [5], 4 * [5]], "label": [0, 1], "length": [16, 4]})
    made = make_trainer(model, tokenizer, recipe, rows, None, fp32, str(tmp_path), 0)
    short = [{"input_ids": 7 * [5], "label": 0}, {"input_ids": 3 * [5], "label": 1}]
    batch, plain = made.data_collator(short), DataCollatorWithPadding(tokenizer)(short)
    assert batch["input_ids"].shape == (2, tokens) and batch["attention_mask"].sum().item() == 10
    model.eval()
    torch.testing.assert_close(model(**batch).logits, model(**plain).logits, rtol=0, atol=1e-6)
    model(**made.data_collator([{"input_ids": 62 * [5], "label": 0}]))


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


@pytest.mark.parametrize(("averaged", "counted"), [(True, slice(4, 6)), (False, slice(5, 6))])
def test_what_is_left_is_the_last_update_or_the_mean_of_the_last_epoch(splits, recipe, fp32, averaged, counted):
    tokenizer = load_tokenizer(recipe.base_model)
    tokens, recipe = tokenize(splits["train"].select(range(16)), tokenizer, 16), replace(recipe, num_train_epochs=3)
    model = build_model(recipe, recipe.base_model, fp32)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}

    def trained():
        return torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])

    after = []  # each of six updates, two an epoch
    hook = register_optimizer_step_post_hook(lambda *_: after.append(trained()))
    try:
        fit(model, tokenizer, recipe, tokens, None, fp32, 0, averaged=averaged)
    finally:
        hook.remove()
    assert len(after) == 6 and (after[4] - after[5]).abs().max() > 1e-3
    torch.testing.assert_close(trained(), torch.stack(after[counted]).mean(0))
    assert all(torch.equal(weight, model.get_parameter(name)) for name, weight in frozen.items())


def test_the_mean_of_the_last_epoch_and_the_best_epoch_do_not_go_together(splits, recipe, fp32):
    tokenizer = load_tokenizer(recipe.base_model)
    tokens = tokenize(splits["train"], tokenizer, 16)
    with pytest.raises(ValueError, match="averaged=True"):
        fit(build_model(recipe, recipe.base_model, fp32), tokenizer, recipe, tokens, tokens, fp32, 0, averaged=True)


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


@pytest.mark.parametrize("method", ["full_finetune", "head_only"])
def test_without_an_adapter_the_encoder_trains_or_stays(method, splits, recipe, tiny_profile, fp32):
    recipe = replace(recipe.by(method), num_train_epochs=1)
    model = build_model(recipe, recipe.base_model, fp32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fine_tune(model, recipe, splits, tiny_profile, fp32)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= changed
    assert any("attention" in name for name in changed) == (method == "full_finetune")
    assert result.adapter is None and result.record.variant == method
    assert (result.record.trainable_params == result.record.total_params) == (method == "full_finetune")


# -- memory that runs out --------------------------------------------------------------------------------------------


def _refuse(model, rows: int, after: int = 0, how=lambda: torch.empty(2**60, dtype=torch.uint8)):
    """Memory for batches of `rows` alone, from the forward pass `after` on; `how` raises what the allocator does."""
    seen = []

    def look(module, args, kwargs):
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > rows and len(seen) > after:
            how()

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def _cuda_refuses():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def _trained_weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_out_of_memory_trains_anew_in_smaller_batches_and_learns_the_same(
    splits, recipe, fp32, tmp_path, capsys, quantization
):
    """To 1e-4, where updates move weights by 2e-2: gradients are added in another order. 90 rows end in an update of
    10, in batches of 4, 4 and 2, whose rows must count the same."""
    tokenizer = load_tokenizer(recipe.base_model)
    cut = splits.map(lambda row, index: {"text": " ".join(row["text"].split()[: 5 + index % 5])}, with_indices=True)
    tokens = DatasetDict({name: tokenize(rows, tokenizer, 16) for name, rows in cut.items()})
    train = tokens["train"].select(range(90))
    assert len(set(train["length"])) == 5  # the order depends on lengths and on the size of an update
    recipe = replace(
        recipe, per_device_train_batch_size=16, num_train_epochs=2, model_dropout=0.0, lora_dropout=0.0,
        quantization=quantization,
    )  # fmt: skip
    runs = []
    for memory in (None, 4):
        model = build_model(recipe, recipe.base_model, fp32)
        # The eleventh pass: six updates have been made by then, and the first epoch validated and saved.
        seen = _refuse(model, memory, after=10, how=_cuda_refuses) if memory else []
        folder = tmp_path / str(memory)
        fitted = fit(model, tokenizer, recipe, train, tokens["validation"], fp32, 7, checkpoints=folder)
        runs.append((fitted, _trained_weights(model)))
    (whole, expected), (small, weights) = runs
    assert whole.recipe == recipe and max(seen) == 16 and max(seen[-20:]) == 4
    assert (small.recipe.per_device_train_batch_size, small.recipe.gradient_accumulation_steps) == (4, 4)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    for part in ("train", "validation"):
        for after, plain in zip(small.history[part], whole.history[part], strict=True):
            assert (after["step"], after["loss"]) == pytest.approx((plain["step"], plain["loss"]), abs=1e-4)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Out of memory")]
    assert lines == [
        "Out of memory at batches of 16: training again with batches of 8, 2 to an update",
        "Out of memory at batches of 8: training again with batches of 4, 4 to an update",
    ]


def test_the_record_says_what_fitted_and_autocast_survives(splits, recipe, tiny_profile):
    """The CPU's own allocator refuses here; accelerate puts a model under autocast once, and has to do it again."""
    recipe = replace(recipe, per_device_train_batch_size=16, num_train_epochs=1)
    bf16 = Execution("cpu", "bf16", "eager")
    model = build_model(recipe, recipe.base_model, bf16)
    _refuse(model, 8)
    dtypes = []
    pooler = model.get_submodule("base_model.model.bert.pooler.modules_to_save.default.dense")
    pooler.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    settings = fine_tune(model, recipe, splits, tiny_profile, bf16).record.settings
    batches = ("per_device_train_batch_size", "gradient_accumulation_steps", "effective_batch_size")
    assert [settings[name] for name in batches] == [8, 2, 16]
    assert dtypes and set(dtypes) == {torch.bfloat16}


@pytest.mark.parametrize(("size", "smaller"), [(16, 8), (6, 3), (9, 3), (5, 1)])
def test_smaller_batches_make_the_same_update(recipe, fp32, size, smaller):
    recipe = replace(recipe, per_device_train_batch_size=size, gradient_accumulation_steps=2)
    halved = loop._smaller_batches(recipe, fp32)
    assert halved.per_device_train_batch_size == smaller
    assert halved.per_device_train_batch_size * halved.gradient_accumulation_steps == size * 2


def test_where_smaller_batches_cannot_help_the_error_says_what_can(splits, recipe, fp32, monkeypatch, tmp_path):
    tokenizer = load_tokenizer(recipe.base_model)
    tokens = tokenize(splits["train"], tokenizer, 16)
    model = build_model(recipe, recipe.base_model, fp32)
    _refuse(model, 0)
    with pytest.raises(MemoryError, match=r"one text at a time.*max_length.*gradient checkpointing.*PROFILE=quick"):
        fit(model, tokenizer, recipe, tokens, None, fp32, 0)
    # The other processes wait for this one's gradients: it can only end them, and say how to start anew.
    monkeypatch.setattr(loop, "process_state", lambda device: SimpleNamespace(num_processes=2))
    with pytest.raises(MemoryError, match=r"one of 2 processes, at batches of 8 in each.*--batch-size 4"):
        loop._smaller_batches(recipe, fp32)


def test_after_an_error_a_run_that_starts_again_goes_on_from_its_last_checkpoint(
    splits, recipe, tiny_profile, fp32, capsys
):
    def broken():
        raise RuntimeError("some other error")

    recipe = replace(recipe, num_train_epochs=2)
    model = build_model(recipe, recipe.base_model, fp32)
    _refuse(model, 0, after=20, how=broken)  # an epoch is 12 updates and 2 batches of validation
    with pytest.raises(RuntimeError, match="some other error"):
        fine_tune(model, recipe, splits, tiny_profile, fp32)
    folder = tiny_profile.checkpoints / ".lora_bert_sst2-improved-seed42"
    assert (folder / "checkpoint-12" / "adapter_model.safetensors").exists()
    assert f"goes on from {folder}" in capsys.readouterr().out
    result = fine_tune(build_model(recipe, recipe.base_model, fp32), recipe, splits, tiny_profile, fp32)
    assert f"Resuming after 12 updates, from {folder}" in capsys.readouterr().out
    assert list(tiny_profile.checkpoints.iterdir()) == [result.adapter]
    assert [row["epoch"] for row in result.record.history["validation"]] == [1, 2]


# -- a GPU, as far as a machine without one can tell -----------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(major, minor)` makes torch report a GPU of that compute capability."""
    monkeypatch.delenv("PRECISION", raising=False)

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or major >= 8
        )

    yield pretend
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_a_gpu_trains_in_the_format_that_it_multiplies(
    gpu, monkeypatch, recipe, splits, tmp_path, capability, precision
):
    gpu(*capability)
    execution = fastest_execution()
    assert (execution.device, execution.precision, execution.attention) == ("cuda", precision, "sdpa")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert nf4_config(execution.compute_dtype).bnb_4bit_compute_dtype == dtype
    model = build_model(recipe, recipe.base_model, Execution("cpu", "fp32", "sdpa"))
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(Trainer, "_move_model_to_device", lambda self, model, device: model)
    tokenizer = load_tokenizer(recipe.base_model)
    tokens = tokenize(splits["train"], tokenizer, 16)
    trainer = make_trainer(model, tokenizer, recipe, tokens, None, execution, str(tmp_path), 0)
    assert (trainer.args.fp16, trainer.args.bf16) == (precision == "fp16", precision == "bf16")
    assert trainer.accelerator.mixed_precision == precision and trainer.args.device.type == "cuda"
    scaler = trainer.accelerator.scaler
    assert (scaler is not None and scaler.is_enabled()) == (precision == "fp16")


def test_a_4_bit_model_is_loaded_onto_its_process_s_own_gpu(gpu, monkeypatch, recipe):
    """accelerate refuses to train it under torchrun unless the index of the GPU is said."""
    gpu(7, 5)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    loads = []

    def load(checkpoint, **options):
        loads.append(options["device_map"])
        raise InterruptedError

    monkeypatch.setattr("helpers.models.AutoModelForSequenceClassification.from_pretrained", load)
    with pytest.raises(ValueError):
        load_classifier(recipe.base_model, fastest_execution(), quantization="nf4")
    assert loads == [{"": 1}]


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_what_trains_under_fp16_is_held_in_fp32(recipe, quantization):
    """A scaler refuses to unscale fp16 gradients."""
    execution = Execution("cpu", "fp16", "sdpa")
    model = load_classifier(recipe.base_model, execution, quantization=quantization)
    trained = _trained_weights(attach_lora(model, recipe))
    assert len(trained) == 12 and {weight.dtype for weight in trained.values()} == {torch.float32}


def test_a_run_with_a_folder_of_its_own_trains_beside_another_of_its_recipe(
    splits, recipe, tiny_profile, fp32, tmp_path
):
    lock = tiny_profile.checkpoints / f".{recipe.name}-{recipe.variant}-seed{tiny_profile.seed}.lock"
    model = build_model(recipe, recipe.base_model, fp32)
    with FileLock(lock):  # as the other holds it
        with pytest.raises(Occupied):
            fine_tune(model, recipe, splits, tiny_profile, fp32)
        assert fine_tune(model, recipe, splits, tiny_profile, fp32, output=tmp_path / "mine").adapter.name == "mine"
