"""Gradients and Hessian-vector products of many tasks at once, each task at parameters of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metafast import arguments, transforms
from metafast.call import Batch
from metafast.model.program import Parameter
from metafast.planning.plan import Plan, Planner, planner
from metafast.planning.reading import kinds_of


@transforms.entry("metafast.grad")
def grad(
    model: nn.Module,
    params: Mapping[str, Tensor],
    batch: Any,
    loss: Any = "mse",
    *,
    backend: str = "auto",
    strict: bool = False,
    reduction: str = "weighted_mean",
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_t(theta_t) and g_t = dL_t / d theta_t for every task t, differentiable once (any number of times on torch).

    Args:
        model: the module whose parameters ``params`` replace.
        params: name -> [T, *shape], or [*shape] shared by all tasks. A parameter that is not named keeps the model's
            own value and gets no gradient here.
        batch: ``(x, y)`` or ``(x, y, weights)``: x [T, N, *example], or a tuple of such; y [T, N] classes or
            [T, N, *output]; weights [T, N].
        loss: as :class:`metafast.MAML` takes it.
        backend, strict, reduction: as :class:`metafast.MAML` takes them.

    Returns:
        task losses [T], and name -> [T, *shape] for those names in ``params`` that require grad in the model; zeros
        for a parameter that the model never uses.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with its shape and what was expected.
    """
    plan, given, data = _prepare(planner(model, loss, backend, strict, reduction), params, batch)
    plan.refuse_constants("params", given)
    task_loss, gradients = plan.engine.gradient(plan.program, plan.replaced(given), data)
    return task_loss, _chosen(plan, given, gradients)


@transforms.entry("metafast.hvp", differentiable="that of metafast.grad is")
def hvp(
    model: nn.Module,
    params: Mapping[str, Tensor],
    batch: Any,
    v: Mapping[str, Tensor],
    loss: Any = "mse",
    *,
    backend: str = "auto",
    strict: bool = False,
    reduction: str = "weighted_mean",
) -> dict[str, Tensor]:
    """H_t v_t for every task t, H_t = d^2 L_t / d theta_t^2 over the parameters in ``params`` (Pearlmutter 1994).

    The Hessian is never formed; the result is not differentiable.

    Args:
        v: name -> [T, *shape], or [*shape] shared by all tasks, for every name of the result; a block of zeros is given
            as ``torch.zeros_like(params[name])``.
        model, params, batch, loss, backend, strict, reduction: as for :func:`grad`.

    Returns:
        name -> [T, *shape] for every name in ``params`` whose parameter of the model requires grad.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with its shape and what was expected; ``v`` lacks a
            parameter.
    """
    plans = planner(model, loss, backend, strict, reduction)
    product = plans.product  # once: another thread may put another in its place
    if product is not None and (again := product.run(params, batch, v)) is not None:
        return again
    plan, given, data = _prepare(plans, params, batch)
    tasks = data.x.shape[0]
    within = {name: p for name, p in plan.learnt.items() if name in given}
    vectors = plan.parameters("v", v, tasks, within)
    _refuse_gaps(vectors, within)
    made, run = plan.engine.hvp(plan.program, plan.replaced(given), data, _tangents(plan, vectors, tasks))
    if plan.native:
        from metafast.planning.repeat import RepeatedHvp  # which needs the native engine

        plans.product = RepeatedHvp.of(plan, run, params, data, v)
    return _chosen(plan, given, made)


def _refuse_gaps(vectors: Mapping[str, Tensor], within: Mapping[str, Parameter]) -> None:
    """A vector over all of ``within`` or none: what is left out by mistake would be taken for zero."""
    missing = [f"{name!r} {list(p.shape)}" for name, p in within.items() if name not in vectors]
    if missing:
        raise ValueError(
            f"v has no entry for {', '.join(missing)}; expected one for every parameter in params that requires grad. "
            "Where v is zero, pass torch.zeros_like(params[name])"
        )


def _tangents(plan: Plan, vectors: Mapping[str, Tensor], tasks: int) -> list[Tensor]:
    """[T, *shape] for every learnt parameter, zero for those that are not in ``params``."""
    tangents = []
    for name, p in plan.learnt.items():
        vector = vectors.get(name)
        if vector is None:
            vector = torch.zeros(p.shape, dtype=plan.dtype, device=plan.device)
        tangents.append(vector if vector.dim() > len(p.shape) else vector.expand(tasks, *p.shape))
    return tangents


def _prepare(plans: Planner, params: Any, batch: Any) -> tuple[Plan, dict[str, Tensor], Batch]:
    data = arguments.batch("batch", batch)
    arguments.axes("batch x", data.x)
    plan = plans.plan("batch x", data.x, targets=() if plans.loss else kinds_of(data, None))
    data = plan.check("batch", data)
    return plan, plan.parameters("params", params, data.x.shape[0]), data


def _chosen(plan: Plan, given: Mapping[str, Tensor], values: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Of values over ``program.learnt``, those the user named, in the user's order."""
    by_name = dict(zip(plan.learnt, values, strict=True))
    return {name: by_name[name] for name in given if name in by_name}
