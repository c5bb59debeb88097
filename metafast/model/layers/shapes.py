"""Rearrangements, copies, and what code asks of shapes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from metafast.model.builder import BATCH, Builder, Place, described
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers, lowers_module


@lowers("size")
def size(b: Builder, input: Any, dim: int | None = None) -> Any:
    batched = isinstance(input, Place) and not input.shared
    sizes = (BATCH, *input.shape) if batched else tuple(input.shape)
    return sizes if dim is None else sizes[b.axis(input, dim) if batched else dim]


@lowers("dim", "ndimension")
def dim(b: Builder, input: Any) -> int:
    return len(size(b, input))


@lowers(getattr)
def attribute(b: Builder, input: Any, name: str) -> Any:
    if name in ("T", "mT") and isinstance(input, (Place, Tensor)):
        return rearranged(b, lambda x: getattr(x, name), (input,), {}, True, name)
    if name not in ("shape", "ndim") or not isinstance(input, (Place, Tensor)):
        b.refuse(f"reads the attribute {name!r} of {described(input)}, which has no native form")
    return size(b, input) if name == "shape" else dim(b, input)


@lowers(len)
def length(b: Builder, input: Any) -> Any:
    return len(input) if isinstance(input, tuple) else size(b, input, 0)


@lowers(operator.getitem)
def getitem(b: Builder, input: Any, item: Any) -> Any:
    if isinstance(input, (Place, Tensor)):
        return rearranged(b, operator.getitem, (input, item), {}, True, "[]")
    if not isinstance(input, (tuple, list)):
        b.refuse(f"takes a part of {described(input)}, which has no native form")
    return input[item]


@lowers(torch.clone, "clone")
def clone(b: Builder, input: Place) -> Place:
    return Place(b.read(input), input.shape, shared=input.shared)


@lowers("contiguous")
def contiguous(b: Builder, input: Place) -> Place:
    # torch copies or not: shared memory forbids what would tell
    return Place(b.read(input), input.shape, input.memory, input.shared)


lowers_module(nn.Identity)(lambda b, m, x: x)
