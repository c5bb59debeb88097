"""Rows of tables, by integers of the input."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, described, form_of
from metafast.model.constant import Constant
from metafast.model.layers.rearrangement import rearranged, reduced
from metafast.model.layers.table import lowers, lowers_module


def _indices(b: Builder, input: Any, rows: int) -> Place:
    """Integers that choose among so many rows, as a vector or by rows."""
    b.read(input)
    if input.integers not in (torch.int32, torch.int64):
        b.refuse(f"reads {input.integers or b.dtype}; native are int64 and int32 that the model is given")
    if not _given(b, input):
        b.refuse(
            "chooses by integers that are computed; native are those that the model is given, and with a number added"
        )
    counted = 2 ** (24 if b.dtype == torch.float32 else 53)
    if rows > counted:
        b.refuse(f"has {rows} rows; native are at most {counted}, which {b.dtype} counts exactly")
    return b.rows(input)


def _given(b: Builder, input: Place) -> bool:
    """Whether all that these integers can be is known from the input, where Python looks at them."""
    writers = {node.output: node for node in b.nodes}
    values, fills, shifts = [b.read(input)], False, False
    while values:
        value = values.pop()
        if value == b.input.value:
            continue
        node = writers[value]
        shifts |= node.op == "affine"
        fills |= -1 in node.table
        if node.op not in ("flatten", "sparse_map", "affine") or node.factors:
            return False
        if len(node.table) not in (0, math.prod(b.values[value])) or dict(node.attributes).get("scale", 1) != 1:
            return False
        values.extend(node.inputs)
    return not (fills and shifts)


@lowers(F.embedding)
def embedding(
    b: Builder,
    input: Any,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Place:
    if max_norm is not None:
        b.refuse(f"is not native with max_norm={max_norm}, which overwrites the table")
    for name, value in (("scale_grad_by_freq", scale_grad_by_freq), ("sparse", sparse)):
        if value:
            b.refuse(f"is not native with {name}=True")
    b.index(weight)
    if weight.dim() != 2:
        b.refuse(f"has {described(weight)} for a table; native are two dimensions")
    if isinstance(input, Constant):
        return _constant_rows(b, input.tensor, weight, padding_idx)
    rows, width = weight.shape
    settings = {}
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            b.refuse(f"has padding_idx={padding_idx} and a table of {rows} rows, which torch refuses")
        settings = {"padding_idx": padding_idx % rows}
    shape = (*input.shape, width) if isinstance(input, Place) else ()
    return b.emit("embedding", (_indices(b, input, rows),), form_of(shape), (weight,), settings, shape=shape)


def _constant_rows(b: Builder, indices: Tensor, weight: Tensor, padding_idx: int | None) -> Place:
    """Rows that are the same for all examples: a table of positions."""
    if padding_idx is not None:
        b.refuse("reads rows that are the same for all examples from a table with padding_idx, which is not native")
    made: Place = rearranged(b, lambda table: F.embedding(indices, table), [weight], {}, False, "embedding")
    return made


@lowers(F.embedding_bag)
def embedding_bag(
    b: Builder,
    input: Any,
    weight: Tensor,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Place:
    b.rank(input, (1,), "[N, L]")
    if offsets is not None or per_sample_weights is not None:
        b.refuse("is native for bags of one size, without offsets or weights")
    if padding_idx is not None or mode not in ("mean", "sum"):
        b.refuse(f"is not native with mode={mode!r} and padding_idx={padding_idx}")
    each = embedding(b, input, weight, None, max_norm, norm_type, scale_grad_by_freq, sparse)
    return reduced(b, each, [1], False, 1 / input.shape[0] if mode == "mean" else 1.0, "embedding_bag")


@lowers(F.one_hot)
def one_hot(b: Builder, input: Any, num_classes: int = -1) -> Place:
    if num_classes < 1:
        b.refuse("takes the number of classes from the data; native is one that is given")
    made = chosen(b, input, num_classes)
    if input.integers != torch.int64:
        b.refuse(f"reads {input.integers}; torch takes int64")
    made.integers = torch.int64
    return made


def chosen(b: Builder, input: Any, rows: int) -> Place:
    """The rows of the identity that integers choose."""
    shape = (*input.shape, rows) if isinstance(input, Place) else ()
    return b.emit("embedding", (_indices(b, input, rows),), form_of(shape), shape=shape, says="one_hot")


@lowers_module(nn.Embedding)
def _embedding(b: Builder, m: nn.Embedding, x: Place) -> Place:
    return embedding(b, x, m.weight, m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)


@lowers_module(nn.EmbeddingBag)
def _embedding_bag(b: Builder, m: nn.EmbeddingBag, x: Place) -> Place:
    freq, last, padding = m.scale_grad_by_freq, m.include_last_offset, m.padding_idx
    return embedding_bag(b, x, m.weight, None, m.max_norm, m.norm_type, freq, m.mode, m.sparse, None, last, padding)
