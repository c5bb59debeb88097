"""What tells how well an adapted model does on a task's query set: one number for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metafast import losses
from metafast.learner import MAML

#: (outputs [T, N, *output], targets [T, N] or [T, N, *output], weights [T, N] or None) -> [T].
Weighted = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Metric:
    """A metric of one's own: ``function(outputs, targets) -> [T]``, outputs [T, N, *output] of T adapted models.

    ``higher_is_better`` is what meta-training goes by when it keeps the best weights.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """[T, N, *output] -> [T], weighted over examples."""
    each = values.flatten(2).mean(-1) if values.ndim > 2 else values
    return each.mean(-1) if weights is None else (weights * each).sum(-1) / weights.sum(-1)


def accuracy(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The part of examples whose largest of C outputs is that of their class; of one output: whose sign is right.

    Targets are classes [T, N], or [T, N, *positions] for outputs [T, N, C, *positions]; for one output 0 or 1, [T, N]
    or [T, N, 1].
    """
    if targets.is_floating_point():
        return _mean(((outputs > 0) == (targets > 0.5)).to(outputs.dtype), weights)
    return _mean((outputs.argmax(2) == targets).to(outputs.dtype), weights)


def rmse(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The root of a task's mean squared error."""
    return _mean((outputs - targets) ** 2, weights).sqrt()


def mae(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """A task's mean absolute error."""
    return _mean((outputs - targets).abs(), weights)


def r2(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - (squared error) / (squared deviation of the task's query targets from their mean); not a number where these
    are all the same."""
    w = (
        torch.ones_like(targets[..., :1])
        if weights is None
        else weights.reshape(*weights.shape, *(1,) * (targets.ndim - 2))
    )
    w = w if targets.ndim > 2 else w.squeeze(-1).expand_as(targets)
    centre = (w * targets).sum(1, keepdim=True) / w.sum(1, keepdim=True)
    deviation = _mean((targets - centre) ** 2, weights)
    return torch.where(deviation > 0, 1 - _mean((outputs - targets) ** 2, weights) / deviation, torch.nan)


BUILT_IN: Mapping[str, tuple[Weighted, bool]] = {
    "accuracy": (accuracy, True),
    "rmse": (rmse, False),
    "mae": (mae, False),
    "r2": (r2, True),
}
#: Computed by the learner itself.
LOSS = "loss"


def usual(learner: MAML, targets: Tensor) -> tuple[str, ...]:
    """The metrics for targets of this kind."""
    named, _ = losses.resolve(learner.loss, learner.reduction)
    if not targets.is_floating_point() or (named is not None and named.kind in ("bce_with_logits", "dice")):
        return LOSS, "accuracy"
    return LOSS, "rmse", "mae", "r2"


def resolve(metrics: Iterable[Any]) -> dict[str, Weighted | None]:
    """Names, functions (outputs, targets) -> [T] and :class:`Metric` objects, by name; None stands for the loss."""
    found: dict[str, Weighted | None] = {}
    for given in metrics:
        if given == LOSS:
            found[LOSS] = None
        elif isinstance(given, str):
            if given not in BUILT_IN:
                raise ValueError(f"metrics: expected {LOSS}, {', '.join(BUILT_IN)} or a function, got {given!r}")
            found[given] = BUILT_IN[given][0]
        elif isinstance(given, Metric):
            found[given.name] = _without_weights(given.function)
        elif callable(given):
            found[getattr(given, "__name__", type(given).__name__)] = _without_weights(given)
        else:
            raise TypeError(f"metrics: expected names, functions or metafast.Metric, got {type(given).__name__}")
    return found


def direction(metric: Any) -> tuple[str, bool]:
    """Name of the one metric that training goes by, and whether more of it is better."""
    if isinstance(metric, Metric):
        return metric.name, metric.higher_is_better
    if metric == LOSS:
        return LOSS, False
    if metric in BUILT_IN:
        return str(metric), BUILT_IN[metric][1]
    raise ValueError(
        f"metric: expected {LOSS}, {', '.join(BUILT_IN)} or metafast.Metric(name, function, higher_is_better), "
        f"got {metric!r}"
    )


def _without_weights(function: Callable[[Tensor, Tensor], Tensor]) -> Weighted:
    return lambda outputs, targets, weights: function(outputs, targets)
