"""TorchOpt's MetaSGD: a differentiable optimiser on the model itself, which every task sets back."""

from __future__ import annotations

import torch
import torchopt

from benchmarks.rivals import Forms, Unable
from benchmarks.updates import ADAM, FRICTION, MOMENTUM
from benchmarks.workloads import ONE, Problem


def meta_gradient(problem: Problem) -> Forms:
    w, model, loss = problem.workload, problem.model, problem.loss
    if w.first_order:
        raise Unable("MetaSGD has no first-order form")
    if w.rates != ONE:
        raise Unable("takes one rate for all parameters")
    if w.rule == ADAM:
        raise Unable("its MetaAdam gives NaN where a gradient is exactly zero")
    parameters = list(model.parameters())
    optimiser = torchopt.MetaSGD(model, lr=w.lr, momentum=FRICTION if w.rule == MOMENTUM else 0.0)
    start = torchopt.extract_state_dict(model, by="reference"), torchopt.extract_state_dict(optimiser)

    def step() -> list[torch.Tensor]:
        for p in parameters:
            p.grad = None
        for xs, ys, xq, yq in zip(*problem.support, *problem.query, strict=True):
            for _ in range(w.steps):
                optimiser.step(loss(model(xs), ys))
            (loss(model(xq), yq) / w.tasks).backward()
            torchopt.recover_state_dict(model, start[0])
            torchopt.recover_state_dict(optimiser, start[1])
        return [p.grad for p in parameters]

    return {"": step}
