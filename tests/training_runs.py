"""A learner of a few weights, tasks for it, and meta-training runs of a few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import metafast as mf
from metafast.tasks import Sinusoids, Splits
from metafast.training.history import History
from metafast.training.networks import mlp

TASKS = Sinusoids(shots=4, queries=3)
SPLITS = Splits(TASKS, TASKS, TASKS)


def learner(seed: int = 0, **settings: Any) -> mf.MAML:
    torch.manual_seed(seed)
    return mf.MAML(mlp([1, 6, 1], "tanh"), **{"lr": 0.05, "steps": 2, "loss": "mse", **settings})


def train(maml: mf.MAML, tasks: Any = TASKS, **how: Any) -> History:
    return mf.meta_train(maml, tasks, **{"meta_batch": 3, "progress": False, "max_iters": 5, **how})


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
