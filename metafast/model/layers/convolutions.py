"""Convolutions along one axis or two, in groups or not, transposed ones, and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, described, form_of
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import Handler, lowers, lowers_module
from metafast.model.layers.windows import along, image_form, images, window
from metafast.model.program import Shape


@lowers(F.pad)
def pad(b: Builder, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Place:
    if mode == "constant" and value not in (None, 0):
        b.refuse(f"is not native with {described(value)} for a value; native is to pad with zeros")
    place = b.place(input)
    image = len(b.form(b.first(place))) == 3 and len(place.shape) in (2, 3)
    return padded(b, place, pad, mode, image_form if image else form_of)


def padded(b: Builder, input: Place, pad: Sequence[int], mode: str, form: Callable[[Shape], Shape]) -> Place:
    """With zeros or with elements of its own, as torch's F.pad says."""
    made: Place = rearranged(b, F.pad, [input, list(pad), mode], {}, False, "pad", form)
    return made


def _convolution(axes: int, function: Callable[..., Tensor]) -> Handler:
    def handler(
        b: Builder,
        input: Place,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Place:
        b.rank(input, (axes + 1,), "[N, C, L]" if axes == 1 else "[N, C, H, W]")
        shape = b.shape(function, input, weight, bias, stride, padding, dilation, groups)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(along(b, dilation, axes), weight.shape[2:], strict=True)]
            padding = [t // 2 for t in total]
            if any(t % 2 for t in total):  # torch puts the odd element behind
                input = padded(b, input, [n for t in reversed(total) for n in (0, t % 2)], "constant", image_form)
        settings = window(b, axes, stride=stride, pad=0 if padding == "valid" else padding, dilation=dilation)
        input = images(b, input, axes)
        return b.emit("conv2d", (input,), image_form(shape), (weight, bias), settings, shape=shape)

    return lowers(function)(handler)


conv1d = _convolution(1, F.conv1d)
conv2d = _convolution(2, F.conv2d)


def _transposed(axes: int, function: Callable[..., Tensor]) -> Handler:
    def handler(
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
        input = images(b, input, axes)
        shape = b.shape(function, input, weight, bias, stride, padding, output_padding, groups, dilation)
        settings = window(b, axes, stride=stride, pad=padding, dilation=dilation)
        return b.emit("conv_transpose2d", (input,), image_form(shape), (weight, bias), settings, shape=shape)

    return lowers(function)(handler)


conv_transpose1d = _transposed(1, F.conv_transpose1d)
conv_transpose2d = _transposed(2, F.conv_transpose2d)


@lowers_module(nn.Conv1d, nn.Conv2d)
def _conv(b: Builder, m: nn.Conv1d | nn.Conv2d, x: Place) -> Place:
    axes = len(m.kernel_size)
    b.rank(x, (axes + 1,), "[N, C, L]" if axes == 1 else "[N, C, H, W]")
    padding: Any = m.padding
    if m.padding_mode != "zeros":
        x = padded(b, x, m._reversed_padding_repeated_twice, m.padding_mode, image_form)
        padding = 0
    handler = conv1d if axes == 1 else conv2d
    made: Place = handler(b, x, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)
    return made


@lowers_module(nn.ConvTranspose1d, nn.ConvTranspose2d)
def _conv_transpose(b: Builder, m: nn.ConvTranspose1d | nn.ConvTranspose2d, x: Place) -> Place:
    handler = conv_transpose1d if len(m.kernel_size) == 1 else conv_transpose2d
    made: Place = handler(b, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
    return made


@lowers_module(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.CircularPad1d, nn.CircularPad2d,
)  # fmt: skip
def _pad(b: Builder, m: Any, x: Place) -> Place:
    mode = next(mode for name, mode in _MODES.items() if type(m).__name__.startswith(name))
    return pad(b, x, m.padding, mode)


_MODES = {"Zero": "constant", "Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
