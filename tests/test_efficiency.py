import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, BertConfig

from helpers.base import memory
from helpers.base.memory import peak_memory, reset_peak_memory, resident_memory
from helpers.base.paths import ROOT
from helpers.base.speedups import fast_dropout, last_layer_at_cls
from helpers.benchmarks.timing import TrainingStep, median_interval, overlap, scatter
from helpers.models import build_model, load_classifier
from helpers.recipes import RECIPES


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_the_peak_counts_what_was_held_since_the_reset_and_not_before():
    held = torch.ones(100_000_000)  # 400 MB
    del held
    reset_peak_memory("cpu")
    before, method = peak_memory("cpu")
    held = torch.ones(50_000_000)
    after, _ = peak_memory("cpu")
    assert 190e6 < after - before < 230e6
    assert held.sum() > 0 and "VmHWM" in method


KEPT = """
import numpy as np
from helpers.base.memory import keep_freed_memory, resident_memory, return_freed_memory

def left():
    before = resident_memory()
    np.ones(25_000_000)  # 200 MB, which nothing holds
    return resident_memory() - before

left()
assert left() < 20e6, "glibc gives it back"
keep_freed_memory()
keep_freed_memory()
assert left() > 180e6 and left() < 20e6, "kept, and used again"
held = resident_memory()
return_freed_memory()
assert held - resident_memory() > 180e6 and left() > 180e6
held = resident_memory()
keep_freed_memory(False)
assert held - resident_memory() > 180e6 and left() < 20e6
"""


@pytest.mark.skipif(memory._glibc() is None, reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_step_until_it_is_returned():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.skipif(memory.resource is None, reason="Windows has no ru_maxrss")
@pytest.mark.parametrize("status", ["VmRSS:   12 kB", None])  # a system without the peak, and one without the file
def test_where_linux_s_peak_is_absent_another_one_is_named(status, tmp_path, monkeypatch):
    files = [tmp_path / "status", tmp_path / "clear_refs"]
    for file in files if status else ():
        file.write_text(status, encoding="utf-8")
    monkeypatch.setattr(memory, "_STATUS", files[0])
    monkeypatch.setattr(memory, "_CLEAR", files[1])
    held, (peak, method) = resident_memory(), peak_memory("cpu")
    assert "ru_maxrss" in method and peak > 0.99 * held > 50e6
    monkeypatch.setattr(memory, "resource", None)
    peak, method = peak_memory("cpu")
    assert "not its peak" in method and peak == pytest.approx(held, rel=0.1)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1, peak_wset=2))
    monkeypatch.setattr(memory.psutil, "Process", lambda: windows)
    assert peak_memory("cpu") == (2, "peak working set of the process since its start (peak_wset)")


def test_the_scatter_of_a_median_is_the_range_of_three_windows_and_falls_with_more():
    assert median_interval([9.0, 10.0, 12.0]) == (9, 12) and scatter([9.0, 10.0, 12.0]) == pytest.approx(0.15)
    assert median_interval([9.0, 10.0, 12.0], over=[3.0, 4.0, 5.0]) == (9 / 5, 12 / 3)
    assert scatter([10.0]) == 0
    normal = np.random.default_rng(0).normal(100, 10, 400)
    assert scatter(normal) == pytest.approx(1.96 * 1.2533 * 0.1 / 400**0.5, rel=0.3)  # the median's standard error
    assert overlap([1, 2], [2, 3]) and overlap([1, 5], [2, 3]) and not overlap([1, 2], [2.1, 3])


def test_fast_dropout_has_dropout_s_distribution():
    torch.manual_seed(0)
    values = torch.full((1000, 1001), 2.0)
    with fast_dropout():
        dropped = functional.dropout(values, 0.1)
        assert functional.dropout(values, 0.1, training=False) is values
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.09 / values.numel()) ** 0.5 + 2**-16)
    assert torch.allclose(dropped[dropped != 0], torch.tensor(2 / 0.9))
    rows = (dropped == 0).double()
    neighbours = ((rows[:, 1:] - share) * (rows[:, :-1] - share)).mean() / (share * (1 - share))
    assert abs(neighbours) < 0.005  # elements that share a 64-bit draw are independent


def test_fast_dropout_follows_the_seed_passes_gradients_and_ends_with_its_block():
    original = functional.dropout
    values = torch.ones(64, 3, dtype=torch.bfloat16, requires_grad=True)
    with fast_dropout():
        torch.manual_seed(3)
        first = functional.dropout(values, 0.5)
        torch.manual_seed(3)
        assert torch.equal(first, torch.nn.Dropout(0.5)(values))
        assert first.dtype == torch.bfloat16
    first.sum().backward()
    assert torch.equal(values.grad, first.detach())
    assert functional.dropout is original
    with fast_dropout(False):
        assert functional.dropout is original


