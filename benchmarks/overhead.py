"""What a meta-step costs before any arithmetic: Python, autograd and the binding."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import metafast as mf


def microseconds(calls: int = 3000) -> dict[str, float]:
    """Medians on the smallest model there is: one weight, one bias, one task, one example, one step."""
    learner = mf.MAML(nn.Linear(1, 1), lr=0.1, steps=1, loss="mse", strict=True)
    parameters = list(learner.parameters())
    task = (torch.ones(1, 1, 1), torch.ones(1, 1, 1))

    def call() -> None:
        learner(task, task)

    def step() -> None:
        torch.autograd.grad(learner(task, task).loss, parameters)

    times: dict[str, list[float]] = {"call": [], "call and backward": []}
    for run in (call, step):
        for _ in range(100):
            run()
    for _ in range(calls):
        for name, run in zip(times, (call, step), strict=True):
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}
