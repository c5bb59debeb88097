"""Functions of one element."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place
from metafast.model.layers.table import POINTWISE, Handler, lowers, lowers_module


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
POINTWISE |= {"gelu", "gelu_tanh", "leaky_relu", "elu", "softplus"}  # with settings


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


lowers_module(nn.GELU)(lambda b, m, x: gelu(b, x, m.approximate))
lowers_module(nn.LeakyReLU)(lambda b, m, x: leaky_relu(b, x, m.negative_slope, m.inplace))
lowers_module(nn.ELU)(lambda b, m, x: elu(b, x, m.alpha, m.inplace))
lowers_module(nn.Softplus)(lambda b, m, x: softplus(b, x, m.beta, m.threshold))
