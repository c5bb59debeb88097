"""torch.compile of the torch.func forms: one graph of the whole meta-gradient, at the default settings of Inductor; on
a GPU recorded in CUDA graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from benchmarks.rivals import Forms, Unable
from benchmarks.rivals.torch_func import PER_TASK, product, task_loss, together, unknown
from benchmarks.workloads import Problem

#: Inductor's mode, by device.
MODES = {"cpu": None, "cuda": "reduce-overhead"}
#: Most inner steps in a graph that is worth waiting for.
UNROLLED = 100


def compiled_form(function: Any, problem: Problem) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=False, mode=MODES[problem.workload.device])


def meta_gradient(problem: Problem) -> Forms:
    if problem.workload.steps > UNROLLED:
        raise Unable(f"its graph holds every inner step, too large a one beyond {UNROLLED} steps")
    torch.compiler.reset()
    batched = vmap(task_loss(problem), in_dims=PER_TASK)
    data = (*problem.support, *problem.query)
    fixed = {name: p.detach() for name, p in problem.parameters.items()}

    def loss(params: dict[str, Tensor], rates: dict[str, Tensor], *data: Tensor) -> Tensor:
        return batched(params, rates, *data).mean()

    whole = compiled_form(grad(loss, argnums=unknown(problem)), problem)
    return {"grad of vmap": lambda: together(whole(fixed, problem.rates, *data))}


def hessian_vector(problem: Problem) -> Forms:
    torch.compiler.reset()
    compiled = compiled_form(vmap(product(problem, forward=False)), problem)
    return {
        "reverse over reverse": lambda: list(compiled(problem.per_task, problem.vectors, *problem.support).values())
    }
