"""Layers that are random in training mode."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place, described
from metafast.model.layers.table import lowers, lowers_module
from metafast.model.program import RANDOM


def _drop(b: Builder, input: Place, p: float, training: bool, inplace: bool, each: int) -> Place:
    """``each`` so many elements in torch's order are dropped together."""
    place = b.place(input)
    if not training or p == 0:
        return place
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        b.refuse(f"takes {described(p)} for a probability; native is a number from 0 to 1")
    if place.shared:
        b.refuse("drops parameters, which has no native form")
    number = sum(node.op in RANDOM for node in b.nodes)
    attributes = {"p": p, "number": number, "each": each}
    return b.emit("dropout", (place,), b.form(place), (), attributes, inplace, shape=place.shape)


@lowers(F.dropout)
def dropout(b: Builder, input: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    return _drop(b, input, p, training, inplace, 1)


@lowers(torch.dropout)
def _plain(b: Builder, input: Place, p: float, train: bool) -> Place:
    return _drop(b, input, p, train, False, 1)


@lowers(F.dropout1d)
def dropout1d(b: Builder, input: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    """Of [N, C, L] channels. [N, C] is to torch one example of N channels."""
    b.rank(input, (1, 2), "[N, C] or [N, C, L]")
    return _drop(b, input, p, training, inplace, math.prod(input.shape[-1:]))


@lowers(F.dropout2d)
def dropout2d(b: Builder, input: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    """Of [N, C, ...] channels, however many axes follow."""
    b.rank(input, (1, 2, 3, 4, 5), "[N, C, ...]")
    return _drop(b, input, p, training, inplace, math.prod(input.shape[1:]))


@lowers(F.dropout3d)
def dropout3d(b: Builder, input: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    """Of [N, C, D, H, W] channels. With fewer axes it is to torch one example of N channels."""
    b.read(input)
    return _drop(b, input, p, training, inplace, math.prod(input.shape[1 if len(input.shape) == 4 else 0 :]))


@lowers("bernoulli_")
def bernoulli_(b: Builder, input: Any, p: Any = 0.5, *, generator: None = None) -> Place:
    """Ones with probability p, else zeros: ones of which some are dropped. So stochastic depth is written."""
    if generator is not None:
        b.refuse("draws from a generator of its own, which has no native form")
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        b.refuse(f"takes {described(p)} for a probability; native is a number from 0 to 1")
    ones = b.elementwise("affine", input, {"scale": 0, "shift": 1}, overwrite=True)
    if p == 0:
        return b.elementwise("affine", ones, {"scale": 0, "shift": 0}, overwrite=True)
    kept = _drop(b, ones, 1 - p, True, True, 1)
    return b.elementwise("affine", kept, {"scale": p, "shift": 0}, overwrite=True)


#: Minus the lowest value of SELU, as torch's own code has it.
_ALPHA = 1.7580993408473766


@lowers(F.alpha_dropout)
def alpha_dropout(b: Builder, input: Place, p: float = 0.5, training: bool = False, inplace: bool = False) -> Place:
    """a x + c where an element is kept, else -a alpha + c: what is kept of x + alpha, with a factor and a summand."""
    if not training or p in (0, 1):
        return _drop(b, input, p, training, inplace, 1)
    if inplace:
        b.refuse("is not native in place")
    kept = _drop(b, b.elementwise("affine", input, {"scale": 1, "shift": _ALPHA}), p, True, False, 1)
    a = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p))
    return b.elementwise("affine", kept, {"scale": a * (1 - p), "shift": _ALPHA * a * (p - 1)})


lowers_module(nn.AlphaDropout)(lambda b, m, x: alpha_dropout(b, x, m.p, m.training, m.inplace))
lowers_module(nn.Dropout)(lambda b, m, x: dropout(b, x, m.p, m.training, m.inplace))
lowers_module(nn.Dropout1d)(lambda b, m, x: dropout1d(b, x, m.p, m.training, m.inplace))
lowers_module(nn.Dropout2d)(lambda b, m, x: dropout2d(b, x, m.p, m.training, m.inplace))
lowers_module(nn.Dropout3d)(lambda b, m, x: dropout3d(b, x, m.p, m.training, m.inplace))
