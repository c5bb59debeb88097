"""Attention, and the layers of transformers that are made of it: products, a softmax, and sparse maps for the heads."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, form_of
from metafast.model.layers.arithmetic import affine
from metafast.model.layers.dropout import dropout
from metafast.model.layers.maps import linear
from metafast.model.layers.pairs import pair
from metafast.model.layers.products import product
from metafast.model.layers.rearrangement import rearranged, reduced
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
    scaled = affine(b, query, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    return _attend(b, scaled, key, value, attn_mask, is_causal, dropout_p)[0]


def _attend(
    b: Builder, query: Place, key: Place, value: Place, mask: Any, causal: bool, dropout_p: float
) -> tuple[Place, Place]:
    """The result and the weights, of queries that are scaled."""
    scores = product(b, query, key, transposed=True)
    if causal:
        scores = _without_future(b, scores)
    if mask is not None:
        scores = pair(b, "add", scores, _additive(b, mask))
    weights = dropout(b, FUNCTIONS[torch.softmax](b, scores, -1), dropout_p)
    return product(b, weights, value), weights


def _additive(b: Builder, mask: Any) -> Place:
    if isinstance(mask, Tensor):
        if mask.dtype == torch.bool:
            b.refuse("has a mask of booleans; native is one of floats, which is added")
        if bool((mask == -math.inf).all(-1).any()):
            b.refuse("has a mask with a row that is -inf throughout, which has no native form")
    return b.place(mask)


def _without_future(b: Builder, scores: Place) -> Place:
    """[..., L, S] with the lowest number where a position would look at a later one: its weight is zero."""
    low = b.emit("sparse_map", (scores,), (1,), table=[-1], says="zero")
    low = affine(b, low, 1, torch.finfo(b.dtype).min)
    size = math.prod(scores.shape)
    past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    table = torch.where(past, torch.arange(size).reshape(scores.shape), size).reshape(-1)
    return b.emit(
        "sparse_map", (scores, low), form_of(scores.shape), shape=scores.shape, table=table.tolist(), says="causal"
    )


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
    if key_padding_mask is not None:
        b.refuse("is not native with key_padding_mask")
    if is_causal and attn_mask is None:
        b.refuse("is causal without a mask, which torch refuses")
    if attn_mask is not None and (not isinstance(attn_mask, Tensor) or attn_mask.dim() != 2):
        b.refuse("has a mask that is no parameter or buffer [L, L], which has no native form")
    causal = is_causal and not need_weights  # as torch has it: the hint then stands for the mask
    query, key, value = _projections(b, m, *places)
    mask = None if causal else attn_mask
    joined, weights = _attend(b, query, key, value, mask, causal, m.dropout if m.training else 0.0)
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


def _attention_block(b: Builder, m: Any, x: Place, mask: Any, padding: Any, is_causal: bool) -> Place:
    if type(m.self_attn) is not nn.MultiheadAttention:
        b.refuse(f"has a {type(m.self_attn).__name__} inside, which has no native form")
    return _call(b, m.dropout1, _of_heads(b, m.self_attn, [x, x, x], padding, False, mask, is_causal)[0])


def _feed_forward(b: Builder, m: Any, x: Place) -> Place:
    for function in (m.linear1, m.activation, m.dropout, m.linear2, m.dropout2):
        x = _call(b, function, x)
    return x


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
    x = _sequence(b, src, batch_first)
    given = src_mask, src_key_padding_mask, is_causal
    if m.norm_first:
        x = pair(b, "add", x, _attention_block(b, m, _call(b, m.norm1, x), *given))
        x = pair(b, "add", x, _feed_forward(b, m, _call(b, m.norm2, x)))
    else:
        x = _call(b, m.norm1, pair(b, "add", x, _attention_block(b, m, x, *given)))
        x = _call(b, m.norm2, pair(b, "add", x, _feed_forward(b, m, x)))
    return _back(x, batch_first)


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
    x: Place = src
    for layer in m.layers:
        if type(layer) is not nn.TransformerEncoderLayer:
            b.refuse(f"has a {type(layer).__name__} inside, which has no native form")
        x = transformer_encoder_layer(b, layer, x, mask, src_key_padding_mask, bool(is_causal))
    if m.norm is None:
        return x
    batch_first = m.layers[0].self_attn.batch_first
    normal: Place = _back(_call(b, m.norm, _sequence(b, x, batch_first)), batch_first)
    return normal
