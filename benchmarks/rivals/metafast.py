"""metafast, through its public interface: the gradient alone, as the functional rivals give it."""

from __future__ import annotations

import torch

import metafast as mf
from benchmarks.rivals import Forms
from benchmarks.workloads import Problem


def learner(problem: Problem, memory: str = "auto") -> mf.MAML:
    w = problem.workload
    return mf.MAML(
        problem.model, lr=w.lr, steps=w.steps, loss=w.loss, first_order=w.first_order, memory=memory, strict=True
    )


def meta_gradient(problem: Problem, memory: str = "auto") -> Forms:
    maml = learner(problem, memory)
    return {"": lambda: maml.meta_gradient(problem.support, problem.query)[1]}


def hessian_vector(problem: Problem) -> Forms:
    loss = problem.workload.loss

    def step() -> list[torch.Tensor]:
        product = mf.hvp(problem.model, problem.per_task, problem.support, problem.vectors, loss=loss, strict=True)
        return list(product.values())

    return {"": step}
