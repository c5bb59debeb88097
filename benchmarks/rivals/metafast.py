"""metafast, through its public interface: the gradient alone, as the functional rivals give it."""

from __future__ import annotations

import torch

import metafast as mf
from benchmarks.rivals import Forms
from benchmarks.updates import ADAM, FRICTION, MOMENTUM
from benchmarks.workloads import LEARNT, Problem
from metafast.rules.rule import Rule

#: What a user passes for each policy.
POLICIES: dict[str, str | mf.Checkpoint] = {"checkpoint": mf.Checkpoint()}


def rule(problem: Problem) -> Rule:
    w = problem.workload
    lr = problem.rates or w.lr
    learn = ("lr",) if w.rates == LEARNT else ()
    if w.rule == ADAM:
        return mf.Adam(lr, learn=learn)
    return mf.SGD(lr, momentum=FRICTION if w.rule == MOMENTUM else 0.0, learn=learn)


def learner(problem: Problem, memory: str | None = None) -> mf.MAML:
    w = problem.workload
    memory = memory or w.memory
    return mf.MAML(
        problem.model, rule=rule(problem), steps=w.steps, loss=w.loss, first_order=w.first_order, strict=True,
        memory=POLICIES.get(memory, memory), adapt_params=None if w.adapts == "*" else w.adapts,
    )  # fmt: skip


def meta_gradient(problem: Problem, memory: str | None = None) -> Forms:
    """``memory`` takes the place of the workload's policy."""
    maml = learner(problem, memory)
    return {"": lambda: maml.meta_gradient(problem.support, problem.query)[1]}


def hessian_vector(problem: Problem) -> Forms:
    loss = problem.workload.loss

    def step() -> list[torch.Tensor]:
        product = mf.hvp(problem.model, problem.per_task, problem.support, problem.vectors, loss=loss, strict=True)
        return list(product.values())

    return {"": step}
