"""Functions of two tensors, which broadcast as torch's do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metafast.model.builder import Builder, Place, batched, form_of
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers
from metafast.model.program import Shape

#: Names of the primitives that are functions of two elements.
PAIRS = frozenset("add at_least binary_cross_entropy divide hide keep maximum minimum multiply subtract".split())


def is_tensor(thing: Any) -> bool:
    return isinstance(thing, (Place, Tensor))


def pair(b: Builder, op: str, left: Any, right: Any, overwrite: bool = False) -> Place:
    """``op`` of two tensors. Parameters and buffers are values that all examples share."""
    first, second = b.place(left), b.place(right)
    if first.reduction or second.reduction:
        return _of_reductions(b, op, first, second, overwrite)
    b.read(first), b.read(second)
    if not (first.integers and second.integers):  # torch makes integers numbers of the other's type
        first, second = b.real(first), b.real(second)
    shape, shapes = _broadcast(b, first, second)
    if overwrite and (shape != first.shape or first.shared != (first.shared and second.shared)):
        b.refuse(f"writes a result of shape {batched(shape)} over {batched(first.shape)}, which has no native form")
    image = any(len(b.form(p)) == 3 and s == shape for p, s in zip((first, second), shapes, strict=True))
    form = shape if image else form_of(shape)
    operands = tuple(_operand(b, place, own, shape, image) for place, own in zip((first, second), shapes, strict=True))
    if not overwrite:
        return b.emit(op, operands, form, shape=shape)
    if operands[0] is not first:
        b.refuse("writes over a tensor in another form than it has, which has no native form")
    return b.emit(op, operands, form, overwrite=True)


def _of_reductions(b: Builder, op: str, first: Place, second: Place, overwrite: bool) -> Place:
    """Of means over the examples, where the result is the mean of the same of each example, and of sums likewise."""
    reduction = first.reduction or second.reduction
    alone = [math.prod(p.shape) == 1 and p.shared for p in (first, second)]
    # A parameter stands for the mean of as many; no sum over the examples is as much for any number of them.
    like = [
        p.reduction == reduction or (one and reduction == "mean") for p, one in zip((first, second), alone, strict=True)
    ]
    linear = op in ("add", "subtract") and all(like)
    if not (linear or (op == "multiply" and any(alone)) or (op == "divide" and alone[1])):
        b.refuse(f"counts with a {reduction} over the examples; native are sums, differences and multiples of such")
    if overwrite and not first.reduction:
        b.refuse(f"writes a {reduction} over the examples over a parameter, which has no native form")
    each = [Place(p.value, (), [], p.shared) for p in (first, second)]
    return b.reduction_of(pair(b, op, each[0], each[1]), reduction, first if overwrite else None)


def _broadcast(b: Builder, first: Place, second: Place) -> tuple[Shape, tuple[Shape, Shape]]:
    """The shape of the result, and those of both operands with as many axes; all without that of the examples."""
    alone = first.shared and second.shared
    rank = max(len(p.shape) + (not p.shared) for p in (first, second)) - (not alone)
    shapes = []
    for place in (first, second):
        shape = place.shape
        if place.shared and not alone and len(shape) == rank + 1 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) > rank or (not place.shared and len(shape) < rank):
            names = [f"{list(p.shape)}" if p.shared else batched(p.shape) for p in (first, second)]
            b.refuse(f"broadcasts {names[0]} with {names[1]} over the examples, which has no native form")
        shapes.append((1,) * (rank - len(shape)) + shape)
    first_shape, second_shape = shapes
    if any(m != n and 1 not in (m, n) for m, n in zip(first_shape, second_shape, strict=True)):
        b.refuse(f"cannot broadcast {batched(first.shape)} with {batched(second.shape)}")
    shape = tuple(n if m == 1 else m for m, n in zip(first_shape, second_shape, strict=True))
    return shape, (first_shape, second_shape)


def _operand(b: Builder, place: Place, own: Shape, shape: Shape, image: bool) -> Place:
    """``place`` in a form that the engine broadcasts by itself: it has all rows or one, and all channels or one."""
    rows, whole = (own[1:], shape[1:]) if image else (own[:-1], shape[:-1])
    if math.prod(rows) not in (1, math.prod(whole)):
        spread = (own[0], *shape[1:]) if image else (*shape[:-1], own[-1])
        size = spread if place.shared else (-1, *spread)
        alone = Place(place.value, own, shared=place.shared, integers=place.integers)
        place = rearranged(b, Tensor.expand, [alone, *size], {}, False, "expand")
        own = spread
    one = math.prod(own[1:] if image else own[:-1]) == 1
    form = (own[:1] if image else own[-1:] or (1,)) if one else own if image else form_of(own)
    if _storage(b.form(place)) == _storage(form):
        return place
    return b.in_form(place, form)


def _storage(form: Shape) -> tuple[int, int, bool]:
    """Rows, channels, and whether channels come first in the order of elements."""
    if len(form) == 3 and form[1] * form[2] > 1:
        return form[1] * form[2], form[0], True
    return (1, form[0], False) if len(form) != 2 else (form[0], form[1], False)


@lowers(torch.maximum, "maximum")
def maximum(b: Builder, input: Any, other: Any) -> Place:
    return pair(b, "maximum", input, other)


@lowers(torch.minimum, "minimum")
def minimum(b: Builder, input: Any, other: Any) -> Place:
    return pair(b, "minimum", input, other)
