"""learn2learn's MAML: a clone of the model for every task."""

from __future__ import annotations

import torch
from learn2learn.algorithms import MAML

from benchmarks.rivals import Forms, Unable
from benchmarks.updates import SGD
from benchmarks.workloads import ONE, Problem


def meta_gradient(problem: Problem) -> Forms:
    w, loss = problem.workload, problem.loss
    if (w.rule, w.rates) != (SGD, ONE):
        raise Unable("MAML has plain gradient descent alone")
    maml = MAML(problem.model, lr=w.lr, first_order=w.first_order)
    parameters = list(maml.parameters())

    def step() -> list[torch.Tensor]:
        maml.zero_grad(set_to_none=True)
        for xs, ys, xq, yq in zip(*problem.support, *problem.query, strict=True):
            learner = maml.clone()
            for _ in range(w.steps):
                learner.adapt(loss(learner(xs), ys))
            (loss(learner(xq), yq) / w.tasks).backward()
        return [p.grad for p in parameters]

    return {"": step}
