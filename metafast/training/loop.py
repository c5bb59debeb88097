"""The outer loop: draw a meta-batch, take its meta-gradient, let the optimiser step; and say how it goes, seldom.

One loop serves every task distribution. What a meta-step costs beyond the learner and the optimiser is a few
microseconds: no scalar is read, nothing printed or drawn but at the end of a block of meta-steps.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from metafast.learner import MAML
from metafast.tasks.episode import Episode
from metafast.training.outer_adam import Adam

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many meta-steps, or so many seconds, whichever comes first."""

    meta_steps: int | None = None
    seconds: float | None = None

    def fraction(self, step: int, seconds: float) -> float:
        """The part of the budget that is spent, at most 1."""
        spent = [0.0]
        if self.meta_steps is not None:
            spent.append(step / self.meta_steps if self.meta_steps else 1.0)
        if self.seconds is not None:
            spent.append(seconds / self.seconds if self.seconds else 1.0)
        return min(1.0, max(spent))


@dataclass(frozen=True)
class Report:
    """What happened since the last report."""

    step: int  # meta-steps done
    seconds: float  # spent in training, earlier runs of a resumed one included
    fraction: float  # of the budget
    meta_steps: int  # in this block
    before: float  # mean support loss before the first inner step
    after: float  # mean query loss after the last


def train(
    learner: MAML,
    optimizer: Adam,
    episodes: Iterator[Episode],
    *,
    rate: float,
    budget: Budget,
    report: Callable[[Report], None],
    step: int = 0,
    seconds: float = 0.0,
    block: int = 200,
    schedule: Schedule = "constant",
) -> tuple[int, float, bool]:
    """Meta-train from meta-step ``step`` until the budget is spent or the user interrupts.

    ``episodes`` must begin with those of meta-step ``step``. Returns the meta-steps done, the seconds spent, and
    whether it was interrupted; in any case the weights are those after a whole meta-step. ``report`` is called after
    every ``block`` meta-steps; the time it takes counts. The learning rate is ``rate``, times
    (1 + cos(pi f)) / 2 with the cosine schedule, where f is the part of the budget spent when the block begins.
    """
    clock = time.perf_counter() - seconds
    with Interruption() as interruption:
        while (fraction := budget.fraction(step, time.perf_counter() - clock)) < 1 and not interruption:
            # Blocks begin at multiples of their length, so that a resumed run has the same ones.
            begin = step - step % block
            end = begin + block if budget.meta_steps is None else min(begin + block, budget.meta_steps)
            if budget.seconds is None:
                fraction = budget.fraction(begin, 0.0)
            current = rate * (1 + math.cos(math.pi * fraction)) / 2 if schedule == "cosine" else rate
            before: list[Tensor] = []
            after: list[Tensor] = []
            first = step
            while step < end and not interruption.requested:
                out, gradients = learner.meta_gradient(*next(episodes))
                optimizer.step(gradients, current)
                before.append(out.support_loss)
                after.append(out.loss)
                step += 1
            seconds = time.perf_counter() - clock
            if step > first:
                done = budget.fraction(step, seconds)
                report(Report(step, seconds, done, step - first, _first(before), float(torch.stack(after).mean())))
    return step, time.perf_counter() - clock, bool(interruption)


def _first(support_losses: list[Tensor]) -> float:
    """Mean loss before the first of the K inner steps; not a number if there is none."""
    stacked = torch.stack(support_losses)  # [meta-steps, T, K]
    return float(stacked[..., 0].mean()) if stacked.shape[-1] else math.nan


class Interruption:
    """While it lasts, SIGINT and SIGTERM are requests, which the loop grants between two meta-steps.

    An exception in the middle of an optimiser's step would leave half the weights updated. A second SIGINT raises
    KeyboardInterrupt as usual, for who cannot wait.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.requested

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGINT, signal.SIGTERM):
                self._former[which] = signal.signal(which, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._former.items():
            signal.signal(which, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
