"""Training steps, timed in windows."""

from collections.abc import Sequence
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


def synchronize() -> None:
    """Waits until the work handed to a GPU is done."""
    if device() == "cuda":
        torch.cuda.synchronize()


class TrainingStep:
    """Forward, backward, clipping and optimizer step of a model, as Trainer does them, without its bookkeeping.

    `optimizer` is a recipe's `optim`. Its learning rate is constant.
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

    def random_batch(self, rows: int, tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A batch of random tokens, shape (rows, tokens), and its labels, shape (rows,), on the device."""
        ids = torch.randint(5, self.model.config.vocab_size, (rows, tokens), device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros_like(ids[:, 0])

    def run(self, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        """One update on `batch`."""
        with torch.autocast(self.device, DTYPES[self.precision], enabled=self.precision != "fp32"):
            loss = self.model(**batch, labels=labels).loss
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.zero_grad()

    def timed(self, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
        """`run`, and how many seconds it took."""
        synchronize()
        start = perf_counter()
        self.run(batch, labels)
        synchronize()
        return perf_counter() - start

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = {value.data_ptr(): value.nbytes for value in states if isinstance(value, torch.Tensor)}
        return sum(tensors.values())


def timed_window(step: TrainingStep, rows: int, tokens: int, min_seconds: float) -> float:
    """Samples a second of `step` on random batches, over `min_seconds` and at least one batch."""
    seconds, steps = 0.0, 0
    while not steps or seconds < min_seconds:
        seconds, steps = seconds + step.timed(*step.random_batch(rows, tokens)), steps + 1
    return rows * steps / seconds
