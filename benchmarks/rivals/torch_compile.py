"""torch.compile of the torch.func forms: one graph of the whole meta-gradient, at the default settings of Inductor; on
a GPU recorded in CUDA graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from benchmarks.rivals import Forms
from benchmarks.rivals.torch_func import product, task_loss
from benchmarks.workloads import Problem

#: Inductor's mode, by device.
MODES = {"cpu": None, "cuda": "reduce-overhead"}


def compiled_form(function: Any, problem: Problem) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=False, mode=MODES[problem.workload.device])


def meta_gradient(problem: Problem) -> Forms:
    torch.compiler.reset()
    batched = vmap(task_loss(problem), in_dims=(None, 0, 0, 0, 0))
    data = (*problem.support, *problem.query)
    fixed = {name: p.detach() for name, p in problem.parameters.items()}

    def loss(params: dict[str, Tensor], *data: Tensor) -> Tensor:
        return batched(params, *data).mean()

    whole = compiled_form(grad(loss), problem)
    return {"grad of vmap": lambda: list(whole(fixed, *data).values())}


def hessian_vector(problem: Problem) -> Forms:
    torch.compiler.reset()
    compiled = compiled_form(vmap(product(problem, forward=False)), problem)
    return {
        "reverse over reverse": lambda: list(compiled(problem.per_task, problem.vectors, *problem.support).values())
    }
