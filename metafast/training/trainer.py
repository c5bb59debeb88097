"""The outer loop: draw a meta-batch, take its meta-gradient, let the optimiser step; and look at how it goes, seldom.

Meta-steps are done in blocks. No scalar is read within one, nothing written or drawn: so a meta-step costs a few
microseconds beyond the learner and the optimiser. Where a block ends makes no difference to a bit of the weights.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from metafast.learner import MAML
from metafast.training import guard
from metafast.training.evaluation import Estimate
from metafast.training.history import History, Row
from metafast.training.interruption import Interruption
from metafast.training.outer import Budget, Outer, nonfinite
from metafast.training.processes import Alone
from metafast.training.progress import Show, bar
from metafast.training.records import Records
from metafast.training.snapshot import Snapshot, weights
from metafast.training.sources import Source

#: Seconds after which a block ends in any case, so that progress is shown and a slow run can be stopped.
LONGEST_BLOCK = 5.0


class TrainingState(NamedTuple):
    """What a callback is given. ``stop("reason")`` ends the training after the present block."""

    learner: MAML
    optimizer: Optimizer
    meta_step: int
    history: History
    stop: Callable[[str], None]


@dataclass(frozen=True)
class Every:
    """A callback for every ``meta_steps`` meta-steps exactly, where a plain one is called after every block."""

    meta_steps: int
    function: Callable[[TrainingState], Any]

    def __post_init__(self) -> None:
        if self.meta_steps < 1:
            raise ValueError(f"Every: expected at least 1 meta-step, got {self.meta_steps}")


@dataclass(frozen=True)
class Validation:
    """Judges the learner on held-out tasks, the same each time."""

    run: Callable[[MAML], Estimate]
    metric: str
    higher_is_better: bool
    every: int

    def better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than


@dataclass(frozen=True)
class Plan:
    """When what happens."""

    budget: Budget
    block: int
    validation: Validation | None = None
    target: float | None = None
    patience: int | None = None
    save_interval: int | None = None
    callbacks: Sequence[Callable[[TrainingState], Any] | Every] = ()

    def end(self, step: int) -> int:
        """The meta-step at which a block that begins at ``step`` ends at the latest."""
        lengths = [self.block, *(c.meta_steps for c in self.callbacks if isinstance(c, Every))]
        lengths += [self.validation.every] if self.validation else []
        lengths += [self.save_interval] if self.save_interval else []
        ends = [step - step % length + length for length in lengths]
        return min(ends if self.budget.max_iters is None else [*ends, self.budget.max_iters])


class Trainer:
    """A run of meta-training, from where ``history`` ends until it is stopped."""

    def __init__(
        self,
        learner: MAML,
        outer: Outer,
        source: Source,
        plan: Plan,
        history: History,
        records: Records,
        processes: Alone,
        divergence: guard.Divergence,
    ) -> None:
        self.learner, self.outer, self.source, self.plan = learner, outer, source, plan
        self.history, self.records, self.processes, self.divergence = history, records, processes, divergence
        self.meta_step = history.meta_steps
        self._clock = time.perf_counter() - history.seconds
        self._wishes: list[str] = []
        self._episodes: Iterator[Any] = iter(())

    def run(self, title: str, progress: bool) -> None:
        begun = self.plan.budget.fraction(self.meta_step, self.history.seconds)
        with Interruption() as interruption, bar(title, begun, progress) as show:
            self._clock = time.perf_counter() - self.history.seconds
            self._episodes = self.source(self.meta_step)
            self.records.begin(self.history, self.divergence)
            healthy = self._snapshot()
            stopped, reason = self._stops(interruption)
            while not stopped:
                start = self._snapshot()
                if self.divergence.high == 0:
                    healthy = start
                try:
                    block = self._block(interruption)
                except Exception:
                    if not nonfinite(self.outer.parameters):  # else the learner has met what went wrong before
                        self._keep(start)
                        raise
                    block = None
                if block is None or not guard.sound(block.losses, self.outer):
                    reason = self._replay(start)
                    stopped = "diverged"
                elif self.divergence.judge(block.row["before"], block.row["after"]):
                    reason = self.divergence.reason(self.meta_step)
                    stopped = "diverged"
                    self._put_back(healthy)
                else:
                    self._look(block.row, show)
                    stopped, reason = self._stops(interruption)
                self.history.meta_steps, self.history.seconds = self.meta_step, time.perf_counter() - self._clock
                if not stopped and self.records.due(self.meta_step, self.plan.save_interval):
                    self.records.save(self.history, self.divergence)
        self.outer.finish()
        self.history.stopped, self.history.reason = stopped, reason
        if stopped in ("max_iters", "seconds", "callback"):
            self._validate_last()
        if stopped == "diverged":
            warnings.warn(f"training stopped: {reason}", RuntimeWarning, stacklevel=3)
        self.records.finish(self.history, self.divergence)

    # ---- A block of meta-steps ---------------------------------------------------------------
    def _block(self, interruption: Interruption) -> Block:
        begun = time.perf_counter()
        first, end = self.meta_step, self.plan.end(self.meta_step)
        limit = begun + LONGEST_BLOCK
        if self.plan.budget.seconds is not None:
            limit = min(limit, self._clock + self.plan.budget.seconds)
        before: list[Tensor] = []
        losses: list[Tensor] = []
        self.outer.begin_block(begun - self._clock)
        take, step = self.processes.gradient, self.outer.step

        def pause() -> bool:
            return interruption.requested or time.perf_counter() > limit

        for episode in self._episodes:
            taken = take(self.learner, episode, pause)
            step(taken.gradients)
            before.append(taken.support_loss)
            losses.append(taken.loss)
            self.meta_step += 1
            if self.meta_step == end or taken.asked:
                break
        else:
            if not losses:
                raise ValueError(
                    f"tasks: they ended after {self.meta_step} meta-steps; give a collection that can be gone through "
                    "again, a function start -> iterator, or a smaller max_iters"
                )
        stacked = torch.stack(losses)
        now = time.perf_counter()
        row: Row = {
            "kind": "train",
            "meta_step": self.meta_step,
            "seconds": now - self._clock,
            "rate": (self.meta_step - first) / (now - begun),
            "before": float(torch.cat(before)[:, :1].mean()),
            "after": float(stacked.mean()),
            "lr": self.outer.rate,
        }
        return Block(stacked, row)

    def _replay(self, start: Snapshot) -> str:
        """Do the block that began at ``start`` again, and stop before the meta-step that goes wrong; say what does."""
        failed = self.meta_step
        self._put_back(start)
        self._episodes = self.source(self.meta_step)
        while self.meta_step < failed:
            kept = self._snapshot()
            taken = self.processes.gradient(self.learner, next(self._episodes), lambda: False)
            wrong = guard.what_is_wrong(taken, self.outer)
            if not wrong:
                self.outer.step(taken.gradients)
                wrong = guard.what_went_wrong(self.outer)
            if wrong:
                self._put_back(kept)
                return f"at meta-step {kept.meta_step + 1} {wrong}; the state is that after {kept.meta_step} meta-steps"
            self.meta_step += 1
        self._put_back(start)
        return (
            f"between meta-steps {start.meta_step + 1} and {failed} a loss or a parameter was not finite, though not "
            f"when they were done again; the state is that after {start.meta_step} meta-steps"
        )

    def _keep(self, start: Snapshot) -> None:
        """Write down the state from before a block in which the tasks or the model raised an error."""
        self._put_back(start)
        self.history.meta_steps = self.meta_step
        self.records.save(self.history, self.divergence)

    def _snapshot(self) -> Snapshot:
        return Snapshot.take(self.learner, self.outer, self.meta_step)

    def _put_back(self, snapshot: Snapshot) -> None:
        snapshot.put_back(self.learner, self.outer)
        self.meta_step = snapshot.meta_step

    # ---- Between blocks ----------------------------------------------------------------------
    def _look(self, row: Row, show: Show) -> None:
        """Keep the row of a block, validate and call back if it is time."""
        history = self.history
        history.meta_steps, history.seconds = self.meta_step, row["seconds"]
        self._add(row)
        validation = self.plan.validation
        if validation is not None and self.meta_step % validation.every == 0:
            self._validate(validation)
            self.outer.validated(history.validation[-1]["mean"])
        state = TrainingState(self.learner, self.outer.optimizer, self.meta_step, history, self._wishes.append)
        for callback in self.plan.callbacks:
            if not isinstance(callback, Every):
                callback(state)
            elif self.meta_step % callback.meta_steps == 0:
                callback.function(state)
        show(self.plan.budget.fraction(self.meta_step, row["seconds"]), _facts(history))

    def _validate(self, validation: Validation) -> None:
        """Judge the weights, and keep them if they are the best so far."""
        estimate = validation.run(self.learner)
        history, value = self.history, estimate.mean
        row = {"kind": "validation", "meta_step": self.meta_step, "metric": validation.metric, **vars(estimate)}
        self._add(row)
        if not math.isnan(value) and (history.best is None or validation.better(value, history.best["value"])):
            history.best = {"meta_step": self.meta_step, "value": value, "metric": validation.metric}
            history.best_state = weights(self.learner)
            self.records.save_best(history)

    def _validate_last(self) -> None:
        """So that the weights that training ends with are judged too."""
        rows = self.history.validation
        if self.plan.validation is not None and (not rows or rows[-1]["meta_step"] != self.meta_step):
            self._validate(self.plan.validation)

    def _add(self, row: Row) -> None:
        self.history.add(row)
        self.records.add(row)

    def _stops(self, interruption: Interruption) -> tuple[str, str]:
        """Why training is to stop now, as a word and as a sentence; nothing if it is not."""
        budget, plan, history = self.plan.budget, self.plan, self.history
        spent = budget.seconds is not None and time.perf_counter() - self._clock >= budget.seconds
        interrupted, spent, called = self.processes.any(interruption.requested, spent, bool(self._wishes))
        if interrupted:
            return "interrupted", f"interrupted after meta-step {self.meta_step}"
        if called:
            return "callback", str(self._wishes[0]) if self._wishes else "a callback asked for it"
        validation = plan.validation
        if validation is not None and history.best is not None:
            value = history.best["value"]
            if plan.target is not None and (value == plan.target or validation.better(value, plan.target)):
                return "target", f"validation {validation.metric} reached {value:.4g}, the target being {plan.target:g}"
            stale = sum(row["meta_step"] > history.best["meta_step"] for row in history.validation)
            if plan.patience is not None and stale >= plan.patience:
                return "patience", f"validation {validation.metric} has not improved for {stale} validations"
        if spent:
            return "seconds", f"{budget.seconds:g} seconds are spent"
        if budget.max_iters is not None and self.meta_step >= budget.max_iters:
            return "max_iters", f"{budget.max_iters} meta-steps are done"
        return "", ""


class Block(NamedTuple):
    losses: Tensor  # [meta-steps]
    row: Row


def _facts(history: History) -> Mapping[str, str]:
    row = history.train[-1]
    facts = {
        "meta-step": str(row["meta_step"]),
        "rate": f"{row['rate']:.4g}/s",
        "loss": f"{row['before']:.3f} -> {row['after']:.3f}",
    }
    if history.validation:
        last = history.validation[-1]
        facts[f"validation {last['metric']}"] = f"{last['mean']:.4g}"
    return facts
