"""Convolutions along one axis or two, in groups or not, transposed ones, and padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, described, form_of
from metafast.model.constant import Constant
from metafast.model.layers.pairs import pair
from metafast.model.layers.products import matmul
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import Handler, lowers, lowers_module
from metafast.model.layers.windows import along, image_form, images, window
from metafast.model.program import Shape


@lowers(F.pad)
def pad(b: Builder, input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Place:
    place = b.place(input)
    image = len(b.form(b.first(place))) == 3 and len(place.shape) in (2, 3)
    made = padded(b, place, pad, mode, image_form if image else form_of)
    if mode != "constant" or value in (None, 0):
        return made
    if (
        not isinstance(value, (int, float))
        or not math.isfinite(value)
        or place.shared
        or len(pad) > 2 * len(place.shape)
    ):
        b.refuse(f"is not native with {described(value)} for a value; native is a finite number around each example")
    frame = F.pad(torch.zeros(place.shape, dtype=b.dtype), list(pad), value=value)
    return pair(b, "add", made, Constant(frame))


def padded(b: Builder, input: Place, pad: Sequence[int], mode: str, form: Callable[[Shape], Shape]) -> Place:
    """With zeros or with elements of its own, as torch's F.pad says."""
    made: Place = rearranged(b, F.pad, [input, list(pad), mode], {}, False, "pad", form)
    return made


def _convolution(axes: int, function: Callable[..., Tensor]) -> Handler:
    def handler(
        b: Builder,
        input: Place,
        weight: Any,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Place:
        b.rank(input, (axes + 1,), "[N, C, L]" if axes == 1 else "[N, C, H, W]")
        if isinstance(weight, Place):
            return _by_columns(b, function, input, weight, bias, (stride, padding, dilation, groups))
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


def _by_columns(
    b: Builder, function: Callable[..., Tensor], input: Place, weight: Place, bias: Any, settings: tuple[Any, ...]
) -> Place:
    """With a weight that is computed: its product with a column for each position, of all that a window sees there."""
    stride, padding, dilation, groups = settings
    if groups != 1 or not weight.shared:
        b.refuse("has groups, or a weight for each example, of a weight that is computed; native is one for all")
    kernel = weight.shape[2:]
    axes, apart = len(kernel), along(b, dilation, len(kernel))
    around = along(b, 0 if isinstance(padding, str) else padding, axes)
    pads = [n for p in reversed(around) for n in (p, p)]
    if padding == "same":  # torch puts the odd element behind
        reach = [d * (k - 1) for d, k in zip(apart, kernel, strict=True)]
        pads = [n for r in reversed(reach) for n in (r // 2, r - r // 2)]
    height = (1,) * (2 - axes)
    window = height + kernel, height + apart, 0, height + along(b, stride, axes)

    def columns(x: Tensor) -> Tensor:
        x = F.pad(x, pads)
        return F.unfold(x.unsqueeze(2) if height else x, *window)

    shape = b.shape(lambda x: function(x, torch.zeros(weight.shape), None, *settings), input)
    flat = rearranged(b, torch.reshape, [weight, (weight.shape[0], -1)], {}, True, "reshape")
    made = matmul(b, flat, rearranged(b, columns, [input], {}, False, "unfold"))
    made = rearranged(b, torch.unflatten, [made, 2, shape[1:]], {}, True, "unflatten", image_form)
    if bias is not None:
        each = rearranged(b, torch.reshape, [b.place(bias), (-1, *(1,) * axes)], {}, True, "reshape")
        made = pair(b, "add", made, each)
    return made


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
    nn.ConstantPad1d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReplicationPad1d, nn.ReplicationPad2d, nn.CircularPad1d, nn.CircularPad2d,
)  # fmt: skip
def _pad(b: Builder, m: Any, x: Place) -> Place:
    mode = next(mode for name, mode in _MODES.items() if type(m).__name__.startswith(name))
    return pad(b, x, m.padding, mode, m.value if mode == "constant" else None)


_MODES = {
    "Constant": "constant",
    "Zero": "constant",
    "Reflection": "reflect",
    "Replication": "replicate",
    "Circular": "circular",
}
