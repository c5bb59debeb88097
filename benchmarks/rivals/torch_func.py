"""torch.func: vmap over tasks of the inner loop, differentiated in the forms in which a user may write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from benchmarks.rivals import Forms
from benchmarks.workloads import Problem

Params = dict[str, Tensor]


class BatchNorm(nn.Module):
    """Batch normalisation from mean and variance: under vmap, torch's own has a wrong second derivative."""

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return (x - mean) * scale + self.bias[:, None, None]


def network(model: nn.Module) -> nn.Module:
    """The same network on the same parameters, its norms written out."""
    layers = {name: BatchNorm(m) if isinstance(m, nn.BatchNorm2d) else m for name, m in model.named_children()}
    written_out = nn.Sequential()
    for name, layer in layers.items():
        written_out.add_module(name, layer)
    return written_out


def task_loss(problem: Problem) -> Callable[[Params, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The query loss of one task after its inner loop, as a function of the initial parameters."""
    w, model, loss = problem.workload, network(problem.model), problem.loss

    def evaluate(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, params, (x,)), y)

    def adapted_loss(params: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        for _ in range(w.steps):
            gradients = grad(evaluate)(params, xs, ys)
            if w.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            params = {name: p - w.lr * gradients[name] for name, p in params.items()}
        return evaluate(params, xq, yq)

    return adapted_loss


def meta_gradient(problem: Problem) -> Forms:
    data = (*problem.support, *problem.query)
    loss = task_loss(problem)
    batched = vmap(loss, in_dims=(None, 0, 0, 0, 0))
    of_mean = grad(lambda params, *data: batched(params, *data).mean())
    of_each = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))
    parameters = problem.parameters
    fixed = {name: p.detach() for name, p in parameters.items()}

    def autograd() -> list[Tensor]:
        return list(torch.autograd.grad(batched(parameters, *data).mean(), list(parameters.values())))

    return {
        "autograd of vmap": autograd,
        "grad of vmap": lambda: list(of_mean(fixed, *data).values()),
        "vmap of grad": lambda: [g.mean(0) for g in of_each(fixed, *data).values()],
    }


def product(problem: Problem, forward: bool) -> Callable[[Params, Params, Tensor, Tensor], Params]:
    """H v of one task: forward over reverse, or reverse over reverse."""
    model, loss = network(problem.model), problem.loss

    def evaluate(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, params, (x,)), y)

    def forward_over_reverse(params: Params, vectors: Params, x: Tensor, y: Tensor) -> Params:
        result: Params = jvp(lambda p: grad(evaluate)(p, x, y), (params,), (vectors,))[1]
        return result

    def reverse_over_reverse(params: Params, vectors: Params, x: Tensor, y: Tensor) -> Params:
        def along(p: Params) -> Tensor:
            gradients = grad(evaluate)(p, x, y)
            return sum(
                ((gradients[name] * vectors[name]).sum() for name in p), torch.zeros((), dtype=x.dtype, device=x.device)
            )

        result: Params = grad(along)(params)
        return result

    return forward_over_reverse if forward else reverse_over_reverse


def hessian_vector(problem: Problem) -> Forms:
    def form(forward: bool) -> Callable[[], list[Tensor]]:
        batched = vmap(product(problem, forward))
        return lambda: list(batched(problem.per_task, problem.vectors, *problem.support).values())

    return {"forward over reverse": form(True), "reverse over reverse": form(False)}
