"""Upsampling, and maxima over axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, form_of
from metafast.model.layers.pairs import pair
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers, lowers_module

_LINEAR = {"linear": 1, "bilinear": 2}


@lowers(F.interpolate, F.upsample)
def interpolate(
    b: Builder,
    input: Place,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Place:
    b.read(input)
    if antialias or mode not in ("nearest", "nearest-exact", *_LINEAR):
        b.refuse(f"is not native with mode={mode!r}{', antialias=True' * antialias}")
    settings = {"size": size, "scale_factor": scale_factor, "recompute_scale_factor": recompute_scale_factor}
    if mode not in _LINEAR:
        return rearranged(b, F.interpolate, [input], {**settings, "mode": mode}, False, mode)  # type: ignore[no-any-return]
    axes = _LINEAR[mode]
    b.rank(input, (axes + 1,), "[N, C, L]" if axes == 1 else "[N, C, H, W]")
    matrices = []
    for axis, length in enumerate(input.shape[1:]):
        one = {key: value[axis] if isinstance(value, (tuple, list)) else value for key, value in settings.items()}
        basis = torch.eye(length, dtype=torch.float64)[None]
        try:
            matrices.append(F.interpolate(basis, **one, mode="linear", align_corners=align_corners)[0].T)
        except (RuntimeError, ValueError, TypeError) as error:
            b.refuse(f"fails in torch: {(str(error).splitlines() or [''])[0]}")
    whole = matrices[0] if axes == 1 else torch.kron(matrices[0], matrices[1])  # [positions after, before]
    return _of_positions(b, input, whole, (input.shape[0], *(len(m) for m in matrices)), mode)


def _of_positions(b: Builder, input: Place, matrix: Tensor, shape: tuple[int, ...], says: str) -> Place:
    """A linear map of the positions [C, *positions] of every channel."""
    most = int((matrix != 0).sum(1).max())
    factors, places = matrix.abs().topk(most, dim=1)
    factors = matrix.gather(1, places)
    channels = torch.arange(shape[0])[:, None, None] * matrix.shape[1]
    table = torch.where(factors != 0, places, -1)
    table = torch.where(table >= 0, channels + table, -1).reshape(-1)
    every = factors.expand(shape[0], *factors.shape).reshape(-1)
    form = shape if len(shape) == 3 else form_of(shape)
    return b.emit("sparse_map", (input,), form, shape=shape, table=table.tolist(), factors=every.tolist(), says=says)


@lowers_module(nn.Upsample)
def _upsample(b: Builder, m: nn.Upsample, x: Place) -> Place:
    return interpolate(b, x, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor)


lowers_module(nn.UpsamplingNearest2d)(_upsample)
lowers_module(nn.UpsamplingBilinear2d)(_upsample)


class Extremes(NamedTuple):
    """What torch's max(x, dim) returns; places of maxima have no native form."""

    values: Place
    indices: None


@lowers(torch.amax, "amax")
def amax(b: Builder, input: Place, dim: Any = (), keepdim: bool = False) -> Place:
    """The largest element over some axes: a pooling over all their positions. Where elements are equal, the first of
    them has the derivative."""
    b.read(input)
    rank = len(input.shape) + 1
    axes = sorted({b.axis(input, axis) for axis in (dim if isinstance(dim, (tuple, list)) else (dim,))})
    if not axes or axes[0] == 0:
        b.refuse("looks at all examples together, which has no native form")
    kept = [axis for axis in range(1, rank) if axis not in axes]
    first = rearranged(b, torch.permute, [input, (0, *kept, *axes)], {}, True, "permute")
    count = math.prod(input.shape[axis - 1] for axis in axes)
    left = tuple(input.shape[axis - 1] for axis in kept)
    image = b.image(first, (math.prod(left), count, 1))
    window = {"kernel_h": count, "kernel_w": 1, "stride_h": count, "stride_w": 1}
    settings = {**window, "pad_h": 0, "pad_w": 0, "dilation_h": 1, "dilation_w": 1}
    made = b.emit("max_pool2d", (image,), (math.prod(left), 1, 1), attributes=settings)
    shape = tuple(1 if i in axes else input.shape[i - 1] for i in range(1, rank)) if keepdim else left
    return Place(made.value, shape, made.memory)


@lowers(torch.amin, "amin")
def amin(b: Builder, input: Place, dim: Any = (), keepdim: bool = False) -> Place:
    return _negative(b, amax(b, _negative(b, input), dim, keepdim))


def _negative(b: Builder, x: Place) -> Place:
    return b.elementwise("affine", x, {"scale": -1, "shift": -0.0})


def _extremes(op: str, function: Callable[..., Place], *names: Any) -> None:
    """Register torch.max or torch.min: of two tensors, or over an axis."""

    def handler(b: Builder, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, (Place, Tensor)):
            return pair(b, op, input, dim)
        if not isinstance(dim, int):
            b.refuse("looks at all examples together, which has no native form")
        return Extremes(function(b, input, dim, keepdim), None)

    lowers(*names)(handler)


_extremes("maximum", amax, torch.max, "max")
_extremes("minimum", amin, torch.min, "min")
