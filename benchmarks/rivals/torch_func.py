"""torch.func: vmap over tasks of the inner loop, differentiated in the forms in which a user may write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from benchmarks.rivals import Forms
from benchmarks.updates import STATES, corrections, update
from benchmarks.workloads import LEARNT, Problem

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


def task_loss(problem: Problem) -> Callable[[Params, Params, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The query loss of one task after its inner loop, as a function of the initial parameters and the rates."""
    w, model, loss = problem.workload, network(problem.model), problem.loss

    def evaluate(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, params, (x,)), y)

    def adapted_loss(params: Params, rates: Params, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
        states = {name: (torch.zeros_like(p),) * STATES[w.rule] for name, p in params.items()}
        for correction in corrections(w.rule, w.steps):
            gradients = grad(evaluate)(params, xs, ys)
            if w.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            moved: Params = {}
            for name, p in params.items():
                rate = rates.get(name, w.lr)
                moved[name], states[name] = update(torch, w.rule, p, gradients[name], states[name], rate, correction)
            params = moved
        return evaluate(params, xq, yq)

    return adapted_loss


#: The arguments of :func:`task_loss` that all tasks share are the first two.
PER_TASK = (None, None, 0, 0, 0, 0)


def unknown(problem: Problem) -> tuple[int, ...]:
    """The arguments of :func:`task_loss` to differentiate for."""
    return (0, 1) if problem.workload.rates == LEARNT else (0,)


def together(gradients: tuple[Params, ...]) -> list[Tensor]:
    return [g for group in gradients for g in group.values()]


def meta_gradient(problem: Problem) -> Forms:
    data = (*problem.support, *problem.query)
    loss, arguments = task_loss(problem), unknown(problem)
    batched = vmap(loss, in_dims=PER_TASK)
    of_mean = grad(lambda *shared_and_data: batched(*shared_and_data).mean(), argnums=arguments)
    of_each = vmap(grad(loss, argnums=arguments), in_dims=PER_TASK)
    fixed = {name: p.detach() for name, p in problem.parameters.items()}, problem.rates
    tracked = problem.parameters, {n: r.detach().requires_grad_(len(arguments) > 1) for n, r in problem.rates.items()}
    wanted = [value for group in tracked[: len(arguments)] for value in group.values()]

    return {
        "autograd of vmap": lambda: torch.autograd.grad(batched(*tracked, *data).mean(), wanted),
        "grad of vmap": lambda: together(of_mean(*fixed, *data)),
        "vmap of grad": lambda: [g.mean(0) for g in together(of_each(*fixed, *data))],
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
