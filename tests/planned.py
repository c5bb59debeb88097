"""The rate and the data that the tests of planning share."""

from __future__ import annotations

import torch
from torch import Tensor

LR = 0.3
Task = tuple[Tensor, Tensor]


def sets(generator: torch.Generator | None = None) -> tuple[Task, Task]:
    """A support and a query set of two tasks: four examples each, of three numbers and two."""

    def one() -> Task:
        x, y = (torch.randn(2, 4, size, dtype=torch.float64, generator=generator) for size in (3, 2))
        return x, y

    return one(), one()
