"""Sums of values, and arithmetic on sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from metafast.model.builder import Builder, Place, batched, described
from metafast.model.layers.shapes import clone
from metafast.model.layers.table import Handler, lowers


def _arithmetic(function: Callable[[Any, Any], Any], words: str, *names: Any) -> Handler:
    """Of sizes only; ``words`` say what it does with its operands."""

    def handler(b: Builder, a: Any, c: Any) -> Any:
        if not (isinstance(a, int) and isinstance(c, int)):
            b.refuse(f"{words.format(described(a), described(c))}, which has no native form")
        return function(a, c)

    return lowers(*names)(handler)


_arithmetic(operator.mul, "multiplies {0} by {1}", operator.mul, operator.imul)
_arithmetic(operator.floordiv, "divides {0} by {1}", operator.floordiv, operator.ifloordiv)
_arithmetic(operator.sub, "subtracts {1} from {0}", operator.sub, operator.isub)
add_sizes = _arithmetic(operator.add, "adds {1} to {0}")


@lowers(torch.add, "add")
def add(b: Builder, input: Place, other: Place, *, alpha: float = 1, overwrite: bool = False) -> Place:
    if not (isinstance(input, Place) and isinstance(other, Place)):
        b.refuse(f"adds {described(other)} to {described(input)}, which has no native form")
    if alpha != 1:
        b.refuse(f"is not native with alpha={alpha}")
    if input.shape != other.shape:
        b.refuse(f"broadcasts {batched(input.shape)} with {batched(other.shape)}, which is not native")
    form = b.form(input)
    if b.form(other) != form:
        other = b.image(other, form)
    return b.emit("add", (input, other), form, shape=input.shape, overwrite=overwrite)


lowers("add_")(partial(add, overwrite=True))


@lowers(operator.add)
def plus(b: Builder, left: Any, right: Any) -> Any:
    if isinstance(left, int) and left == 0 and isinstance(right, Place):  # where sum([...]) begins
        return clone(b, right)
    return add_sizes(b, left, right) if isinstance(left, int) else add(b, left, right)


@lowers(operator.iadd)
def increase(b: Builder, left: Any, right: Any) -> Any:
    return add_sizes(b, left, right) if isinstance(left, int) else add(b, left, right, overwrite=True)
