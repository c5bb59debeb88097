"""Rearrangements, copies, and what code asks of shapes."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from metafast.model.builder import BATCH, Builder, Place, batched, described
from metafast.model.layers.table import lowers, lowers_module


def flat(b: Builder, input: Place) -> Place:
    """[N, *shape] -> [N, prod(shape)], sharing memory."""
    if len(input.shape) == 1:
        return input
    output = b.emit("flatten", (input,), (math.prod(input.shape),))
    return Place(output.value, output.shape, input.memory)


@lowers(torch.flatten, "flatten")
def flatten(b: Builder, input: Place, start_dim: int = 0, end_dim: int = -1) -> Place:
    b.read(input)
    start, end = b.axis(input, start_dim), b.axis(input, end_dim)
    if start == end:
        return input
    if (start, end) != (1, len(input.shape)):
        b.refuse(
            f"is native to [N, -1] (all axes but that of the examples), not from axis {start_dim} to {end_dim} of "
            f"{batched(input.shape)}"
        )
    return flat(b, input)


@lowers(torch.reshape, "reshape", "view")
def reshape(b: Builder, input: Place, *shape: Any) -> Place:
    b.read(input)
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    elements = math.prod(input.shape)
    # One axis may be -1. It is the batch exactly if the others hold one example; else the batch must stand first.
    unknown = [i for i, size in enumerate(wanted) if isinstance(size, int) and size == -1]
    sizes = [size for size in wanted if size is not BATCH and size != -1]
    if all(isinstance(size, int) for size in sizes) and len(unknown) <= 1 and wanted:
        known = math.prod(sizes)
        if wanted[0] is BATCH and BATCH not in wanted[1:]:
            if unknown and known and elements % known == 0:
                wanted[unknown[0]] = elements // known
        elif unknown == [0] and BATCH not in wanted and known == elements:
            wanted[0] = BATCH
        target = tuple(wanted[1:])
        if wanted[0] is BATCH and target == input.shape:
            return input
        if wanted[0] is BATCH and target == (elements,):
            return flat(b, input)
    text = ", ".join(map(str, shape))
    return b.refuse(f"is native to [N, -1] for any number N of examples, not from {batched(input.shape)} to ({text})")


@lowers("size")
def size(b: Builder, input: Any, dim: int | None = None) -> Any:
    sizes = (BATCH, *input.shape) if isinstance(input, Place) else tuple(input.shape)
    return sizes if dim is None else sizes[dim if isinstance(input, Tensor) else b.axis(input, dim)]


@lowers("dim", "ndimension")
def dim(b: Builder, input: Any) -> int:
    return len(size(b, input))


@lowers(getattr)
def attribute(b: Builder, input: Any, name: str) -> Any:
    if name not in ("shape", "ndim") or not isinstance(input, (Place, Tensor)):
        b.refuse(f"reads the attribute {name!r} of {described(input)}, which has no native form")
    return size(b, input) if name == "shape" else dim(b, input)


@lowers(len)
def length(b: Builder, input: Any) -> Any:
    return len(input) if isinstance(input, tuple) else size(b, input, 0)


@lowers(operator.getitem)
def getitem(b: Builder, input: Any, item: Any) -> Any:
    if not isinstance(input, (tuple, list)):
        b.refuse(f"takes a part of {described(input)}, which has no native form")
    return input[item]


@lowers(torch.clone, "clone")
def clone(b: Builder, input: Place) -> Place:
    return Place(b.read(input), input.shape)


@lowers("contiguous")
def contiguous(b: Builder, input: Place) -> Place:
    return Place(b.read(input), input.shape, input.memory)  # torch copies or not: sharing forbids what would tell


lowers_module(nn.Flatten)(lambda b, m, x: flatten(b, x, m.start_dim, m.end_dim))
lowers_module(nn.Identity)(lambda b, m, x: x)
