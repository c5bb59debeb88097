"""Pooling, and means over axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place
from metafast.model.layers.maps import window
from metafast.model.layers.shapes import clone
from metafast.model.layers.table import lowers, lowers_module


@lowers(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    b: Builder,
    input: Place,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    input = b.image(input)
    if return_indices:
        b.refuse("is not native with return_indices=True")
    stride = stride or kernel_size
    shape = b.shape(torch.max_pool2d, input, kernel_size, stride, padding, dilation, ceil_mode)
    settings = window(b, kernel=kernel_size, stride=stride, pad=padding, dilation=dilation)
    return b.emit("max_pool2d", (input,), shape, attributes=settings)


@lowers(F.avg_pool2d)
def avg_pool2d(
    b: Builder,
    input: Place,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    input = b.image(input)
    if divisor_override is not None:
        b.refuse("is not native with divisor_override")
    stride = stride or kernel_size
    shape = b.shape(F.avg_pool2d, input, kernel_size, stride, padding, ceil_mode)
    settings = window(b, kernel=kernel_size, stride=stride, pad=padding)
    return b.emit("avg_pool2d", (input,), shape, attributes=settings | {"count_include_pad": count_include_pad})


@lowers(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(b: Builder, input: Place, output_size: Any) -> Place:
    b.rank(input, (3,), "[N, C, H, W]")
    input = b.image(input)
    shape = b.shape(F.adaptive_avg_pool2d, input, output_size)
    return clone(b, input) if shape == input.shape else b.emit("adaptive_avg_pool2d", (input,), shape)


@lowers_module(nn.MaxPool2d)
def _max_pool2d(b: Builder, m: nn.MaxPool2d, x: Place) -> Place:
    return max_pool2d(b, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


@lowers_module(nn.AvgPool2d)
def _avg_pool2d(b: Builder, m: nn.AvgPool2d, x: Place) -> Place:
    return avg_pool2d(b, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)


lowers_module(nn.AdaptiveAvgPool2d)(lambda b, m, x: adaptive_avg_pool2d(b, x, m.output_size))
