"""The outer loop's optimiser and learning-rate schedule, made from what the user gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metafast import optim

#: What ``optimizer="..."`` may say.
NAMES: Mapping[str, Callable[..., Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
DEFAULT_RATE = 0.001


class Budget:
    """How much of a run is done: of its meta-steps or of its seconds, whichever is further."""

    def __init__(self, max_iters: int | None, seconds: float | None) -> None:
        self.max_iters, self.seconds = max_iters, seconds

    def fraction(self, meta_step: int, seconds: float) -> float:
        spent = [0.0]
        if self.max_iters is not None:
            spent.append(meta_step / self.max_iters if self.max_iters else 1.0)
        if self.seconds is not None:
            spent.append(seconds / self.seconds if self.seconds else 1.0)
        return min(1.0, max(spent))


class Cosine(LRScheduler):
    """From the optimiser's rate to zero over the budget: rate (1 + cos(pi f)) / 2 when the part f of it is spent.

    torch's ``CosineAnnealingLR`` counts steps; a budget may be one of time. ``seconds`` is for the loop to set.
    """

    def __init__(self, optimizer: Optimizer, budget: Budget) -> None:
        self.budget, self.seconds = budget, 0.0
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        fraction = self.budget.fraction(self.last_epoch, self.seconds)
        return [rate * (1 + math.cos(math.pi * fraction)) / 2 for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs, "seconds": self.seconds}


class Outer:
    """Takes the meta-gradients: clips them, lets the optimiser step, then the schedule."""

    def __init__(
        self,
        learner: nn.Module,
        optimizer: Any,
        scheduler: Any,
        *,
        rate: float | None,
        weight_decay: float,
        clip_norm: float | None,
        budget: Budget,
    ) -> None:
        named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError("learner: it has no parameter that requires a gradient, so there is nothing to train")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: expected a positive norm, got {clip_norm}")
        self.names, self.parameters = list(named), list(named.values())
        self.clip_norm = clip_norm
        self.optimizer = _optimizer(optimizer, self.parameters, rate, weight_decay)
        self.scheduler = _scheduler(scheduler, self.optimizer, budget)
        self._each_step = None if isinstance(self.scheduler, ReduceLROnPlateau) else self.scheduler

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One meta-step with the gradients of all parameters that require one, in their order."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        if self._each_step is not None:
            self._each_step.step()

    def begin_block(self, seconds: float) -> None:
        if isinstance(self.scheduler, Cosine):
            self.scheduler.seconds = seconds

    def validated(self, value: float) -> None:
        """A schedule that goes by validation is told of one."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(value)

    def finish(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, those of the optimiser itself, not copies."""
        return {
            "class": type(self.optimizer).__name__,
            "shapes": [list(p.shape) for group in self.optimizer.param_groups for p in group["params"]],
            "state": self.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any], schedule: Mapping[str, Any]) -> None:
        """ValueError, and nothing changed, if they are of another optimiser, model or schedule."""
        own = self.state()
        for part, what in (("class", "optimiser"), ("shapes", "parameters' shapes")):
            if state.get(part) != own[part]:
                raise ValueError(f"{what}: expected {own[part]}, found {state.get(part)}")
        kind = "" if self.scheduler is None else type(self.scheduler).__name__
        if schedule.get("class", "") != kind:
            raise ValueError(f"scheduler: expected {kind or 'none'}, found {schedule.get('class') or 'none'}")
        self.optimizer.load_state_dict(dict(state["state"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(schedule["state"]))

    def schedule(self) -> dict[str, Any]:
        if self.scheduler is None:
            return {}
        return {"class": type(self.scheduler).__name__, "state": self.scheduler.state_dict()}


def _optimizer(given: Any, parameters: list[nn.Parameter], rate: float | None, weight_decay: float) -> Optimizer:
    if isinstance(given, Optimizer):
        if rate is not None or weight_decay:
            raise ValueError("meta_lr, weight_decay: they are settings of the optimiser; give them to it")
        known = {id(p) for p in parameters}
        strangers = [list(p.shape) for group in given.param_groups for p in group["params"] if id(p) not in known]
        if strangers:
            raise ValueError(
                f"optimizer: it holds parameters that are not the learner's, of shapes {strangers[:3]}; "
                "make it from learner.parameters()"
            )
        return given
    if given is None or isinstance(given, str):
        name = "adam" if given is None else given.lower()
        if name not in NAMES:
            raise ValueError(f"optimizer: expected one of {', '.join(NAMES)}, a torch.optim optimiser, got {given!r}")
        settings = {"weight_decay": weight_decay} if weight_decay else {}
        return NAMES[name](parameters, lr=DEFAULT_RATE if rate is None else rate, **settings)
    if callable(given):
        if rate is not None or weight_decay:
            raise ValueError("meta_lr, weight_decay: let the function that makes the optimiser set them")
        made = given(parameters)
        if isinstance(made, Optimizer):
            return made
        raise TypeError(f"optimizer: the function made no torch optimiser but {type(made).__name__}")
    raise TypeError(f"optimizer: expected a torch.optim optimiser, a function or a name, got {type(given).__name__}")


def _scheduler(given: Any, optimizer: Optimizer, budget: Budget) -> LRScheduler | ReduceLROnPlateau | None:
    if given is None:
        return None
    if given == "cosine":
        return Cosine(optimizer, budget)
    made = given if isinstance(given, (LRScheduler, ReduceLROnPlateau)) else None
    if made is None and callable(given):
        made = given(optimizer)
    if not isinstance(made, (LRScheduler, ReduceLROnPlateau)):
        raise TypeError(
            f"scheduler: expected 'cosine', a scheduler of torch.optim.lr_scheduler, or a function that makes one from "
            f"the optimiser, got {given!r}"
        )
    if made.optimizer is not optimizer:
        raise ValueError("scheduler: it is of another optimiser than the one given")
    return made


def nonfinite(tensors: Iterable[Tensor]) -> list[int]:
    """Positions of those with an element that is not finite."""
    return [i for i, tensor in enumerate(tensors) if not bool(torch.isfinite(tensor).all())]
