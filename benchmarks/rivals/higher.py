"""higher: a functional copy of the model and a differentiable optimiser for every task."""

from __future__ import annotations

import higher
import torch

from benchmarks.rivals import Forms, Unable
from benchmarks.updates import ADAM, FRICTION, MOMENTUM
from benchmarks.workloads import ONE, Problem


def meta_gradient(problem: Problem) -> Forms:
    w, model, loss = problem.workload, problem.model, problem.loss
    if w.first_order:
        raise Unable("without higher-order gradients it keeps no graph back to the initial parameters")
    if w.rates != ONE:
        raise Unable("takes one rate for all elements of a parameter")
    if w.rule == ADAM:
        raise Unable("its Adam is not that of torch.optim: eps is added before the bias correction")
    parameters = list(model.parameters())
    momentum = FRICTION if w.rule == MOMENTUM else 0.0
    optimiser = torch.optim.SGD(parameters, lr=w.lr, momentum=momentum)

    def step() -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        for xs, ys, xq, yq in zip(*problem.support, *problem.query, strict=True):
            with higher.innerloop_ctx(model, optimiser, copy_initial_weights=False) as (learner, inner):
                for _ in range(w.steps):
                    inner.step(loss(learner(xs), ys))
                (loss(learner(xq), yq) / w.tasks).backward()
        return [p.grad for p in parameters]

    return {"": step}
