"""Rows of pointwise functions that are no activations by name, and of arithmetic with plain numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import seq
from row import C, L, Row, act


class Calls(nn.Module):
    """A function, called."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def calls(name: str, function: Callable[[Tensor], Tensor], smooth: bool = True) -> Row:
    return act(name, lambda: Calls(function), smooth)


def positive(x: Tensor) -> Tensor:
    return x.square() + 0.5


class Numbers(nn.Module):
    """Arithmetic with plain numbers, in the ways that people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L(3, 4), L(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sub(self.first(x / 255 - 0.5), 0.25, alpha=2)
        h *= 1.5
        h = torch.rsub(torch.tanh(1 - h), 2, alpha=0.5).add_(0.1, alpha=-2)
        scale = h.shape[-1] ** -0.5
        return self.second(-(2 / (h.square() + 1)) * scale + 3 / 4)


POINTWISE_ROWS = [
    calls("abs", torch.abs, smooth=False),
    calls("affine", lambda x: 1 - 2 * x),
    act("celu", lambda: nn.CELU(0.75), smooth=False),
    act("celu-falling", lambda: nn.CELU(-1.5), smooth=False),
    calls("clamp", lambda x: x.clamp(-0.3, 0.4), smooth=False),
    act("clamp-min-zero", lambda: Calls(lambda x: torch.clamp_min(x, 0)), smooth=False, zeros=True),
    calls("cos", torch.cos),
    calls("detach", lambda x: x * torch.tanh(x).detach() + torch.detach(x), smooth=False),
    act("hardshrink", lambda: nn.Hardshrink(0.2), smooth=False),
    act("softshrink", lambda: nn.Softshrink(0.2), smooth=False),
    act("tanhshrink", nn.Tanhshrink),
    calls("by-comparisons", lambda x: torch.where(x > 0.1, x, torch.where(x <= -0.2, -x, 0.1 + 0.5 * x)), smooth=False),
    calls("exp", lambda x: (-x.square()).exp()),
    calls("expm1", lambda x: torch.expm1(-x.square())),
    act("hardswish", nn.Hardswish, smooth=False),
    act("hardtanh", lambda: nn.Hardtanh(-0.4, 0.6), smooth=False),
    act("relu6", lambda: nn.ReLU6(inplace=True), smooth=False),
    calls("log", lambda x: torch.log(positive(x))),
    calls("log1p", lambda x: positive(x).log1p()),
    act("log-sigmoid", nn.LogSigmoid),
    act("mish", nn.Mish),
    calls("pow", lambda x: torch.tanh(x) ** 3),
    calls("reciprocal", lambda x: 1 / positive(x)),
    calls("rsqrt", lambda x: torch.rsqrt(positive(x))),
    act("selu", nn.SELU, smooth=False),
    calls("sin", lambda x: torch.sin(3 * x)),
    calls("sqrt", lambda x: positive(x) ** 0.5),
    calls("square", lambda x: torch.square(0.5 * x)),
    calls("threshold", lambda x: F.threshold(x, 0.1, -0.2), smooth=False),
    act("prelu", lambda: nn.PReLU(init=0.3), smooth=False, zeros=True),
    Row("act/prelu-channels", lambda: seq(C(2, 3, 2), nn.PReLU(3), nn.Flatten(), L(12, 2)), (2, 3, 3), smooth=False),
    Row("act/prelu-of-vectors", lambda: seq(L(3, 4), nn.PReLU(4), L(4, 2)), smooth=False, lr_form="per_element"),
    Row("act/glu", lambda: seq(L(3, 8), nn.GLU(), L(4, 2))),
    Row("act/glu-channels", lambda: seq(C(2, 4, 2), nn.GLU(1), nn.Flatten(), L(8, 2)), (2, 3, 3)),
    Row("act/numbers", Numbers, static=True),
    Row("act/fractional-powers", lambda: seq(L(3, 4), Calls(lambda x: positive(x) ** -1.7), L(4, 2))),
]
