"""Comparisons, and what is done with the truth values that they give: as numbers, 1 and 0."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from metafast.model.builder import Builder, Place, described
from metafast.model.constant import Constant
from metafast.model.layers.arithmetic import affine
from metafast.model.layers.pairs import is_tensor, pair
from metafast.model.layers.table import lowers


def _truth(place: Place) -> Place:
    place.integers = torch.bool
    return place


def _between_0_and_1(b: Builder, x: Place) -> Place:
    return b.elementwise("clamp", x, {"low": 0, "high": 1})


def _operand(b: Builder, thing: Any) -> Any:
    """A tensor as a Place; a number."""
    if is_tensor(thing):
        return b.place(thing)
    if not isinstance(thing, (bool, int, float)):
        b.refuse(f"compares {described(thing)}; native are tensors and numbers")
    return thing


def _are_integers(b: Builder, *compared: Any) -> bool:
    each = [_operand(b, thing) for thing in compared]
    return all(thing.integers if isinstance(thing, Place) else isinstance(thing, int) for thing in each)


def _difference(b: Builder, left: Any, right: Any) -> Place:
    """left - right of integers, at least one of them a tensor."""
    if not is_tensor(left):
        return affine(b, b.real(b.place(right)), -1, left)
    if not is_tensor(right):
        return affine(b, b.real(b.place(left)), 1, -right)
    return pair(b, "subtract", b.real(b.place(left)), b.real(b.place(right)))


def _at_least(b: Builder, left: Any, right: Any) -> Place:
    """left >= right of any numbers, which does not hold of NaN."""
    numbers = [
        b.real(each) if isinstance(each, Place) else b.place(Constant(torch.tensor([each], dtype=b.dtype)))
        for each in (_operand(b, left), _operand(b, right))
    ]
    return _truth(pair(b, "at_least", numbers[0], numbers[1]))


def _greater(b: Builder, left: Any, right: Any) -> Place:
    if _are_integers(b, left, right):
        return _truth(_between_0_and_1(b, _difference(b, left, right)))
    return both(b, _at_least(b, left, right), _not(b, _at_least(b, right, left)))


def _greater_or_equal(b: Builder, left: Any, right: Any) -> Place:
    if _are_integers(b, left, right):
        return _not(b, _greater(b, right, left))
    return _at_least(b, left, right)


def _differ(b: Builder, left: Any, right: Any) -> Place:
    if _are_integers(b, left, right):
        return _truth(_between_0_and_1(b, b.elementwise("abs", _difference(b, left, right))))
    return _not(b, both(b, _at_least(b, left, right), _at_least(b, right, left)))


def _not(b: Builder, mask: Place) -> Place:
    return _truth(affine(b, b.real(mask), -1, 1))


_COMPARISONS: dict[str, Callable[[Builder, Any, Any], Place]] = {
    "gt": _greater,
    "lt": lambda b, left, right: _greater(b, right, left),
    "ge": _greater_or_equal,
    "le": lambda b, left, right: _greater_or_equal(b, right, left),
    "ne": _differ,
    "eq": lambda b, left, right: _not(b, _differ(b, left, right)),
}


def _compares(name: str, compare: Callable[[Builder, Any, Any], Place]) -> None:
    def handler(b: Builder, input: Any, other: Any) -> Any:
        if not is_tensor(input) and not is_tensor(other):
            return getattr(operator, name)(input, other)
        return compare(b, input, other)

    lowers(getattr(operator, name), getattr(torch, name), name)(handler)


for _name, _compare in _COMPARISONS.items():
    _compares(_name, _compare)


@lowers("bool")
def to_bool(b: Builder, input: Any, memory_format: Any = None) -> Place:
    place = b.place(input)
    return place if place.integers == torch.bool else _differ(b, place, 0)


def _mask(b: Builder, thing: Any) -> Place:
    place = b.place(thing)
    if place.integers != torch.bool:
        b.refuse(f"takes {described(thing)} of {place.integers or b.dtype} for a mask; native are truth values")
    return place


@lowers(operator.invert, torch.logical_not, "logical_not", torch.bitwise_not, "bitwise_not")
def invert(b: Builder, input: Any) -> Place:
    return _not(b, _mask(b, input))


@lowers(operator.and_, torch.logical_and, "logical_and", torch.bitwise_and, "bitwise_and")
def both(b: Builder, input: Any, other: Any) -> Place:
    return _truth(pair(b, "multiply", b.real(_mask(b, input)), b.real(_mask(b, other))))


@lowers(operator.or_, torch.logical_or, "logical_or", torch.bitwise_or, "bitwise_or")
def either(b: Builder, input: Any, other: Any) -> Place:
    return _truth(pair(b, "maximum", b.real(_mask(b, input)), b.real(_mask(b, other))))


@lowers(torch.masked_fill, "masked_fill")
def masked_fill(b: Builder, input: Any, mask: Any, value: Any) -> Place:
    place = b.place(input)
    hides = isinstance(value, float) and value == -math.inf and not place.integers
    made = pair(b, "hide", place, b.real(invert(b, mask))) if hides else where(b, mask, value, place)
    if (made.shape, made.shared) != (place.shape, place.shared):
        b.refuse("fills by a mask of more elements, which torch refuses")
    return made


@lowers(torch.where)
def where(b: Builder, condition: Any, input: Any, other: Any) -> Place:
    mask = b.real(_mask(b, condition))
    return pair(b, "add", _kept(b, mask, input), _kept(b, affine(b, mask, -1, 1), other))


def _kept(b: Builder, mask: Place, chosen: Any) -> Place:
    if is_tensor(chosen):
        place = b.place(chosen)
        if place.integers:
            b.refuse(f"chooses among {place.integers}, which has no native form")
        return pair(b, "keep", place, mask)
    if not isinstance(chosen, (int, float)) or not math.isfinite(chosen):
        b.refuse(f"fills in {described(chosen)}; native are numbers that are finite")
    return affine(b, mask, chosen)
