"""How well a learner adapts to tasks it has not seen, with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metafast.tasks import TEST, Episode, ImageTasks, Sinusoids, generator


@dataclass(frozen=True)
class Estimate:
    """A mean over independent tasks, with the half-width of its 95 % confidence interval (normal approximation)."""

    mean: float
    interval: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From one value per task, [T] with T >= 2."""
        values = values.double()
        return cls(float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values)), len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.interval:.3f}"

    def percent(self) -> str:
        return f"{100 * self.mean:.2f} % +- {100 * self.interval:.2f} %"


def errors(learner: nn.Module, tasks: Sinusoids, *, count: int, steps: Iterable[int], seed: int) -> dict[int, Estimate]:
    """Mean squared error on the query points of ``count`` fresh tasks after each number of inner steps in ``steps``,
    on the same tasks each time."""
    device = next(learner.parameters()).device
    support, query = tasks.sample(count, generator(seed, TEST))
    episode = Episode(_to(support, device), _to(query, device))
    with torch.no_grad():
        return {k: Estimate.of(learner(*episode, steps=k).task_loss.cpu()) for k in steps}


def accuracy(
    learner: nn.Module, tasks: ImageTasks, *, count: int, steps: int, seed: int, stream: int = TEST, batch: int = 25
) -> Estimate:
    """The part of query images classified rightly, over ``count`` tasks after ``steps`` inner steps."""
    parts = []
    with torch.no_grad():
        for done in range(0, count, batch):
            support, (xq, yq) = tasks.sample(min(batch, count - done), generator(seed, stream, done))
            logits = learner(support, (xq, yq), steps=steps).logits
            parts.append((logits.argmax(-1) == yq).float().mean(-1).cpu())
    return Estimate.of(torch.cat(parts))


def _to(pair: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    return pair[0].to(device), pair[1].to(device)
