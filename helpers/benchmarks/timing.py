"""Training steps timed in windows: medians with their scatter, operations counted, the device's matrix-product peak."""

from collections.abc import Callable, Sequence
from time import perf_counter

import bitsandbytes
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.base.memory import keep_freed_memory
from helpers.base.speedups import fast_dropout
from helpers.profiles import Execution


def scatter(windows: Sequence[float]) -> float:
    """How far the median of measurements can be trusted: half its 95 % interval (see `median_interval`), over it."""
    low, high = median_interval(windows)
    return (high - low) / 2 / float(np.median(windows))


def median_interval(windows: Sequence[float], over: Sequence[float] | None = None) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of `windows`, or of its ratio to the median of `over`.

    With three or four windows it is their whole range, as it should be.
    """
    medians = [_medians(values, seed) for seed, values in enumerate((windows, over)) if values is not None]
    low, high = np.percentile(medians[0] if over is None else medians[0] / medians[1], (2.5, 97.5), method="nearest")
    return float(low), float(high)


def overlap(windows: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two ranges of measurements meet: then a difference of their medians lies within the scatter."""
    return min(windows) <= max(others) and min(others) <= max(windows)


def _medians(values: Sequence[float], seed: int) -> np.ndarray:
    return np.median(np.random.default_rng(seed).choice(values, (10_000, len(values))), axis=1)


def synchronize(device: str) -> None:
    """Waits until the work handed to `device` is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest square matrix product here: what a training step could reach.

    The best of two side lengths, each repeated for long enough on the device.
    """
    best, seconds = 0.0, 0.1 if device == "cuda" else 0.25
    for size in (4_096, 8_192) if device == "cuda" else (1_024, 2_048):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        torch.mm(left, right)
        synchronize(device)
        start, last = perf_counter(), 0.0
        while last - start < seconds:
            begin = perf_counter()
            torch.mm(left, right)
            synchronize(device)
            last = perf_counter()
            best = max(best, 2 * size**3 / (last - begin))
    return best


class TrainingStep:
    """Forward, backward and optimizer step of a model, as Trainer does them, without its bookkeeping."""

    def __init__(self, model: torch.nn.Module, execution: Execution, optimizer: str = "adamw_torch"):
        self.model, self.execution = model.train(), execution
        if execution.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kind = torch.optim.AdamW if optimizer == "adamw_torch" else bitsandbytes.optim.PagedAdamW8bit
        self.optimizer = kind(trained, lr=1e-4)
        scaled = execution.precision == "fp16" and execution.device == "cuda"
        self.scaler = torch.amp.GradScaler(execution.device, enabled=scaled)

    def random_batch(self, rows: int, tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        shape, device = (rows, tokens), self.execution.device
        ids = torch.randint(5, self.model.config.vocab_size, shape, device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(rows, dtype=int, device=device)

    def run(self, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        execution = self.execution
        keep_freed_memory(execution.device == "cpu" and execution.keep_memory)
        # Backward, too: it recomputes the forward pass where activations are not kept.
        with fast_dropout(execution.device == "cpu" and execution.fast_dropout):
            with torch.autocast(execution.device, execution.compute_dtype, enabled=execution.precision != "fp32"):
                loss = self.model(**batch, labels=labels).loss
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def timed(self, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
        synchronize(self.execution.device)
        start = perf_counter()
        self.run(batch, labels)
        synchronize(self.execution.device)
        return perf_counter() - start

    def optimizer_bytes(self) -> int:
        tensors = {
            value.data_ptr(): value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        }
        return sum(tensors.values())


def timed_window(step: TrainingStep, rows: int, tokens: int, min_seconds: float) -> float:
    """Samples a second of `step` on random batches, over `min_seconds` and at least one batch."""
    seconds, steps = 0.0, 0
    while not steps or seconds < min_seconds:
        seconds, steps = seconds + step.timed(*step.random_batch(rows, tokens)), steps + 1
    return rows * steps / seconds


class StepFlops:
    """Matrix-product operations of one training step of `step(batch_size, tokens)`, as a function of its shape.

    They are an exact polynomial, `batch_size * (a + b * tokens + c * tokens**2)`: head, linear layers, attention. Three
    short steps under torch's FlopCounterMode give the coefficients.
    """

    def __init__(self, step: Callable[[int, int], object]):
        tokens, counts = (8, 16, 32), []
        for length in tokens:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                step(1, length)
            counts.append(counter.get_total_flops())
        self.coefficients = np.linalg.solve(np.vander(tokens, 3, increasing=True).astype(float), counts)

    def __call__(self, batch_size: int, tokens: int) -> float:
        """Operations of a step on `batch_size` rows padded to `tokens`."""
        return batch_size * float(np.polynomial.polynomial.polyval(tokens, self.coefficients))
