"""How well a learner adapts to tasks it has not seen, with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafast.learner import MAML
from metafast.tasks import TEST, Splits, Tasks, generator
from metafast.training import metrics as metrics_
from metafast.training import random_state
from metafast.training.figure import figure, write
from metafast.training.sources import moved


@dataclass(frozen=True)
class Estimate:
    """A mean over independent tasks, with the half-width of its 95 % confidence interval (normal approximation)."""

    mean: float
    interval: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From one value per task, [T]; the interval of a single task is not a number."""
        values = values.double()
        spread = float(values.std()) if len(values) > 1 else math.nan
        return cls(float(values.mean()), 1.96 * spread / math.sqrt(len(values)), len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.interval:.3f}"

    def percent(self) -> str:
        return f"{100 * self.mean:.2f} % +- {100 * self.interval:.2f} %"


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found."""

    steps: tuple[int, ...]
    per_task: dict[str, Tensor]  # of each metric, [len(steps), tasks], float64 on the CPU

    @property
    def estimates(self) -> dict[str, dict[int, Estimate]]:
        """Of each metric, after each number of inner steps."""
        return {
            name: {k: Estimate.of(row) for k, row in zip(self.steps, values, strict=True)}
            for name, values in self.per_task.items()
        }

    def __str__(self) -> str:
        estimates = self.estimates
        rows = [["steps", *estimates]]
        rows += [[str(k), *(str(of[k]) for of in estimates.values())] for k in self.steps]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        tasks = next(iter(self.per_task.values())).shape[1]
        lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
        lines.append(f"mean over {tasks} tasks +- 95 % confidence")
        for k, losses in zip(self.steps, self.per_task.get(metrics_.LOSS, ()), strict=False):
            if diverged := int((~losses.isfinite()).sum()):
                lines.append(f"{diverged} of {tasks} tasks diverge within {k} steps")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number is None."""
        return {
            "steps": list(self.steps),
            "estimates": {
                name: {str(k): {key: _plain(value) for key, value in asdict(e).items()} for k, e in of.items()}
                for name, of in self.estimates.items()
            },
        }

    def plot(self, path: str | Path) -> None:
        """A PNG of every metric over inner steps, with its intervals."""
        estimates = self.estimates
        picture = figure(3.6 * len(estimates), 3)
        for axes, (name, of) in zip(
            picture.subplots(1, len(estimates), squeeze=False)[0], estimates.items(), strict=True
        ):
            bars = [0.0 if math.isnan(e.interval) else e.interval for e in of.values()]
            axes.errorbar(self.steps, [e.mean for e in of.values()], bars, fmt="C0.-", capsize=3, linewidth=1)
            axes.set(xlabel="inner steps", title=name)
            axes.grid(alpha=0.3)
        write(picture, path)


def evaluate(
    learner: MAML,
    tasks: Any,
    steps: Sequence[int] = (0, 1, 5, 10),
    *,
    count: int = 600,
    metrics: Iterable[Any] | None = None,
    seed: int = 0,
    batch: int = 25,
    stream: int = TEST,
) -> Evaluation:
    """Adapt to held-out tasks and judge by their query sets, after each number of inner steps.

    The tasks are a function of ``seed`` (and ``batch``) alone, so two learners, or the same one before and after
    training, are judged on the same ones. Dropout is off meanwhile; norms stay in the mode they are in, because a
    batch norm in training mode uses the task's own batch. No random number of the caller's is used up.

    Args:
        learner: a :class:`metafast.MAML`.
        tasks: a :class:`metafast.tasks.Tasks`, the test part of a :class:`metafast.tasks.Splits`, or a collection of
            pairs ``(support, query)``, which is then gone through once.
        steps: numbers of inner steps.
        count: how many tasks to draw; of a collection it is the most.
        metrics: names out of ``loss``, ``accuracy``, ``rmse``, ``mae`` and ``r2``, functions (outputs, targets) -> [T],
            or :class:`metafast.Metric`. Default: loss and accuracy for classes, else loss, rmse, mae and r2. Built-in
            ones weigh examples as the query set's weights say.
        batch: tasks drawn and adapted at once.
        stream: which of a seed's streams of tasks to draw from: TEST, VALIDATION or TRAIN of :mod:`metafast.tasks`.
    """
    steps = tuple(steps)
    if not steps or not all(isinstance(k, int) and k >= 0 for k in steps):
        raise ValueError(f"steps: expected numbers of inner steps, at least one, none negative, got {steps}")
    if count < 1 or batch < 1:
        raise ValueError(f"count, batch: expected at least 1, got {count} and {batch}")
    device = next(learner.parameters()).device
    wanted = None if metrics is None else metrics_.resolve(metrics)
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad(), without_dropout(learner), random_state.isolated(seed):
        for support, query in _batches(tasks, count, seed, stream, batch):
            support, query = moved((support, query), device)
            y, weights = query[1], query[2] if len(query) > 2 else None
            if wanted is None:
                wanted = metrics_.resolve(metrics_.usual(learner, y))
            rows: dict[str, list[Tensor]] = {name: [] for name in wanted}
            for k in steps:
                out = learner(support, query, steps=k)
                for name, function in wanted.items():
                    value = out.task_loss if function is None else function(out.logits, y, weights)
                    rows[name].append(_per_task(name, value, len(y)))
            for name, values in rows.items():
                parts.setdefault(name, []).append(torch.stack(values))
    if not parts:
        raise ValueError("tasks: there are none to evaluate on")
    return Evaluation(steps, {name: torch.cat(values, dim=1)[:, :count] for name, values in parts.items()})


def _batches(tasks: Any, count: int, seed: int, stream: int, batch: int) -> Iterator[Any]:
    if isinstance(tasks, Splits):
        tasks = tasks.test
    if isinstance(tasks, Tasks):
        for done in range(0, count, batch):
            yield tasks.sample(min(batch, count - done), generator(seed, stream, done))
        return
    done = 0
    for pair in tasks:
        yield pair
        done += len(pair[1][0])
        if done >= count:
            return


def _per_task(name: str, value: Any, tasks: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (tasks,):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"metric {name}: expected one number for each task, [{tasks}], got {found}")
    return value.detach().double().cpu()


@contextmanager
def without_dropout(learner: nn.Module) -> Iterator[None]:
    """Dropout layers pass everything on within the block, whatever the mode of the other layers."""
    active = [m for m in learner.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
