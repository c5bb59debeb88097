"""Products of the input and a weight."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place, form_of
from metafast.model.layers.pairs import is_tensor, pair
from metafast.model.layers.products import matmul, product
from metafast.model.layers.table import lowers, lowers_module


@lowers(F.linear)
def linear(b: Builder, input: Any, weight: Any, bias: Any = None) -> Place:
    """A weight or bias that is computed, or a weight that is a table, makes a product and a sum of values."""
    input = b.place(input)
    if isinstance(weight, Place) or len(weight.shape) == 1 or isinstance(bias, Place) or b.is_table(weight):
        return _of_values(b, input, weight, bias)
    shape = b.shape(F.linear, input, weight, bias)
    input = b.rows(input, shared=True)
    return b.emit("linear", (input,), form_of(shape), (weight, bias), shape=shape)


def _of_values(b: Builder, input: Place, weight: Any, bias: Any) -> Place:
    weight = b.place(weight)
    if not weight.shared or len(weight.shape) not in (1, 2):
        b.refuse("takes a tensor computed from the input for a weight; native are those computed from parameters")
    if is_tensor(bias) and len(bias.shape) > 1:
        b.refuse("has a bias of several axes, which has no native form")
    y = product(b, input, weight, transposed=True) if len(weight.shape) == 2 else matmul(b, input, weight)
    return y if bias is None else pair(b, "add", y, bias)


lowers_module(nn.Linear)(lambda b, m, x: linear(b, x, m.weight, m.bias))
