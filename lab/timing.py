"""Training steps, timed in windows."""

from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter

import bitsandbytes
import torch
from torch.nn.utils import clip_grad_norm_

from helpers.profiles import DTYPES, device

# By the recipe's word; `helpers.training` asks Trainer for the same two.
OPTIMIZERS = {
    "adamw_torch": ("adamw_torch_fused", partial(torch.optim.AdamW, fused=True)),
    "paged_adamw_8bit": ("paged_adamw_8bit", bitsandbytes.optim.PagedAdamW8bit),
}
MAX_GRAD_NORM = 1.0  # TrainingArguments' default


def ratio_range(windows: Sequence[float], over: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest ratio that any two windows of the two measurements have.

    A range, not a confidence interval: that needs at least five windows.
    """
    return min(windows) / max(over), max(windows) / min(over)


class TrainingStep:
    """Forward, backward, clipping and optimizer step of a model, as Trainer does them, without its bookkeeping.

    `optimizer` is a recipe's `optim`. Its learning rate is constant. Batches hold their labels.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        precision: str,
        optimizer: str = "adamw_torch",
        *,
        learning_rate: float = 1e-4,
        gradient_checkpointing: bool = False,
    ):
        self.model, self.precision, self.device = model.train(), precision, device()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = OPTIMIZERS[optimizer][1](trained, lr=learning_rate, weight_decay=0.0)
        self.scaler = torch.amp.GradScaler(self.device, enabled=precision == "fp16" and self.device == "cuda")

    def random_batch(self, rows: int, tokens: int) -> dict[str, torch.Tensor]:
        """A batch of random tokens, shape (rows, tokens), on the device; its labels, shape (rows,), are zeros."""
        ids = torch.randint(5, self.model.config.vocab_size, (rows, tokens), device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids[:, 0])}

    def run(self, batch: Mapping[str, torch.Tensor]) -> None:
        """One update on `batch`."""
        with torch.autocast(self.device, DTYPES[self.precision], enabled=self.precision != "fp32"):
            loss = self.model(**batch).loss
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.zero_grad()

    def timed(self, batch: Mapping[str, torch.Tensor]) -> float:
        """`run`, and how many seconds it took."""
        device_done = torch.get_device_module(self.device).synchronize  # a CPU's waits for nothing
        device_done()
        start = perf_counter()
        self.run(batch)
        device_done()
        return perf_counter() - start

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = {value.data_ptr(): value.nbytes for value in states if isinstance(value, torch.Tensor)}
        return sum(tensors.values())


def timed_window(step: TrainingStep, batches: Sequence[Mapping[str, torch.Tensor]], min_seconds: float) -> float:
    """Samples a second of `step` on `batches`, once or as often as `min_seconds` allow."""
    seconds, samples = 0.0, 0
    while not samples or seconds < min_seconds:
        seconds += sum(map(step.timed, batches))
        samples += sum(len(batch["input_ids"]) for batch in batches)
    return samples / seconds
