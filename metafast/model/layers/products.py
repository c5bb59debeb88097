"""Products of two computed values; a parameter may be one."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, batched, form_of
from metafast.model.layers.pairs import pair
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers, lowers_module
from metafast.model.program import Shape


def _full(place: Place) -> str:
    return str(list(place.shape)) if place.shared else batched(place.shape)


def rank(place: Place) -> int:
    """How many axes torch's tensor has."""
    return len(place.shape) + (not place.shared)


def viewed(place: Place, shape: Shape) -> Place:
    """The same elements in the same order."""
    return Place(place.value, shape, [], place.shared)


@lowers(torch.dot, "dot", torch.vdot, "vdot")
def dot(b: Builder, input: Any, other: Any) -> Place:
    """Of vectors of parameters; one of the input has the examples for its only axis."""
    return matmul(b, input, other)


@lowers(torch.matmul, operator.matmul, "matmul")
def matmul(b: Builder, input: Any, other: Any) -> Place:
    left, right = b.place(input), b.place(other)
    b.read(left), b.read(right)
    row, column = rank(left) == 1, rank(right) == 1
    if 0 in (rank(left), rank(right)) or (row and not left.shared) or (column and not right.shared):
        b.refuse(f"multiplies {_full(left)} by {_full(right)}, which has no native form")
    left = viewed(left, (1, *left.shape)) if row else left
    right = viewed(right, (1, *right.shape)) if column else right
    return product(b, left, right, transposed=column, row=row, column=column)


def product(
    b: Builder, left: Place, right: Place, transposed: bool = False, row: bool = False, column: bool = False
) -> Place:
    """[..., M, K] times [..., K, N], or [..., N, K] if it is ``transposed``; the first axes broadcast. ``row`` and
    ``column`` leave out the axes M and N, of one element."""
    names = f"{_full(left)} by {_full(right)}{' transposed' * transposed}"
    if len(right.shape) < 2 or rank(left) < 2 or (not left.shared and rank(left) == 2 and rank(right) > 2):
        b.refuse(f"multiplies {names} over the axis of the examples, which has no native form")
    of_examples = not left.shared and rank(left) == 2  # its rows are the examples
    left = viewed(left, (1, *left.shape)) if of_examples else left
    columns, depth = right.shape[-2:] if transposed else right.shape[:-3:-1]
    batch, left, right = _one_batch(b, left, right, names)
    if left.shape[-1] != depth:
        b.refuse(f"multiplies {names}, which do not fit together")
    shape = (*batch, *(() if row or of_examples else left.shape[-2:-1]), *(() if column else (columns,)))
    batches = math.prod(right.shape[:-2])
    operands = _by_rows(b, left), _by_rows(b, right)
    form = (math.prod(batch) * left.shape[-2], 1) if column else form_of(shape)
    return b.emit("matmul", operands, form, (), {"batches": batches, "transposed_b": transposed}, shape=shape)


def _by_rows(b: Builder, place: Place) -> Place:
    form = b.form(place)
    return place if len(form) < 3 and form[-1] == place.shape[-1] else b.rows(place, shared=True)


