"""Normalisation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Builder, Place, batched, form_of
from metafast.model.layers.table import ModuleHandler, lowers, lowers_module
from metafast.model.layers.windows import image_form
from metafast.model.program import Shape

#: Primitives that take each row of a value of rows alone.
OF_ROWS = {"normalise", "softmax", "log_softmax"}


@lowers(F.batch_norm)
def batch_norm(
    b: Builder,
    input: Place,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Place:
    b.rank(input, (1, 2, 3), "[N, C], [N, C, L] or [N, C, H, W]")
    input = b.rows(input) if len(input.shape) == 1 else b.image(input, image_form(input.shape))
    if not training and (running_mean is None or running_var is None):
        b.refuse("is in eval mode without running statistics, which has no native form")
    statistics = (None, None) if training else (running_mean, running_var)
    if any(t is not None and t.shape != input.shape[:1] for t in (weight, bias, *statistics)):
        b.refuse(f"has a weight, bias or statistics that do not fit the input {batched(input.shape)}")
    if any(t is not None and t.requires_grad for t in statistics):
        b.refuse("is not native with running statistics that require a gradient")
    parameters, settings = (weight, bias, *statistics), {"eps": eps, "training": training}
    return b.emit("batch_norm", (input,), b.form(input), parameters, settings, shape=input.shape)


def _batch_norm(axes: str, ranks: tuple[int, ...]) -> ModuleHandler:
    def handler(b: Builder, m: nn.BatchNorm2d, x: Place) -> Place:
        b.rank(x, ranks, axes)
        training = m.training or (m.running_mean is None and m.running_var is None)
        return batch_norm(b, x, m.running_mean, m.running_var, m.weight, m.bias, training, eps=m.eps)

    return handler


lowers_module(nn.BatchNorm1d)(_batch_norm("[N, C] or [N, C, L]", (1, 2)))
lowers_module(nn.BatchNorm2d)(_batch_norm("[N, C, H, W]", (3,)))


def _normalised(
    b: Builder, input: Place, form: Shape, affine: tuple[Tensor | None, Tensor | None], **settings: float
) -> Place:
    """Each group of channels by itself: of each row, or, of an image, at all positions together."""
    if input.shared:
        b.refuse("works on parameters alone, which has no native form")
    own = b.in_form(input, form)
    return b.emit("normalise", (own,), form, affine, settings, shape=input.shape)


def _over_last_axes(
    b: Builder, input: Place, sizes: Any, affine: tuple[Tensor | None, Tensor | None], **settings: float
) -> Place:
    """The axes that ``sizes`` lists count as one."""
    b.read(input)
    shape = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not shape or input.shape[-len(shape) :] != shape:
        b.refuse(f"normalises over {list(shape)}, which are not the last axes of {batched(input.shape)}")
    if any(t is not None and tuple(t.shape) != shape for t in affine):
        b.refuse(f"has a weight or bias that is not of shape {list(shape)}")
    form = form_of((*input.shape[: -len(shape)], math.prod(shape)))
    return _normalised(b, input, form, affine, groups=1, **settings)


@lowers(F.layer_norm, torch.layer_norm)
def layer_norm(
    b: Builder,
    input: Place,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Place:
    return _over_last_axes(b, input, normalized_shape, (weight, bias), eps=eps, centred=True)


@lowers(F.rms_norm, torch.rms_norm)
def rms_norm(
    b: Builder, input: Place, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Place:
    added = torch.finfo(b.dtype).eps if eps is None else eps
    return _over_last_axes(b, input, normalized_shape, (weight, None), eps=added, centred=False)


def _by_channel(b: Builder, input: Place, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Place:
    """Groups of the first axis, over all others."""
    b.read(input)
    if not input.shape:
        b.refuse(f"is native for inputs [N, C, ...], not for {batched(input.shape)}")
    channels, *others = input.shape
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        b.refuse(f"cuts {channels} channels into {groups!r} groups")
    if any(t is not None and tuple(t.shape) != (channels,) for t in (weight, bias)):
        b.refuse(f"has a weight or bias that is not of shape {[channels]}")
    if len(others) == 2:
        form: Shape = tuple(input.shape)
    else:
        form = (channels, 1, math.prod(others)) if others else (channels,)
    return _normalised(b, input, form, (weight, bias), groups=groups, eps=eps, centred=True)


@lowers(F.group_norm, torch.group_norm)
def group_norm(
    b: Builder,
    input: Place,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Place:
    return _by_channel(b, input, num_groups, weight, bias, eps)


@lowers(F.instance_norm)
def instance_norm(
    b: Builder,
    input: Place,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Place:
    b.read(input)
    if not use_input_stats:
        b.refuse("normalises by running statistics, which has no native form")
    if math.prod(input.shape[1:]) < 2:
        b.refuse(f"needs several positions of each channel, not {batched(input.shape)}")
    return _by_channel(b, input, input.shape[0], weight, bias, eps)


@lowers_module(nn.LayerNorm)
def _layer_norm(b: Builder, m: nn.LayerNorm, x: Place) -> Place:
    return layer_norm(b, x, m.normalized_shape, m.weight, m.bias, m.eps)


@lowers_module(nn.RMSNorm)
def _rms_norm(b: Builder, m: nn.RMSNorm, x: Place) -> Place:
    return rms_norm(b, x, m.normalized_shape, m.weight, m.eps)


@lowers_module(nn.GroupNorm)
def _group_norm(b: Builder, m: nn.GroupNorm, x: Place) -> Place:
    return group_norm(b, x, m.num_groups, m.weight, m.bias, m.eps)


def _instance_norm(rank: int, axes: str) -> ModuleHandler:
    def handler(b: Builder, m: nn.InstanceNorm2d, x: Place) -> Place:
        b.rank(x, (rank,), axes)  # with one axis less, torch takes the examples for channels
        if x.shape[0] != m.num_features and m.affine:
            b.refuse(f"has {m.num_features} features, but its input is {batched(x.shape)}")
        of_input = m.training or not m.track_running_stats
        return instance_norm(b, x, m.running_mean, m.running_var, m.weight, m.bias, of_input, eps=m.eps)

    return handler


lowers_module(nn.InstanceNorm1d)(_instance_norm(2, "[N, C, L]"))
lowers_module(nn.InstanceNorm2d)(_instance_norm(3, "[N, C, H, W]"))
