"""The same gradient by metafast, by the loop over tasks, and by torch.func's vmap of the loss over the tasks."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import metafast as mf
from benchmarks.networks.cases import Problem
from benchmarks.rivals import Step
from benchmarks.rivals.torch_func import BatchNorm


def clipped(gradients: Sequence[Tensor], limit: float | None) -> Sequence[Tensor]:
    """As torch.nn.utils.clip_grad_norm_ does."""
    if limit is None:
        return gradients
    norm = torch.sqrt(sum((g * g).sum() for g in gradients))  # type: ignore[arg-type]
    factor = torch.clamp(limit / (norm + 1e-6), max=1)
    return [factor * g for g in gradients]


@sdpa_kernel(SDPBackend.MATH)  # the other one has no second derivative
def loop(problem: Problem, first_order: bool = False) -> list[Tensor]:
    """One task after the other, every gradient with its graph."""
    case, model, data = problem.case, problem.model, problem.data
    total: list[Tensor] = []
    for task in range(case.tasks):
        xs, ys, xq, yq = (data[name][task] for name in ("xs", "ys", "xq", "yq"))
        values: dict[str, Tensor] = dict(problem.parameters)
        for k in range(case.steps):
            x, y = (xs[k], ys[k]) if case.stepwise else (xs, ys)
            inner = case.loss(functional_call(model, values, (x,)), y)
            found = torch.autograd.grad(inner, [values[n] for n in problem.moving], create_graph=not first_order)
            for name, g in zip(problem.moving, clipped(found, case.clip), strict=True):
                values[name] = values[name] - problem.rate(name, k) * g
        outer = case.loss(functional_call(model, values, (xq,)), yq) / case.tasks
        gradients = torch.autograd.grad(outer, problem.unknowns, materialize_grads=True)
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
    return total


def written_out(model: nn.Module) -> nn.Module:
    """The model on the same parameters, its batch norms written out as :class:`BatchNorm` says why."""
    made = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, BatchNorm(layer))
    return made


def batched(problem: Problem) -> Step:
    """All tasks at once: torch.func's vmap of the loss, and autograd's gradient for parameters stacked by task."""
    case, model, data = problem.case, written_out(problem.model), problem.data
    axes = {name: 0 if name in problem.moving else None for name in problem.parameters}
    losses = vmap(lambda values, x, y: case.loss(functional_call(model, values, (x,)), y), (axes, 0, 0))

    @sdpa_kernel(SDPBackend.MATH)
    def step() -> Sequence[Tensor]:
        values = dict(problem.parameters)
        for name in problem.moving:
            values[name] = values[name].expand(case.tasks, *values[name].shape)
        for k in range(case.steps):
            x, y = (data[name][:, k] if case.stepwise else data[name] for name in ("xs", "ys"))
            inner = losses(values, x, y).sum()
            found = torch.autograd.grad(inner, [values[n] for n in problem.moving], create_graph=True)
            for name, g in zip(problem.moving, clipped_by_task(found, case.clip), strict=True):
                values[name] = values[name] - problem.rate(name, k) * g
        outer = losses(values, data["xq"], data["yq"]).mean()
        return torch.autograd.grad(outer, problem.unknowns, materialize_grads=True)

    return step


def clipped_by_task(gradients: Sequence[Tensor], limit: float | None) -> Sequence[Tensor]:
    if limit is None:
        return gradients
    norm = torch.sqrt(sum((g * g).flatten(1).sum(1) for g in gradients))  # type: ignore[arg-type]
    factor = torch.clamp(limit / (norm + 1e-6), max=1)
    return [factor.view(-1, *(1,) * (g.dim() - 1)) * g for g in gradients]


def metafast(problem: Problem, backend: str = "auto", strict: bool = False) -> Step:
    case, data = problem.case, problem.data
    rule = mf.SGD() if case.clip is None else mf.chain(mf.clip_norm(case.clip), mf.SGD())
    learner = mf.MAML(
        problem.model,
        rule=rule,
        steps=case.steps,
        loss=case.loss,
        adapt_params=case.adapts,
        backend=backend,
        strict=strict,
    )
    support, query = (data["xs"], data["ys"]), (data["xq"], data["yq"])

    def step() -> Sequence[Tensor]:
        out = learner(support, query, lr=problem.lr, stepwise=case.stepwise)
        return torch.autograd.grad(out.loss, problem.unknowns, materialize_grads=True)

    return step


def native(problem: Problem) -> str:
    """ "native", or why not."""
    try:
        metafast(problem, strict=True)()
    except RuntimeError as error:
        return str(error)
    return "native"
