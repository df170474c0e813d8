"""Operations and bytes of one training step: what LoRA saves and what it adds, counted, so that it needs no GPU."""

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.profiles import DTYPES, device


class Operations(TorchDispatchMode):
    """Counts what is dispatched, views aside, and among it casts from one number format to another."""

    operations = casts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += not (func.is_view or func is torch.ops.aten._unsafe_view.default)
        self.casts += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def count_step(model: torch.nn.Module, precision: str, rows: int = 16, tokens: int = 256) -> dict[str, int]:
    """`operations` that forward and backward dispatch, `casts` among them, and `saved_bytes` that forward keeps for
    backward, parameters aside, for a batch of (rows, tokens)."""
    held, parameters = {}, {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.full((rows, tokens), 2_000, device=device())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros_like(ids[:, 0])}
    autocast = torch.autocast(device(), DTYPES[precision], enabled=precision != "fp32")
    with Operations() as counted:
        with autocast, saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.train()(**batch).loss
        loss.backward()
    model.zero_grad()
    return {"operations": counted.operations, "casts": counted.casts, "saved_bytes": sum(held.values())}
