"""The regression tasks of Finn, Abbeel and Levine (2017), section 5.1: sine waves of random amplitude and phase.

y = A sin(x - phi),   A ~ U[0.1, 5],   phi ~ U[0, pi],   x ~ U[-5, 5]
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metafast.tasks.family import Bounds, RegressionFamily


class Sinusoids(RegressionFamily):
    """Tasks of ``shots`` support points and ``queries`` query points each, all drawn independently."""

    x: Bounds

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        amplitude: Bounds = (0.1, 5.0),
        phase: Bounds = (0.0, math.pi),
        x: Bounds = (-5.0, 5.0),
    ) -> None:
        super().__init__(sine, {"amplitude": amplitude, "phase": phase}, x, shots=shots, queries=queries)


def sine(x: Tensor, amplitude: Tensor, phase: Tensor) -> Tensor:
    return amplitude * torch.sin(x - phase)
