"""What a user may do to a model between two calls of its learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

WAYS = 3


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, WAYS)).double()


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "eval": lambda m: m.eval(),
    "one module's mode": lambda m: m[1].eval(),
    "frozen": lambda m: m[0].requires_grad_(False),
    "a setting": lambda m: setattr(m[1], "eps", 0.5),
    "a layer": lambda m: m.__setitem__(2, nn.ReLU()),
    "one more layer": lambda m: m.append(nn.Linear(WAYS, WAYS).double()),
    "another parameter": lambda m: setattr(m[3], "weight", nn.Parameter(torch.ones(WAYS, 6).double())),
    "values in place": lambda m: m[3].weight.data.mul_(2),
    "another size": lambda m: m.__setitem__(0, nn.Linear(4, 6, bias=False).double()),
    "running statistics": lambda m: (m.eval(), m[1].running_mean.fill_(0.3), m[1].num_batches_tracked.fill_(3)),
}
