"""Functions of one element."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place, described
from metafast.model.layers.table import POINTWISE, Handler, lowered, lowers, lowers_module


def _pointwise(op: str, *names: Any, in_place: tuple[Any, ...] = (), module: type[nn.Module] | None = None) -> Handler:
    """The handler of a function without settings, and of the module that calls it."""

    def handler(b: Builder, input: Place, inplace: bool = False) -> Place:
        return b.elementwise(op, input, overwrite=inplace)

    POINTWISE.add(op)
    lowers(*names)(handler)
    lowers(*in_place)(partial(handler, inplace=True))
    if module:
        lowers_module(module)(lambda b, m, x: handler(b, x, getattr(m, "inplace", False)))
    return handler


_pointwise("relu", F.relu, torch.relu, "relu", in_place=(torch.relu_, "relu_"), module=nn.ReLU)
_pointwise("tanh", torch.tanh, "tanh", in_place=(torch.tanh_, "tanh_"), module=nn.Tanh)
_pointwise("sigmoid", torch.sigmoid, "sigmoid", in_place=(torch.sigmoid_, "sigmoid_"), module=nn.Sigmoid)
_pointwise("silu", F.silu, module=nn.SiLU)
_pointwise("softsign", F.softsign, module=nn.Softsign)
_pointwise("selu", F.selu, torch.selu, in_place=(torch.selu_,), module=nn.SELU)
_pointwise("mish", F.mish, module=nn.Mish)
_pointwise("hardswish", F.hardswish, module=nn.Hardswish)
_pointwise("log_sigmoid", F.logsigmoid, module=nn.LogSigmoid)
for _name in ("abs", "cos", "exp", "expm1", "log", "log1p", "reciprocal", "rsqrt", "sin", "sqrt", "square"):
    _methods = getattr(torch, f"{_name}_"), f"{_name}_"
    _pointwise(_name, getattr(torch, _name), _name, in_place=_methods)
_pointwise("abs", torch.absolute, "absolute", in_place=("absolute_",))
POINTWISE |= {"detach"}  # which leaves integers as they are
POINTWISE |= {"celu", "clamp", "hardtanh", "threshold"}  # with settings
POINTWISE |= {"gelu", "gelu_tanh", "leaky_relu", "elu", "softplus"}  # with settings


@lowers(torch.detach, "detach")
def detach(b: Builder, input: Any) -> Place:
    place = b.place(input)
    return place if place.integers else b.elementwise("detach", place)


@lowers(F.gelu)
def gelu(b: Builder, input: Place, approximate: str = "none") -> Place:
    return b.elementwise("gelu_tanh" if approximate == "tanh" else "gelu", input)


@lowers(F.leaky_relu)
def leaky_relu(b: Builder, input: Place, negative_slope: float = 0.01, inplace: bool = False) -> Place:
    return b.elementwise("leaky_relu", input, {"slope": negative_slope}, inplace)


@lowers(F.elu)
def elu(b: Builder, input: Place, alpha: float = 1.0, inplace: bool = False) -> Place:
    return b.elementwise("elu", input, {"alpha": alpha}, inplace)


@lowers(F.softplus)
def softplus(b: Builder, input: Place, beta: float = 1.0, threshold: float = 20.0) -> Place:
    return b.elementwise("softplus", input, {"beta": beta, "threshold": threshold})


@lowers(F.tanhshrink)
def tanhshrink(b: Builder, input: Place) -> Any:
    return lowered(b, torch.sub, input, b.elementwise("tanh", input))


@lowers(F.softshrink)
def softshrink(b: Builder, input: Place, lambd: float = 0.5) -> Any:
    """Towards 0 by lambd, and 0 between."""
    if lambd < 0:
        b.refuse(f"is called with lambd={lambd}, which torch refuses")
    return lowered(b, torch.sub, input, clamp(b, input, -lambd, lambd))


@lowers(F.hardshrink, torch.hardshrink, "hardshrink")
def hardshrink(b: Builder, input: Place, lambd: float = 0.5) -> Any:
    """0 between -lambd and lambd, the number itself elsewhere."""
    if lambd < 0:
        b.refuse(f"is called with lambd={lambd}; native are numbers from 0")
    minus = lowered(b, torch.neg, input)
    above, below = threshold(b, input, lambd, 0.0), threshold(b, minus, lambd, 0.0)
    return lowered(b, torch.sub, above, below)


@lowers(F.celu, torch.celu)
def celu(b: Builder, input: Place, alpha: float = 1.0, inplace: bool = False) -> Place:
    if alpha == 0:
        b.refuse("is called with alpha=0, of which torch makes no function")
    return b.elementwise("celu", input, {"alpha": alpha}, inplace)


@lowers(F.hardtanh)
def hardtanh(b: Builder, input: Place, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Place:
    return b.elementwise("hardtanh", input, {"low": min_val, "high": max_val}, inplace)


@lowers(F.relu6)
def relu6(b: Builder, input: Place, inplace: bool = False) -> Place:
    return hardtanh(b, input, 0.0, 6.0, inplace)


@lowers(F.hardsigmoid)
def hardsigmoid(b: Builder, input: Place, inplace: bool = False) -> Place:
    """relu6(x + 3) / 6, whose kinks lie where torch has them to the bit."""
    raised = b.elementwise("affine", input, {"scale": 1, "shift": 3}, inplace)
    return b.elementwise("affine", relu6(b, raised, inplace), {"scale": 1 / 6, "shift": 0}, inplace)


@lowers(F.threshold, torch.threshold)
def threshold(b: Builder, input: Place, threshold: float, value: float, inplace: bool = False) -> Place:
    return b.elementwise("threshold", input, {"limit": threshold, "otherwise": value}, inplace)


@lowers(torch.clamp, torch.clip, "clamp", "clip")
def clamp(b: Builder, input: Place, min: Any = None, max: Any = None, *, overwrite: bool = False) -> Place:
    bounds = {name: bound for name, bound in (("low", min), ("high", max)) if bound is not None}
    for bound in bounds.values():
        if not isinstance(bound, (int, float)) or math.isnan(bound):
            b.refuse(f"has {described(bound)} for a bound; native are plain numbers")
    if not bounds:
        b.refuse("has no bound, which torch refuses")
    if isinstance(input, Place) and input.integers and not overwrite and all(type(n) is int for n in bounds.values()):
        made = b.elementwise("clamp", b.real(input), bounds)
        made.integers = input.integers
        return made
    return b.elementwise("clamp", input, bounds, overwrite)


lowers(torch.clamp_, torch.clip_, "clamp_", "clip_")(partial(clamp, overwrite=True))
lowers(torch.clamp_min, "clamp_min")(lambda b, input, min: clamp(b, input, min))
lowers(torch.clamp_max, "clamp_max")(lambda b, input, max: clamp(b, input, max=max))
lowers(torch.clamp_min_, "clamp_min_")(lambda b, input, min: clamp(b, input, min, overwrite=True))
lowers(torch.clamp_max_, "clamp_max_")(lambda b, input, max: clamp(b, input, max=max, overwrite=True))
lowers_module(nn.Tanhshrink)(lambda b, m, x: tanhshrink(b, x))
lowers_module(nn.Softshrink)(lambda b, m, x: softshrink(b, x, m.lambd))
lowers_module(nn.Hardshrink)(lambda b, m, x: hardshrink(b, x, m.lambd))
lowers_module(nn.CELU)(lambda b, m, x: celu(b, x, m.alpha, m.inplace))
lowers_module(nn.Hardtanh, nn.ReLU6)(lambda b, m, x: hardtanh(b, x, m.min_val, m.max_val, m.inplace))
lowers_module(nn.Hardsigmoid)(lambda b, m, x: hardsigmoid(b, x, m.inplace))
lowers_module(nn.Threshold)(lambda b, m, x: threshold(b, x, m.threshold, m.value, m.inplace))
lowers_module(nn.GELU)(lambda b, m, x: gelu(b, x, m.approximate))
lowers_module(nn.LeakyReLU)(lambda b, m, x: leaky_relu(b, x, m.negative_slope, m.inplace))
lowers_module(nn.ELU)(lambda b, m, x: elu(b, x, m.alpha, m.inplace))
lowers_module(nn.Softplus)(lambda b, m, x: softplus(b, x, m.beta, m.threshold))
