"""Adam for networks so small that the bookkeeping around it would take longer than the meta-gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors as flatten

try:
    from metafast._native import adam_step
except ImportError:  # installed without the native engine

    def adam_step(
        state: tuple[Tensor, Tensor, Tensor],
        gradients: Sequence[Tensor],
        beta1: float,
        beta2: float,
        rate: float,
        epsilon: float,
    ) -> bool:
        """Whether C++ could take the step."""
        return False


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), as torch.optim.Adam computes it, on all parameters as one vector.

    The parameters become views of that vector. On the CPU a step is one native call: torch's operations on a small
    network's few tensors take half as long as its meta-gradient, and the OpenMP threads that torch wakes for a square
    root, or ``torch.optim.Adam(fused=True)`` for anything, spin against the native engine's.

    Make it after the parameters are on their device and hold their values; they must share dtype and device.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.parameters = list(parameters)
        self.betas, self.eps = betas, eps
        self.steps = 0
        with torch.no_grad():
            self.values = flatten([parameter.detach() for parameter in self.parameters])  # type: ignore[no-untyped-call]
            self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)
            sizes = [parameter.numel() for parameter in self.parameters]
            for parameter, part in zip(self.parameters, self.values.split(sizes), strict=True):
                parameter.data = part.view_as(parameter)

    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """theta -= rate * m^ / (sqrt(v^) + eps), with ``gradients`` in the order of the parameters."""
        steps, (beta1, beta2) = self.steps + 1, self.betas
        unbias1, unbias2 = 1 - beta1**steps, math.sqrt(1 - beta2**steps)
        # Both corrections of bias are scalars: they move out of the vectors, into eps and the rate.
        rate, eps = rate * unbias2 / unbias1, self.eps * unbias2
        theta, m, v = state = self.values, self.first, self.second
        if not adam_step(state, gradients, beta1, beta2, rate, eps):
            with torch.no_grad():
                g = flatten(gradients)  # type: ignore[no-untyped-call]
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                theta.addcdiv_(m, v.sqrt().add_(eps), value=-rate)
        self.steps = steps  # not for gradients that do not fit

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "first": self.first.clone(), "second": self.second.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ValueError, and nothing changed, if ``state`` is not of these parameters."""
        steps = state.get("steps")
        if not isinstance(steps, int):
            raise ValueError(f"steps: expected an integer, got {steps!r}")
        for name, own in (("first", self.first), ("second", self.second)):
            value = state.get(name)
            if not isinstance(value, Tensor) or value.shape != own.shape or value.dtype != own.dtype:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{name} moments: expected {own.dtype} {list(own.shape)}, got {got}")
        self.steps = steps
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