def _one_batch(b: Builder, left: Place, right: Place, names: str) -> tuple[Shape, Place, Place]:
    """The common first axes, but that of the examples, and the operands with as many; the right one has none if it is
    the same for all."""
    operands = [left, right]
    for i, place in enumerate(operands):
        other = operands[1 - i]
        if place.shared and not other.shared and len(place.shape) == len(other.shape) + 1 and place.shape[0] == 1:
            operands[i] = viewed(place, place.shape[1:])
    left, right = operands
    lengths = len(left.shape), len(right.shape)
    if left.shared != right.shared and lengths[left.shared] > lengths[right.shared]:
        b.refuse(f"multiplies {names}, which broadcasts over the axis of the examples and has no native form")
    if not left.shared and not right.shared and lengths[0] != lengths[1]:
        b.refuse(f"multiplies {names}, which broadcasts over the axis of the examples and has no native form")
    try:
        # not broadcast_shapes(), whose first call imports torch's whole compiler
        parts = [torch.empty(()).expand(place.shape[:-2]) for place in (left, right)]
        batch = tuple(torch.broadcast_tensors(*parts)[0].shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        b.refuse(f"multiplies {names}, whose first axes do not broadcast")
    if math.prod(right.shape[:-2]) == 1:
        return batch, left, viewed(right, right.shape[-2:])
    return batch, _spread(b, left, batch), _spread(b, right, batch)


def _spread(b: Builder, place: Place, batch: Shape) -> Place:
    if place.shape[:-2] == batch:
        return place
    own = viewed(place, (1,) * (len(batch) + 2 - len(place.shape)) + place.shape)
    size = (*batch, *place.shape[-2:])
    spread: Place = rearranged(b, Tensor.expand, [own, *(size if place.shared else (-1, *size))], {}, False, "expand")
    return spread


@lowers(torch.mm, "mm")
def mm(b: Builder, input: Any, mat2: Any) -> Place:
    return _of_rank(b, input, mat2, 2)


@lowers(torch.bmm, "bmm")
def bmm(b: Builder, input: Any, mat2: Any) -> Place:
    first, second = b.place(input), b.place(mat2)
    if first.shared != second.shared or (first.shape[:1] != second.shape[:1] and first.shared):
        b.refuse(f"multiplies {_full(first)} by {_full(second)}, which has no native form")
    return _of_rank(b, first, second, 3)


@lowers(torch.mv, "mv")
def mv(b: Builder, input: Any, vec: Any) -> Place:
    return _of_rank(b, input, vec, 2, 1)


def _of_rank(b: Builder, input: Any, other: Any, first: int, second: int | None = None) -> Place:
    places = b.place(input), b.place(other)
    if (rank(places[0]), rank(places[1])) != (first, first if second is None else second):
        b.refuse(f"multiplies {_full(places[0])} by {_full(places[1])}, which torch does not do")
    return matmul(b, *places)


@lowers(torch.einsum)
def einsum(b: Builder, equation: Any, *operands: Any) -> Place:
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        b.refuse("is native for an equation of two tensors")
    places = [b.place(operand) for operand in operands]
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    axes = inputs.split(",")
    known = len(axes) == 2 and all(len(set(a)) == len(a) == rank(p) for a, p in zip(axes, places, strict=True))
    if not known or not arrow or not (inputs.replace(",", "") + output or "a").isalpha():
        b.refuse(f"is not native with the equation {equation!r}: each tensor needs an axis for each of its own letters")
    return _einsum(b, equation, axes[0], axes[1], output, places)


def _einsum(b: Builder, equation: str, first: str, second: str, output: str, places: Sequence[Place]) -> Place:
    """As a product of [batches, M, K] and [batches, N, K], whose axes are put together from those of the equation."""
    examples = {axes[0] for axes, place in zip((first, second), places, strict=True) if not place.shared}
    shared = "".join(axes for axes, place in zip((first, second), places, strict=True) if place.shared)
    lone = set(first + second) - set(output) - (set(first) & set(second))
    if len(examples) > 1 or any(e != output[:1] or e in shared for e in examples) or len(set(output)) < len(output):
        b.refuse(f"is not native with the equation {equation!r}: examples must stay first, each by itself")
    if lone or not set(output) <= set(first + second):
        b.refuse(f"is not native with the equation {equation!r}: an axis of one tensor alone must be in the result")
    sizes: dict[str, int] = {}
    for axes, place in zip((first, second), places, strict=True):
        for letter, size in zip(axes if place.shared else axes[1:], place.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                b.refuse(f"has two sizes for the axis {letter!r} of {equation!r}, which has no native form")
    batch = [c for c in first if c in second and c in output and c not in examples]
    depth = [c for c in first if c in second and c not in output]
    rows = [c for c in first if c not in second and c not in examples]
    columns = [c for c in second if c not in first and c not in examples]
    count = [math.prod(sizes[c] for c in part) for part in (batch, rows, columns, depth)]
    left = viewed(_ordered(b, places[0], first, [*batch, *rows, *depth]), (count[0], count[1], count[3]))
    right = viewed(_ordered(b, places[1], second, [*batch, *columns, *depth]), (count[0], count[2], count[3]))
    made = product(b, left, right, transposed=True)
    order = [*batch, *rows, *columns]
    whole = viewed(made, tuple(sizes[c] for c in order))
    return _ordered(b, whole, "".join([*examples, *order]), [c for c in output if c not in examples])


def _ordered(b: Builder, place: Place, axes: str, order: Sequence[str]) -> Place:
    """``place``, whose axes have these letters, with those of an example in this order."""
    lead = [] if place.shared else [0]
    moved: Place = rearranged(b, Tensor.permute, [place, *lead, *(axes.index(c) for c in order)], {}, False, "permute")
    return moved


@lowers(F.bilinear)
def bilinear(b: Builder, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Place:
    """y[o] = x1' W[o] x2."""
    first, second, weights = b.place(input1), b.place(input2), b.place(weight)
    fit = first.shape[:-1] == second.shape[:-1] and first.shared == second.shared and len(weights.shape) == 3
    if not fit or (first.shape[-1], second.shape[-1]) != weights.shape[1:]:
        b.refuse(f"has inputs {_full(first)} and {_full(second)} that do not fit its weight {list(weights.shape)}")
    outputs, depth, columns = weights.shape
    by_depth = viewed(_ordered(b, weights, "oij", "ioj"), (depth, outputs * columns))
    each = matmul(b, first, by_depth)
    lead = first.shape[:-1]
    y = product(b, viewed(each, (*lead, outputs, columns)), viewed(second, (*lead, 1, columns)), True, column=True)
    return y if bias is None else pair(b, "add", y, bias)


@lowers_module(nn.Bilinear)
def _bilinear(b: Builder, m: nn.Bilinear, input1: Place, input2: Any) -> Place:
    return bilinear(b, input1, input2, m.weight, m.bias)
