"""Products of the input and a weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, form_of
from metafast.model.layers.table import lowers, lowers_module


@lowers(F.linear)
def linear(b: Builder, input: Place, weight: Tensor, bias: Tensor | None = None) -> Place:
    shape = b.shape(F.linear, input, weight, bias)
    if len(shape) != len(input.shape):
        b.refuse("has a weight of one dimension; native are two, [O, I]")
    input = b.rows(input, shared=True)
    return b.emit("linear", (input,), form_of(shape), (weight, bias), shape=shape)


lowers_module(nn.Linear)(lambda b, m, x: linear(b, x, m.weight, m.bias))
