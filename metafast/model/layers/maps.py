"""Products of the input and a weight."""

from __future__ import annotations

from typing import Any

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


def pair(b: Builder, size: Any) -> tuple[int, int]:
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(sizes) not in (1, 2) or not all(isinstance(s, int) for s in sizes):
        b.refuse(f"has the setting {size!r}; native are one or two whole numbers")
    return sizes[0], sizes[-1]


@lowers(F.conv2d)
def conv2d(
    b: Builder,
    input: Place,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    input = b.image(input)
    dilations, pads = pair(b, dilation), padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, weight.shape[2:], strict=True)]
        if any(p % 2 for p in total):
            b.refuse(f"is not native with padding='same' and kernel {list(weight.shape[2:])}: its sides differ")
        pads = [p // 2 for p in total]
    shape = b.shape(F.conv2d, input, weight, bias, stride, padding, dilation, groups)
    settings = window(b, stride=stride, pad=pads, dilation=dilations)
    return b.emit("conv2d", (input,), shape, (weight, bias), settings)


@lowers(F.conv_transpose2d)
def conv_transpose2d(
    b: Builder,
    input: Place,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    input = b.image(input)
    shape = b.shape(F.conv_transpose2d, input, weight, bias, stride, padding, output_padding, groups, dilation)
    settings = window(b, stride=stride, pad=padding, dilation=dilation)
    return b.emit("conv_transpose2d", (input,), shape, (weight, bias), settings)


def window(b: Builder, **sizes: Any) -> dict[str, float]:
    return {f"{name}_{axis}": s for name, size in sizes.items() for axis, s in zip("hw", pair(b, size), strict=True)}


lowers_module(nn.Linear)(lambda b, m, x: linear(b, x, m.weight, m.bias))


@lowers_module(nn.Conv2d)
def _conv2d(b: Builder, m: nn.Conv2d, x: Place) -> Place:
    if m.padding_mode != "zeros":
        b.refuse(f"is not native with padding_mode={m.padding_mode!r}")
    return conv2d(b, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


@lowers_module(nn.ConvTranspose2d)
def _conv_transpose2d(b: Builder, m: nn.ConvTranspose2d, x: Place) -> Place:
    return conv_transpose2d(b, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
