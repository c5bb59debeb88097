"""Softmax and its logarithm."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place, form_of
from metafast.model.layers.table import METHODS, lowers, lowers_module


def _softmax(b: Builder, op: str, input: Place, dim: Any, dtype: Any) -> Place:
    input = b.place(input)
    b.read(input)
    if dim is None:
        b.refuse("names no axis, which has no native form")
    if dtype not in (None, b.dtype):
        b.refuse(f"converts to {dtype}, which has no native form")
    if input.shared:
        return _of_parameters(b, op, input, dim)
    axis = b.axis(input, dim)
    if axis == 0:
        b.refuse("is over the N examples, which has no native form; native is over an axis of each")
    if axis == len(input.shape):
        return _over_channels(b, op, input, form_of(input.shape))
    if axis == 1:  # channels of an image
        form = input.shape if len(input.shape) == 3 else (input.shape[0], 1, math.prod(input.shape[1:]))
        return _over_channels(b, op, input, form)
    last = _softmax(b, op, METHODS["transpose"](b, input, axis, -1), -1, dtype)
    return METHODS["transpose"](b, last, axis, -1)  # type: ignore[no-any-return]


def _of_parameters(b: Builder, op: str, input: Place, dim: int) -> Place:
    if dim % len(input.shape) == len(input.shape) - 1:
        return _over_channels(b, op, input, form_of(input.shape))
    last = _of_parameters(b, op, METHODS["transpose"](b, input, dim, -1), -1)
    return METHODS["transpose"](b, last, dim, -1)  # type: ignore[no-any-return]


def _over_channels(b: Builder, op: str, input: Place, form: tuple[int, ...]) -> Place:
    return b.emit(op, (b.in_form(input, form),), form, shape=input.shape)


def of_what_is_shown(b: Builder, scores: Place) -> Place:
    """The softmax over the last axis that gives zeros where all are -inf, as attention's does."""
    form = form_of(scores.shape)
    return b.emit("softmax", (b.in_form(scores, form),), form, (), {"of_nothing": 1}, shape=scores.shape)


def _softmin(b: Builder, input: Any, dim: Any, dtype: Any) -> Place:
    return _softmax(b, "softmax", b.elementwise("affine", input, {"scale": -1, "shift": 0}), dim, dtype)


def _lowers_softmax(op: str, function: Any, plain: Any, module: type[nn.Module]) -> None:
    """Of torch.nn.functional, of torch and Tensor, and as a module."""

    def functional(b: Builder, input: Place, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Place:
        return _softmax(b, op, input, dim, dtype)

    def handler(b: Builder, input: Place, dim: Any, dtype: Any = None) -> Place:
        return _softmax(b, op, input, dim, dtype)

    def of_module(b: Builder, m: Any, input: Place) -> Place:
        return _softmax(b, op, input, m.dim, None)

    lowers(function)(functional)
    lowers(plain, op)(handler)
    lowers_module(module)(of_module)


_lowers_softmax("softmax", F.softmax, torch.softmax, nn.Softmax)
lowers(F.softmin)(lambda b, input, dim=None, _stacklevel=3, dtype=None: _softmin(b, input, dim, dtype))
lowers_module(nn.Softmin)(lambda b, m, x: _softmin(b, x, m.dim, None))
lowers_module(nn.Softmax2d)(lambda b, m, x: _softmax(b, "softmax", x, -3, None))
_lowers_softmax("log_softmax", F.log_softmax, torch.log_softmax, nn.LogSoftmax)
