"""Pooling along one axis or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place
from metafast.model.layers.shapes import clone
from metafast.model.layers.table import Handler, ModuleHandler, lowers, lowers_module
from metafast.model.layers.windows import image_form, images, window


def _max_pool(axes: int, *functions: Callable[..., Any]) -> Handler:
    def handler(
        b: Builder,
        input: Place,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Place:
        input = images(b, input, axes)
        if return_indices:
            b.refuse("is not native with return_indices=True")
        stride = stride or kernel_size
        shape = b.shape(functions[-1], input, kernel_size, stride, padding, dilation, ceil_mode)
        settings = window(b, axes, kernel=kernel_size, stride=stride, pad=padding, dilation=dilation)
        return b.emit("max_pool2d", (input,), image_form(shape), attributes=settings, shape=shape)

    return lowers(*functions)(handler)


max_pool1d = _max_pool(1, F.max_pool1d, torch.max_pool1d)
max_pool2d = _max_pool(2, F.max_pool2d, torch.max_pool2d)


def _avg_pool(axes: int, function: Callable[..., Tensor]) -> Handler:
    def handler(
        b: Builder,
        input: Place,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Place:
        input = images(b, input, axes)
        if divisor_override is not None:
            b.refuse("is not native with divisor_override")
        stride = stride or kernel_size
        shape = b.shape(function, input, kernel_size, stride, padding, ceil_mode)
        settings = window(b, axes, kernel=kernel_size, stride=stride, pad=padding)
        settings |= {"count_include_pad": count_include_pad}
        return b.emit("avg_pool2d", (input,), image_form(shape), attributes=settings, shape=shape)

    return lowers(function)(handler)


avg_pool1d = _avg_pool(1, F.avg_pool1d)
avg_pool2d = _avg_pool(2, F.avg_pool2d)


def _adaptive_avg_pool(axes: int, function: Callable[..., Tensor]) -> Handler:
    def handler(b: Builder, input: Place, output_size: Any) -> Place:
        input = images(b, input, axes)
        shape = b.shape(function, input, output_size)
        if shape == input.shape:
            return clone(b, input)
        return b.emit("adaptive_avg_pool2d", (input,), image_form(shape), shape=shape)

    return lowers(function)(handler)


adaptive_avg_pool1d = _adaptive_avg_pool(1, F.adaptive_avg_pool1d)
adaptive_avg_pool2d = _adaptive_avg_pool(2, F.adaptive_avg_pool2d)


def _adaptive_max_pool(axes: int, *functions: Callable[..., Any]) -> Handler:
    def handler(b: Builder, input: Place, output_size: Any, return_indices: bool = False) -> Place:
        """Where windows are alike, which they are where sizes divide."""
        input = images(b, input, axes)
        if return_indices:
            b.refuse("is not native with return_indices=True")
        sizes, made = input.shape[1:], b.shape(functions[0], input, output_size)[1:]
        if any(size % out for size, out in zip(sizes, made, strict=True)):
            b.refuse(f"makes {list(made)} of {list(sizes)}; native is where windows do not overlap")
        pool = max_pool1d if axes == 1 else max_pool2d
        return pool(b, input, tuple(size // out for size, out in zip(sizes, made, strict=True)))  # type: ignore[no-any-return]

    return lowers(*functions)(handler)


adaptive_max_pool1d = _adaptive_max_pool(1, F.adaptive_max_pool1d)
adaptive_max_pool2d = _adaptive_max_pool(2, F.adaptive_max_pool2d)


def _max_module(handler: Handler) -> ModuleHandler:
    return lambda b, m, x: handler(b, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


lowers_module(nn.MaxPool1d)(_max_module(max_pool1d))
lowers_module(nn.MaxPool2d)(_max_module(max_pool2d))


@lowers_module(nn.AvgPool1d)
def _avg_pool1d(b: Builder, m: nn.AvgPool1d, x: Place) -> Place:
    made: Place = avg_pool1d(b, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)
    return made


@lowers_module(nn.AvgPool2d)
def _avg_pool2d(b: Builder, m: nn.AvgPool2d, x: Place) -> Place:
    settings = m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    made: Place = avg_pool2d(b, x, *settings)
    return made


lowers_module(nn.AdaptiveMaxPool1d)(lambda b, m, x: adaptive_max_pool1d(b, x, m.output_size, m.return_indices))
lowers_module(nn.AdaptiveMaxPool2d)(lambda b, m, x: adaptive_max_pool2d(b, x, m.output_size, m.return_indices))
lowers_module(nn.AdaptiveAvgPool1d)(lambda b, m, x: adaptive_avg_pool1d(b, x, m.output_size))
lowers_module(nn.AdaptiveAvgPool2d)(lambda b, m, x: adaptive_avg_pool2d(b, x, m.output_size))
