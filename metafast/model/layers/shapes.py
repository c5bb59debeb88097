"""Rearrangements, copies, and what code asks of shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metafast.model.builder import BATCH, Batch, Builder, Place, described
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers, lowers_module


@lowers("size")
def size(b: Builder, input: Any, dim: int | None = None) -> Any:
    batched = isinstance(input, Place) and not input.shared
    if isinstance(input, Place) and input.ragged:
        b.read(input)
    sizes = tuple(input.shape)
    if batched and input.merged:
        sizes = (Batch(sizes[0]), *sizes[1:])
    elif batched:
        sizes = (*sizes[: input.axis], BATCH, *sizes[input.axis :])
    if dim is None:
        return sizes
    if not isinstance(dim, int) or not -len(sizes) <= dim < len(sizes):
        b.refuse(f"names {dim!r}, which is no axis of a tensor of {len(sizes)}")
    return sizes[dim]


@lowers("dim", "ndimension")
def dim(b: Builder, input: Any) -> int:
    return len(size(b, input))


@lowers("numel", "nelement", torch.numel)
def numel(b: Builder, input: Any) -> int:
    sizes = size(b, input)
    of_batch = any(isinstance(size, Batch) for size in sizes)
    return b.refuse("counts the elements of all N examples") if of_batch else math.prod(sizes)


#: What attributes of a tensor are.
ATTRIBUTES: dict[str, Callable[[Builder, Any], Any]] = {"shape": size, "ndim": dim}


@lowers(getattr)
def attribute(b: Builder, input: Any, name: str) -> Any:
    if name in ("T", "mT") and isinstance(input, (Place, Tensor)):
        return rearranged(b, lambda x: getattr(x, name), (input,), {}, True, name)
    if name not in ATTRIBUTES or not isinstance(input, (Place, Tensor)):
        b.refuse(f"reads the attribute {name!r} of {described(input)}, which has no native form")
    return ATTRIBUTES[name](b, input)


@lowers(len)
def length(b: Builder, input: Any) -> Any:
    return len(input) if isinstance(input, tuple) else size(b, input, 0)


@lowers(torch.clone, "clone")
def clone(b: Builder, input: Any, *, memory_format: Any = torch.preserve_format) -> Place:
    input = b.place(input)
    value = b.read(b.first(input))
    return Place(value, input.shape, shared=input.shared, axis=input.axis, integers=input.integers)


@lowers("requires_grad_")
def requires_grad_(b: Builder, input: Place, requires_grad: bool = True) -> Place:
    """Everything computed from the input can be differentiated by it."""
    if not requires_grad or not isinstance(input, Place):
        b.refuse("is native to ask for the gradient of a tensor computed from the input")
    return input


@lowers("contiguous")
def contiguous(b: Builder, input: Any, memory_format: Any = torch.contiguous_format) -> Place:
    input = b.place(input)
    # torch copies or not: shared memory forbids what would tell
    value = b.read(b.first(input))
    return Place(value, input.shape, input.memory, input.shared, input.axis, integers=input.integers)


lowers_module(nn.Identity)(lambda b, m, x: x)