RECIPE_OF = {"bert": "qlora_bert", "distilbert": "lora_distilbert_qv"}


def loss_logits_and_gradients(model, batch):
    result = model(**batch, labels=torch.tensor([0, 1, 1]))
    result.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return result.loss.detach(), result.logits.detach(), gradients


@pytest.mark.parametrize("variant", ["lora", "full_finetune"])
@pytest.mark.parametrize("attention", ["eager", "lean", "sdpa"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_the_last_layer_at_cls_leaves_logits_and_gradients_as_they_are(
    architecture, attention, variant, tiny_checkpoints, fp32
):
    recipe = replace(RECIPES[RECIPE_OF[architecture]].improved(), quantization=None)  # without dropout
    recipe = recipe.full_finetune() if variant == "full_finetune" else recipe
    ids = torch.randint(5, 18, (3, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7], [2]])).long()}
    results = []
    for at_cls in (False, True):
        execution = replace(fp32, attention=attention, last_layer_at_cls=at_cls)
        model = build_model(recipe, tiny_checkpoints[architecture], execution)
        with torch.no_grad():  # LoRA's B is zero at first, and A then has no gradient
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        results.append((*loss_logits_and_gradients(model.train(), batch), model.base_model))
    (loss, logits, gradients, whole), (same_loss, same_logits, same_gradients, short) = results
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same_logits, logits)
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)
    if variant == "full_finetune":  # and it is the last layer that is shorter, no other
        assert whole(**batch).last_hidden_state.shape == (3, 12, 64)
        assert short(**batch).last_hidden_state.shape == (3, 1, 64)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert"])
def test_lean_attention_computes_what_eager_attention_does(architecture, tiny_encoders, fp32):
    recipe = replace(RECIPES["qlora_bert"].improved().full_finetune(), model_dropout=0.1)
    ids = torch.randint(6, 18, (3, 12), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7], [2]])).long()}
    results = []
    for attention in ("eager", "lean"):
        execution = replace(fp32, attention=attention, last_layer_at_cls=False)
        model = build_model(recipe, tiny_encoders[architecture], execution).train()
        assert model.config._attn_implementation == attention
        torch.manual_seed(0)  # the same dropout masks
        results.append(loss_logits_and_gradients(model, batch))
    (loss, logits, gradients), (same_loss, same_logits, same_gradients) = results
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same_logits, logits)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


def test_the_last_layer_at_cls_spares_its_queries_attention_and_feed_forward(tiny_checkpoints, fp32):
    recipe = RECIPES["qlora_bert"].improved().full_finetune()
    counts = []
    for at_cls in (False, True):
        execution = replace(fp32, last_layer_at_cls=at_cls)
        model = build_model(recipe, tiny_checkpoints["bert"], execution).eval()
        batch, _ = TrainingStep(model, execution).random_batch(2, 16)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(**batch)
        counts.append(counter.get_total_flops())
    width, inner, rows, tokens = 64, 128, 2, 16
    a_position = 2 * (2 * width * width + 2 * width * inner + 2 * tokens * width)  # query, output; feed-forward; scores
    assert counts[0] - counts[1] == rows * (tokens - 1) * a_position


def test_the_last_layer_at_cls_keeps_attention_s_dropout(tiny_checkpoints, fp32):
    model = load_classifier(tiny_checkpoints["bert"], fp32, model_dropout=0.0)
    model.base_model.encoder.layer[-1].attention.self.dropout.p = 0.5
    ids = torch.randint(5, 18, (3, 12), generator=torch.Generator().manual_seed(1))
    trained, again = model.train()(ids).logits, model(ids).logits
    assert not torch.allclose(trained, again)
    predicted, again = model.eval()(ids).logits, model(ids).logits
    assert torch.equal(predicted, again)


def test_a_decoder_keeps_its_last_layer(tiny_checkpoints):
    config = BertConfig.from_pretrained(tiny_checkpoints["bert"], is_decoder=True)
    model = AutoModelForSequenceClassification.from_config(config)
    last_layer_at_cls(model)
    assert model.base_model(torch.tensor([[5, 6, 7, 8]])).last_hidden_state.shape == (1, 4, 64)


def test_another_architecture_keeps_its_last_layer(tiny_encoders, fp32):
    model = load_classifier(tiny_encoders["roberta"], fp32)
    hidden = model.base_model(input_ids=torch.tensor([[5, 6, 7, 8]])).last_hidden_state
    assert hidden.shape == (1, 4, 64)
