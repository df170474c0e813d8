import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from helpers.efficiency import fast_dropout, peak_memory, reset_peak_memory


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


def test_fast_dropout_has_dropout_s_distribution(fp32):
    torch.manual_seed(0)
    values = torch.full((1000, 1001), 2.0)
    with fast_dropout(fp32):
        dropped = functional.dropout(values, 0.1)
        assert functional.dropout(values, 0.1, training=False) is values
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * (0.09 / values.numel()) ** 0.5 + 2**-16)
    assert torch.allclose(dropped[dropped != 0], torch.tensor(2 / 0.9))
    rows = (dropped == 0).double()
    neighbours = ((rows[:, 1:] - share) * (rows[:, :-1] - share)).mean() / (share * (1 - share))
    assert abs(neighbours) < 0.005  # elements that share a 64-bit draw are independent


def test_fast_dropout_follows_the_seed_passes_gradients_and_ends_with_its_block(fp32):
    original = functional.dropout
    values = torch.ones(64, 3, dtype=torch.bfloat16, requires_grad=True)
    with fast_dropout(fp32):
        torch.manual_seed(3)
        first = functional.dropout(values, 0.5)
        torch.manual_seed(3)
        assert torch.equal(first, torch.nn.Dropout(0.5)(values))
        assert first.dtype == torch.bfloat16
    first.sum().backward()
    assert torch.equal(values.grad, first.detach())
    assert functional.dropout is original
    with fast_dropout(replace(fp32, device="cuda")):
        assert functional.dropout is original
