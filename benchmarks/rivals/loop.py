"""A loop over tasks with ``create_graph=True``: what the MAML libraries do, and in float64 the judge of all results."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.rivals import Forms
from benchmarks.updates import STATES, corrections, update
from benchmarks.workloads import LEARNT, Problem


def meta_gradient(problem: Problem) -> Forms:
    w, model, loss = problem.workload, problem.model, problem.loss
    names, parameters = list(problem.parameters), list(problem.parameters.values())
    moving = [i for i, name in enumerate(names) if fnmatchcase(name, w.adapts)]
    learnt = w.rates == LEARNT
    rates = {name: rate.detach().requires_grad_(learnt) for name, rate in problem.rates.items()}
    unknowns = [*parameters, *rates.values()] if learnt else parameters

    def step() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in unknowns]
        for xs, ys, xq, yq in zip(*problem.support, *problem.query, strict=True):
            adapted: list[Tensor] = list(parameters)
            states = {i: (torch.zeros_like(parameters[i]),) * STATES[w.rule] for i in moving}
            for correction in corrections(w.rule, w.steps):
                inner = loss(functional_call(model, dict(zip(names, adapted, strict=True)), (xs,)), ys)
                gradients = torch.autograd.grad(inner, [adapted[i] for i in moving], create_graph=not w.first_order)
                for i, g in zip(moving, gradients, strict=True):
                    rate = rates.get(names[i], w.lr)
                    adapted[i], states[i] = update(torch, w.rule, adapted[i], g, states[i], rate, correction)
            outer = loss(functional_call(model, dict(zip(names, adapted, strict=True)), (xq,)), yq)
            for sum_, g in zip(total, torch.autograd.grad(outer / w.tasks, unknowns), strict=True):
                sum_ += g
        return total

    return {"": step}


def hessian_vector(problem: Problem) -> Forms:
    model, loss, names = problem.model, problem.loss, list(problem.per_task)

    def step() -> list[Tensor]:
        products = []
        for task, (x, y) in enumerate(zip(*problem.support, strict=True)):
            parameters = [problem.per_task[name][task].detach().requires_grad_() for name in names]
            value = loss(functional_call(model, dict(zip(names, parameters, strict=True)), (x,)), y)
            gradients = torch.autograd.grad(value, parameters, create_graph=True)
            vectors = [problem.vectors[name][task] for name in names]
            products.append(torch.autograd.grad(gradients, parameters, vectors))
        return [torch.stack(parts) for parts in zip(*products, strict=True)]

    return {"": step}
