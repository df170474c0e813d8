"""Faster dropout, attention and last layer that give what the slower ones give."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.distilbert.modeling_distilbert import TransformerBlock as DistilBertLayer


@contextmanager
def fast_dropout(wanted: bool = True) -> Iterator[None]:
    """Dropout on a CPU from 16 random bits an element where it is `wanted`; else torch's own.

    torch draws CPU masks with one Bernoulli call an element on one thread, over a third of a step at BERT's rates.
    Four 16-bit numbers cut from each 64-bit draw give the same distribution (rates rounded to 1/65536) from the same
    generator and seed.
    """
    if not wanted:
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
