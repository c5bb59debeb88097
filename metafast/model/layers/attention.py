"""Attention, and the layers of transformers that are made of it: products, a softmax, and sparse maps for the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, batched, described, form_of
from metafast.model.constant import Constant
from metafast.model.layers.arithmetic import affine
from metafast.model.layers.dropout import dropout
from metafast.model.layers.maps import linear
from metafast.model.layers.masks import invert
from metafast.model.layers.pairs import pair
from metafast.model.layers.products import product
from metafast.model.layers.rearrangement import rearranged, reduced
from metafast.model.layers.softmax import of_what_is_shown
from metafast.model.layers.table import FUNCTIONS, MODULES, lowers, lowers_module


@lowers(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    b: Builder,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Place:
    query, key, value = (b.place(each) for each in (query, key, value))
    if enable_gqa:
        b.refuse("is not native with enable_gqa")
    if is_causal and attn_mask is not None:
        b.refuse("has a mask and is causal too, which torch refuses")
    if any(len(each.shape) < 2 for each in (query, key, value)):
        b.refuse("is over the axis of the examples, which has no native form")
    attn_mask = b.place(attn_mask) if isinstance(attn_mask, Constant) else attn_mask
    if attn_mask is not None and not isinstance(attn_mask, (Tensor, Place)):
        b.refuse(f"has {described(attn_mask)} for a mask")
    scaled = affine(b, query, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    masks = [] if attn_mask is None else [attn_mask]
    return _attend(b, scaled, key, value, masks, is_causal, dropout_p)[0]


def _attend(
    b: Builder,
    query: Place,
    key: Place,
    value: Place,
    masks: Sequence[Place | Tensor],
    causal: bool,
    dropout_p: float,
    of_nothing: bool = True,
) -> tuple[Place, Place]:
    """The result and the weights, of queries that are scaled. Masks say what is shown, or are added. The weights of a
    query that is shown nothing are zero if there may be a softmax ``of_nothing``, else NaN, as torch has it of each."""
    scores = product(b, query, key, transposed=True)
    if causal:
        scores = _static(b, scores, torch.ones(scores.shape[-2:], dtype=torch.bool).tril())
    for mask in masks:
        scores = _masked(b, scores, mask)
    softmax = of_what_is_shown(b, scores) if masks and of_nothing else FUNCTIONS[torch.softmax](b, scores, -1)
    weights = dropout(b, softmax, dropout_p)
    return product(b, weights, value), weights


def _masked(b: Builder, scores: Place, mask: Place | Tensor) -> Place:
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        return _static(b, scores, mask)
    place = b.place(mask)
    if place.integers not in (None, torch.bool):
        b.refuse(f"has a mask of {place.integers}, which torch refuses")
    made = pair(b, "hide" if place.integers else "add", scores, b.real(place))
    if made.shape != scores.shape or made.shared != scores.shared:
        b.refuse(f"has a mask {batched(mask.shape)} that is larger than the scores {batched(scores.shape)}")
    return made


def _static(b: Builder, scores: Place, shown: Tensor) -> Place:
    """[..., L, S] with -inf where a key is not shown to a query, by a mask that is the same for every example."""
    zero = b.emit("sparse_map", (scores,), (1,), table=[-1], says="zero")
    low = b.emit("hide", (zero, zero), (1,))
    elements = torch.arange(math.prod(scores.shape)).reshape(scores.shape)
    try:
        table = torch.where(shown.detach().cpu(), elements, elements.numel())
    except RuntimeError:
        table = elements.new_empty(0)
    if table.shape != elements.shape:
        b.refuse(f"has a mask {list(shown.shape)} that does not fit scores of the shape {batched(scores.shape)}")
    form, numbers = form_of(scores.shape), table.reshape(-1).tolist()
    return b.emit("sparse_map", (scores, low), form, shape=scores.shape, table=numbers, says="mask")


# ---- heads -----------------------------------------------------------------------------------------------------------


def _heads(b: Builder, x: Place, heads: int, part: int = 0, parts: int = 1, scale: float = 1.0) -> Place:
    """[L, parts * E] -> [heads, L, E / heads] of one part, times ``scale``."""
    length, width = x.shape[0], x.shape[1] // parts
    elements = torch.arange(math.prod(x.shape)).reshape(length, parts, heads, width // heads)
    table = elements[:, part].transpose(0, 1).reshape(-1).tolist()
    shape = (heads, length, width // heads)
    factors = () if scale == 1 else [scale] * len(table)
    return b.emit("sparse_map", (x,), form_of(shape), shape=shape, table=table, factors=factors, says="heads")


def _projections(b: Builder, m: nn.MultiheadAttention, query: Place, key: Place, value: Place) -> list[Place]:
    """Queries, keys and values of all heads. What is projected together is one layer."""
    heads, scale = m.num_heads, math.sqrt(1 / m.head_dim)
    if m._qkv_same_embed_dim and query is key and key is value:
        together = linear(b, query, m.in_proj_weight, m.in_proj_bias)
        return [_heads(b, together, heads, i, 3, 1.0 if i else scale) for i in range(3)]
    biases = (
        [None] * 3 if m.in_proj_bias is None else rearranged(b, torch.chunk, [m.in_proj_bias, 3], {}, True, "chunk")
    )
    if m._qkv_same_embed_dim:
        weights = rearranged(b, torch.chunk, [m.in_proj_weight, 3], {}, True, "chunk")
    else:
        weights = m.q_proj_weight, m.k_proj_weight, m.v_proj_weight
    given = zip((query, key, value), weights, biases, (scale, 1.0, 1.0), strict=True)
    return [_heads(b, linear(b, x, weight, bias), heads, scale=factor) for x, weight, bias, factor in given]


def _sequence(b: Builder, x: Any, batch_first: bool) -> Place:
    """[N, L, E], or [L, N, E] as if N stood first."""
    if not isinstance(x, Place) or x.shared or len(x.shape) != 2 or x.axis != (0 if batch_first else 1):
        order = "[N, L, C]" if batch_first else "[L, N, C]"
        b.refuse(f"is native for sequences {order} with the axis N of examples")
    first = b.first(x) if x.axis else x
    b.read(first)
    return first


def _back(x: Place, batch_first: bool) -> Place:
    return x if batch_first else Place(x.value, x.shape, x.memory, axis=1)


@lowers_module(nn.MultiheadAttention)
def multihead_attention(
    b: Builder,
    m: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Place, Place | None]:
    distinct = {id(x): _sequence(b, x, m.batch_first) for x in (query, key, value)}
    places = [distinct[id(x)] for x in (query, key, value)]
    output, weights = _of_heads(b, m, places, key_padding_mask, need_weights, attn_mask, is_causal)
    if need_weights and average_attn_weights:
        weights = reduced(b, weights, [1], False, 1 / m.num_heads, "mean")
    return _back(output, m.batch_first), weights if need_weights else None


def _of_pairs(b: Builder, mask: Any, shape: tuple[int, int]) -> Place | Tensor:
    """What is shown, or added, by a mask [L, S] of all examples and heads that says what is hidden, or is added."""
    mask = mask.tensor if isinstance(mask, Constant) and mask.tensor.dtype == torch.bool else mask
    mask = b.place(mask) if isinstance(mask, Constant) else mask
    shared = isinstance(mask, Tensor) or (isinstance(mask, Place) and mask.shared)
    if not shared or tuple(mask.shape) != shape:
        b.refuse(f"has a mask that is not {list(shape)} and the same for all examples, which has no native form")
    if isinstance(mask, Tensor):
        return ~mask if mask.dtype == torch.bool else mask
    return invert(b, mask) if mask.integers == torch.bool else mask


def _of_keys(b: Builder, mask: Any, count: int) -> Place:
    """The same of a mask [N, S] of keys, for all queries and heads."""
    if not isinstance(mask, Place) or mask.shared or mask.shape != (count,):
        b.refuse(
            f"has {described(mask)} for key_padding_mask; native is a tensor [N, {count}] that is given or computed"
        )
    b.read(mask)
    shown = invert(b, mask) if mask.integers == torch.bool else mask
    return Place(shown.value, (1, 1, count), integers=shown.integers)


def _of_heads(
    b: Builder,
    m: nn.MultiheadAttention,
    places: list[Place],
    key_padding_mask: Any,
    need_weights: bool,
    attn_mask: Any,
    is_causal: bool,
) -> tuple[Place, Place]:
    if m.bias_k is not None or m.bias_v is not None or m.add_zero_attn:
        b.refuse("is not native with add_bias_kv or add_zero_attn")
    if is_causal and attn_mask is None:
        b.refuse("is causal without a mask, which torch refuses")
    masks: list[Place | Tensor] = (
        [] if key_padding_mask is None else [_of_keys(b, key_padding_mask, places[1].shape[0])]
    )
    causal = is_causal and not need_weights and not masks  # as torch has it: the hint then stands for the mask
    if attn_mask is not None and not causal:
        masks.insert(0, _of_pairs(b, attn_mask, (places[0].shape[0], places[1].shape[0])))
    query, key, value = _projections(b, m, *places)
    dropout_p = m.dropout if m.training else 0.0
    joined, weights = _attend(b, query, key, value, masks, causal, dropout_p, not need_weights)
    merged = rearranged(b, lambda x: x.transpose(1, 2).flatten(2), [joined], {}, False, "join heads")
    return linear(b, merged, m.out_proj.weight, m.out_proj.bias), weights


# ---- transformers ----------------------------------------------------------------------------------------------------


def _call(b: Builder, function: Any, x: Place) -> Place:
    """Of a module or function that a layer was given."""
    handler = MODULES.get(type(function)) if isinstance(function, nn.Module) else FUNCTIONS.get(function)
    if handler is None:
        name = type(function).__name__ if isinstance(function, nn.Module) else getattr(function, "__name__", function)
        b.refuse(f"has {name} inside, which has no native form")
    made: Place = handler(b, function, x) if isinstance(function, nn.Module) else handler(b, x)
    return made


def _attention_block(
    b: Builder, attention: Any, dropout: Any, x: Place, keys: Place, mask: Any, padding: Any, is_causal: bool
) -> Place:
    if type(attention) is not nn.MultiheadAttention:
        b.refuse(f"has a {type(attention).__name__} inside, which has no native form")
    return _call(b, dropout, _of_heads(b, attention, [x, keys, keys], padding, False, mask, is_causal)[0])


def _feed_forward(b: Builder, m: Any, last: Any, x: Place) -> Place:
    for function in (m.linear1, m.activation, m.dropout, m.linear2, last):
        x = _call(b, function, x)
    return x


def _residual(b: Builder, m: Any, norm: Any, x: Place, block: Callable[[Place], Place]) -> Place:
    """``x`` and what a block makes of it, with the norm before or behind."""
    if m.norm_first:
        return pair(b, "add", x, block(_call(b, norm, x)))
    return _call(b, norm, pair(b, "add", x, block(x)))


@lowers_module(nn.TransformerEncoderLayer)
def transformer_encoder_layer(
    b: Builder,
    m: nn.TransformerEncoderLayer,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Place:
    batch_first = m.self_attn.batch_first
    given = src_mask, src_key_padding_mask, is_causal
    x = _sequence(b, src, batch_first)
    x = _residual(b, m, m.norm1, x, lambda x: _attention_block(b, m.self_attn, m.dropout1, x, x, *given))
    x = _residual(b, m, m.norm2, x, lambda x: _feed_forward(b, m, m.dropout2, x))
    return _back(x, batch_first)


@lowers_module(nn.TransformerDecoderLayer)
def transformer_decoder_layer(
    b: Builder,
    m: nn.TransformerDecoderLayer,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Place:
    batch_first = m.self_attn.batch_first
    own = tgt_mask, tgt_key_padding_mask, tgt_is_causal
    across = memory_mask, memory_key_padding_mask, memory_is_causal
    x, keys = _sequence(b, tgt, batch_first), _sequence(b, memory, batch_first)
    x = _residual(b, m, m.norm1, x, lambda x: _attention_block(b, m.self_attn, m.dropout1, x, x, *own))
    x = _residual(b, m, m.norm2, x, lambda x: _attention_block(b, m.multihead_attn, m.dropout2, x, keys, *across))
    x = _residual(b, m, m.norm3, x, lambda x: _feed_forward(b, m, m.dropout3, x))
    return _back(x, batch_first)


def _layers(b: Builder, m: Any, kind: type[nn.Module], x: Any, layer: Callable[[Any, Any], Place]) -> Place:
    """All layers of an encoder or a decoder, and the norm behind them."""
    for each in m.layers:
        if type(each) is not kind:
            b.refuse(f"has a {type(each).__name__} inside, which has no native form")
        x = layer(each, x)
    if m.norm is None:
        return x  # type: ignore[no-any-return]
    batch_first = m.layers[0].self_attn.batch_first
    return _back(_call(b, m.norm, _sequence(b, x, batch_first)), batch_first)


@lowers_module(nn.TransformerEncoder)
def transformer_encoder(
    b: Builder,
    m: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Place:
    # Without is_causal torch looks whether the mask is causal, and does the same by another way.
    given = mask, src_key_padding_mask, bool(is_causal)
    kind = nn.TransformerEncoderLayer
    return _layers(b, m, kind, src, lambda layer, x: transformer_encoder_layer(b, layer, x, *given))


@lowers_module(nn.TransformerDecoder)
def transformer_decoder(
    b: Builder,
    m: nn.TransformerDecoder,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Place:
    masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
    given = memory, *masks, bool(tgt_is_causal), memory_is_causal
    kind = nn.TransformerDecoderLayer
    return _layers(b, m, kind, tgt, lambda layer, x: transformer_decoder_layer(b, layer, x, *given))
