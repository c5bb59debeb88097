"""Arithmetic on tensors, numbers and sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from metafast.model.builder import Batch, Builder, Place, described
from metafast.model.layers.pairs import is_tensor, pair
from metafast.model.layers.shapes import clone
from metafast.model.layers.table import POINTWISE, lowers

POINTWISE |= {"affine", "pow", "square", "sqrt", "rsqrt", "reciprocal"}


#: Powers with nodes of their own.
_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def affine(b: Builder, x: Any, scale: float, shift: float = -0.0, overwrite: bool = False) -> Place:
    """scale * x + shift. To add -0.0 leaves every number as it is, the sign of a zero too."""
    return b.elementwise("affine", x, {"scale": scale, "shift": shift}, overwrite)


def _counts(x: Any) -> bool:
    return isinstance(x, Place) and x.integers in (torch.int32, torch.int64)


def shifted(b: Builder, x: Place, by: int) -> Place:
    """Integers and a number, which are integers again."""
    made = affine(b, b.real(x), 1, by)
    made.integers = x.integers
    return made


def _with_number(b: Builder, op: str, x: Any, c: float, turned: bool, overwrite: bool) -> Place:
    """``op`` of a tensor and a number, ``turned`` where the number comes first: then nothing is overwritten."""
    shifts = op == "add" or (op == "subtract" and not turned)
    if shifts and _counts(x) and type(c) is int and not overwrite:
        return shifted(b, x, c if op == "add" else -c)
    if op == "multiply":
        return affine(b, x, c, overwrite=overwrite and not turned)
    if turned:
        return _of_number(b, op, c, x)
    if op == "add":
        return affine(b, x, 1, c, overwrite)
    if op == "subtract":
        return affine(b, x, 1, -c, overwrite)
    if op == "divide":
        return affine(b, x, 1 / c if c else math.copysign(math.inf, c), overwrite=overwrite)
    if c == 1:
        return affine(b, x, 1, overwrite=overwrite)
    if c in _POWERS:
        return b.elementwise(_POWERS[c], x, overwrite=overwrite)
    return b.elementwise("pow", x, {"exponent": c}, overwrite)


def _of_number(b: Builder, op: str, c: float, x: Any) -> Place:
    if op in ("add", "subtract"):
        return affine(b, x, 1 if op == "add" else -1, c)
    if op == "raise":
        return b.refuse(f"{_WORDS[op].format(described(c), described(x))}, which has no native form")
    inverse = b.elementwise("reciprocal", x)
    return inverse if c == 1 else affine(b, inverse, c)


_WORDS = {
    "add": "adds {1} to {0}",
    "subtract": "subtracts {1} from {0}",
    "multiply": "multiplies {0} by {1}",
    "divide": "divides {0} by {1}",
    "raise": "raises {0} to {1}",
}


def arithmetic(b: Builder, op: str, left: Any, right: Any, overwrite: bool = False) -> Any:
    """``op`` of two tensors, or of a tensor and a number."""
    if is_tensor(left) and is_tensor(right) and op != "raise":
        return pair(b, op, left, right, overwrite)
    if op == "divide" and isinstance(left, Place) and left.reduction == "sum" and isinstance(right, Batch):
        mean = affine(b, left, 1 / right.times, overwrite=overwrite)  # so many times N
        return b.reduction_of(mean, "mean", mean if overwrite else None)
    for tensor, number, turned in ((left, right, False), (right, left, True)):
        if is_tensor(tensor) and isinstance(number, (int, float)):
            return _with_number(b, op, tensor, number, turned, overwrite)
    return b.refuse(f"{_WORDS[op].format(described(left), described(right))}, which has no native form")


def _operators(op: str, function: Callable[[Any, Any], Any], changing: Callable[[Any, Any], Any]) -> None:
    """Register Python's operator, and the one that writes over its left operand, for tensors and for sizes."""

    def handler(b: Builder, left: Any, right: Any, overwrite: bool = False) -> Any:
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            return function(left, right)
        if isinstance(left, (Batch, int)) and isinstance(right, (Batch, int)) and op == "multiply":
            return _times(b, left, right)
        if op == "add" and isinstance(left, int) and left == 0 and isinstance(right, Place):  # where sum([...]) begins
            return clone(b, right)
        return arithmetic(b, op, left, right, overwrite)

    lowers(function)(handler)
    lowers(changing)(partial(handler, overwrite=True))


def _times(b: Builder, left: Any, right: Any) -> Batch:
    batch, number = (left, right) if isinstance(left, Batch) else (right, left)
    if isinstance(number, Batch) or number < 1:
        b.refuse(f"multiplies {described(left)} by {described(right)}, which has no native form")
    return Batch(batch.times * number)


_operators("add", operator.add, operator.iadd)
_operators("subtract", operator.sub, operator.isub)
_operators("multiply", operator.mul, operator.imul)
_operators("divide", operator.truediv, operator.itruediv)
_operators("raise", operator.pow, operator.ipow)


@lowers(operator.floordiv, operator.ifloordiv)
def floordiv(b: Builder, left: Any, right: Any) -> Any:
    if isinstance(left, Batch) and isinstance(right, int) and right > 0 and left.times % right == 0:
        return Batch(left.times // right)
    if not (isinstance(left, int) and isinstance(right, int)):
        b.refuse(f"divides {described(left)} by {described(right)}, which has no native form")
    return left // right


def _scaled(op: str, *names: Any, in_place: str) -> None:
    """Register functions with ``alpha``, a factor of the second operand."""

    def handler(b: Builder, input: Any, other: Any, *, alpha: float = 1, overwrite: bool = False) -> Any:
        if alpha != 1:
            other = affine(b, other, alpha) if is_tensor(other) else alpha * other
        return arithmetic(b, op, input, other, overwrite)

    lowers(*names)(handler)
    lowers(in_place)(partial(handler, overwrite=True))


_scaled("add", torch.add, "add", in_place="add_")
_scaled("subtract", torch.sub, "sub", torch.subtract, "subtract", in_place="sub_")


def _unscaled(op: str, *names: Any, in_place: str) -> None:
    def handler(b: Builder, input: Any, other: Any, overwrite: bool = False) -> Any:
        return arithmetic(b, op, input, other, overwrite)

    lowers(*names)(handler)
    lowers(in_place)(partial(handler, overwrite=True))


_unscaled("multiply", torch.mul, "mul", torch.multiply, "multiply", in_place="mul_")
_unscaled("divide", torch.true_divide, "true_divide", in_place="true_divide_")
_unscaled("raise", torch.pow, "pow", in_place="pow_")


@lowers(torch.div, torch.divide, "div", "divide")
def divide(b: Builder, input: Any, other: Any, *, rounding_mode: Any = None, overwrite: bool = False) -> Any:
    if rounding_mode is not None:
        b.refuse(f"rounds ({rounding_mode!r}), which has no native form")
    return arithmetic(b, "divide", input, other, overwrite)


lowers("div_", "divide_")(partial(divide, overwrite=True))


@lowers(torch.rsub)
def rsub(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> Any:
    if isinstance(other, (int, float)):
        return affine(b, input, -alpha, other)
    return arithmetic(b, "subtract", other, input if alpha == 1 else affine(b, input, alpha))


@lowers(operator.neg, torch.neg, torch.negative, "neg", "negative")
def negative(b: Builder, input: Any, *, overwrite: bool = False) -> Any:
    return -input if isinstance(input, (int, float)) else affine(b, input, -1, overwrite=overwrite)


lowers(torch.neg_, "neg_", "negative_")(partial(negative, overwrite=True))
