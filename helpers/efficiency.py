"""What a run costs, measured, and what makes it cheaper without changing what it learns."""

import ctypes
import gc
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import MethodType

import bitsandbytes
import numpy as np
import psutil
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.distilbert.modeling_distilbert import TransformerBlock as DistilBertLayer

from helpers.profiles import Execution

try:
    import resource
except ImportError:  # Windows
    resource = None

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: str) -> None:
    """Starts a new peak-memory reading for `device` ("cuda" or "cpu"), where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)  # what is freed goes back to the system, or it would count as held
        _CLEAR.write_text("5")  # Linux: resets VmHWM, see proc(5)


def peak_memory(device: str) -> tuple[int, str]:
    """(bytes, how they were measured): the peak since `reset_peak_memory`, as far as the system tells it.

    On CUDA it is what torch's allocator handed out. On CPU it is the resident memory of the whole process: Python, the
    libraries and the data included. Only Linux can start anew; macOS and Windows give the peak since the process began.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated(), "torch.cuda.max_memory_allocated"
    if _CLEAR.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"))):
        return int(peak[1]) * 1024, "peak resident set of the process during training (VmHWM)"
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset, "peak working set of the process since its start (peak_wset)"
    if resource is None:
        return memory.rss, "resident set of the process at the end of training, not its peak (rss)"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "peak resident set of the process since its start (ru_maxrss)"


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


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


def _medians(values: Sequence[float], seed: int, draws: int = 10_000) -> np.ndarray:
    return np.median(np.random.default_rng(seed).choice(values, (draws, len(values))), axis=1)


def synchronize(device: str) -> None:
    """Waits until the work handed to `device` is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device: str, dtype: torch.dtype, sizes: Sequence[int] | None = None, seconds: float = 0.25) -> float:
    """Floating-point operations a second of the fastest square matrix product here: what a training step could reach.

    The best of several `sizes` (side lengths), each repeated for `seconds`.
    """
    best = 0.0
    for size in sizes or ((4_096, 8_192) if device == "cuda" else (1_024, 2_048)):
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

    def __init__(self, model: torch.nn.Module, execution: Execution, optimizer: str = "adamw_torch", lr: float = 1e-4):
        self.model, self.execution = model.train(), execution
        if execution.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kind = torch.optim.AdamW if optimizer == "adamw_torch" else bitsandbytes.optim.PagedAdamW8bit
        self.optimizer = kind(trained, lr=lr)
        scaled = execution.precision == "fp16" and execution.device == "cuda"
        self.scaler = torch.amp.GradScaler(execution.device, enabled=scaled)

    def random_batch(self, rows: int, tokens: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        shape, device = (rows, tokens), self.execution.device
        ids = torch.randint(5, self.model.config.vocab_size, shape, device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(rows, dtype=int, device=device)

    def run(self, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        execution = self.execution
        with fast_dropout(execution):  # backward too: it recomputes the forward pass where activations are not kept
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

    def __init__(self, step: Callable[[int, int], object], tokens: Sequence[int] = (8, 16, 32)):
        counts = []
        for length in tokens:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                step(1, length)
            counts.append(counter.get_total_flops())
        self.coefficients = np.linalg.solve(np.vander(tokens, 3, increasing=True).astype(float), counts)

    def __call__(self, batch_size: int, tokens: int) -> float:
        """Operations of a step on `batch_size` rows padded to `tokens`."""
        return batch_size * float(np.polynomial.polynomial.polyval(tokens, self.coefficients))


@contextmanager
def fast_dropout(execution: Execution) -> Iterator[None]:
    """Dropout on CPU from 16 random bits an element, where `execution` asks for it; elsewhere torch's own.

    torch draws CPU masks with one Bernoulli call an element on one thread, over a third of a step at BERT's rates.
    Four 16-bit numbers cut from each 64-bit draw give the same distribution (rates rounded to 1/65536) from the same
    generator and seed.
    """
    if execution.device != "cpu" or not execution.fast_dropout:
        yield
        return
    original = functional.dropout

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or inplace or not 0 < p < 1:
            return original(input, p, training, inplace)
        count = input.numel()
        bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
        keep = bits.view(input.shape) >= round(p * 2**16) - 2**15
        return input * keep.to(input.dtype).mul_(1 / (1 - p))

    functional.dropout = dropout
    try:
        yield
    finally:
        functional.dropout = original


def lean_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' eager attention with fewer passes over the scores, its largest tensor: `attention="lean"`.

    The query is scaled instead of the scores, the mask is added in place, and scores keep the query's dtype where an
    fp32 mask would widen them. Query, key and value are (batch, heads, tokens, width of a head). Returns the context,
    (batch, tokens, heads, width of a head), and the probabilities, (batch, heads, tokens, tokens).
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores += attention_mask
    probabilities = functional.dropout(functional.softmax(scores, dim=-1), dropout, module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register("lean", lean_attention)
AttentionMaskInterface.register("lean", eager_mask)


def last_layer_at_cls(model: PreTrainedModel) -> None:
    """Makes a BERT or DistilBERT classifier compute its last layer at the first position alone.

    The classification head reads nothing else, so logits, loss and gradients stay what they are: the other positions
    need keys and values there, but no query, no attention and no feed-forward. The last hidden state becomes
    (batch, 1, width), and the last layer's attention weights are not returned. Other architectures are left alone.
    """
    layers = [module for module in model.modules() if type(module) in _AT_CLS]
    if layers and not getattr(model.config, "is_decoder", False):
        layers[-1].forward = MethodType(_AT_CLS[type(layers[-1])], layers[-1])


def _attend_at_cls(
    attention: torch.nn.Module,
    projections: Sequence[torch.nn.Module],
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """What the first position gathers, (batch, 1, width); `projections` are query, key and value of `attention`.

    `hidden_states` is (batch, tokens, width), `attention_mask` None or (batch, 1, 1 or tokens, tokens).
    """
    sources = (hidden_states[:, :1], hidden_states, hidden_states)
    query, key, value = (
        project(source).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for project, source in zip(projections, sources, strict=True)
    )
    context = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return context.transpose(1, 2).flatten(2)


def _bert_layer_at_cls(layer: BertLayer, hidden_states, attention_mask=None, *_, **__) -> torch.Tensor:
    attention = layer.attention.self
    projections = (attention.query, attention.key, attention.value)
    context = _attend_at_cls(attention, projections, hidden_states, attention_mask)
    return layer.feed_forward_chunk(layer.attention.output(context, hidden_states[:, :1]))


def _distilbert_layer_at_cls(layer: DistilBertLayer, hidden_states, attention_mask=None, **_) -> torch.Tensor:
    attention = layer.attention
    projections = (attention.q_lin, attention.k_lin, attention.v_lin)
    context = attention.out_lin(_attend_at_cls(attention, projections, hidden_states, attention_mask))
    attended = layer.sa_layer_norm(context + hidden_states[:, :1])
    return layer.output_layer_norm(layer.ffn(attended) + attended)


_AT_CLS = {BertLayer: _bert_layer_at_cls, DistilBertLayer: _distilbert_layer_at_cls}
