"""What a meta-step costs before any arithmetic: Python, autograd and the binding."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import metafast as mf
from benchmarks.timing import turn


def microseconds(rounds: int = 5, device: str = "cpu") -> dict[str, float]:
    """Medians on the smallest model there is: one weight, one bias, one task, one example, one step."""
    learner = mf.MAML(nn.Linear(1, 1, device=device), lr=0.1, steps=1, loss="mse", strict=True)
    parameters = list(learner.parameters())
    task = (torch.ones(1, 1, 1, device=device), torch.ones(1, 1, 1, device=device))

    def gradient() -> Sequence[Any]:
        return learner.meta_gradient(task, task)

    def call() -> Sequence[Any]:
        return learner(task, task)

    def step() -> Sequence[Any]:
        return torch.autograd.grad(learner(task, task).loss, parameters)

    times: dict[str, list[float]] = {"gradient": [], "call": [], "call and backward": []}
    for _ in range(rounds):
        for name, run in zip(times, (gradient, call, step), strict=True):
            times[name] += turn(run, 0.1)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}
