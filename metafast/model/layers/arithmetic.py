"""Arithmetic on tensors, numbers and sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from metafast.model.builder import Batch, Builder, Place, described
from metafast.model.layers.pairs import is_tensor, pair
from metafast.model.layers.shapes import clone
from metafast.model.layers.table import lowers


def _with_number(b: Builder, op: str, tensor: Any, number: float, turned: bool, overwrite: bool) -> Place:
    """``op`` of a tensor and a number, ``turned`` where the number comes first."""
    first, second = (number, tensor) if turned else (tensor, number)
    return b.refuse(f"{_WORDS[op].format(described(first), described(second))}, which has no native form")


_WORDS = {
    "add": "adds {1} to {0}",
    "subtract": "subtracts {1} from {0}",
    "multiply": "multiplies {0} by {1}",
    "divide": "divides {0} by {1}",
}


def arithmetic(b: Builder, op: str, left: Any, right: Any, overwrite: bool = False) -> Any:
    """``op`` of two tensors, or of a tensor and a number."""
    if is_tensor(left) and is_tensor(right):
        return pair(b, op, left, right, overwrite)
    for tensor, number, turned in ((left, right, False), (right, left, True)):
        if is_tensor(tensor) and isinstance(number, (int, float)):
            return _with_number(b, op, tensor, number, turned, overwrite)
    return b.refuse(f"{_WORDS[op].format(described(left), described(right))}, which has no native form")


def _operators(op: str, function: Callable[[Any, Any], Any], changing: Callable[[Any, Any], Any]) -> None:
    """Register Python's operator, and the one that writes over its left operand, for tensors and for sizes."""

    def handler(b: Builder, left: Any, right: Any, overwrite: bool = False) -> Any:
        if isinstance(left, int) and isinstance(right, int):
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


@lowers(operator.floordiv, operator.ifloordiv)
def floordiv(b: Builder, left: Any, right: Any) -> Any:
    if isinstance(left, Batch) and isinstance(right, int) and right > 0 and left.times % right == 0:
        return Batch(left.times // right)
    if not (isinstance(left, int) and isinstance(right, int)):
        b.refuse(f"divides {described(left)} by {described(right)}, which has no native form")
    return left // right


def _scaled(op: str, *names: Any, in_place: str) -> None:
    """Register functions with ``alpha``, of which no other value than 1 is native."""

    def handler(b: Builder, input: Any, other: Any, *, alpha: float = 1, overwrite: bool = False) -> Any:
        if alpha != 1:
            b.refuse(f"is not native with alpha={alpha}")
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
_unscaled("divide", torch.div, "div", torch.true_divide, torch.divide, in_place="div_")
