"""The same gradient by JAX: jit of the gradient of vmap over tasks, the inner steps unrolled or scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from torch import Tensor, nn

from benchmarks.networks.cases import Problem
from benchmarks.networks.jax_modules import LOSSES, NETWORKS
from benchmarks.rivals import SCANNED, Forms
from benchmarks.rivals.jax import array, step

Params = dict[str, jax.Array]


def forms(name: str, problem: Problem) -> Forms:
    """Compiled. Networks of convolutions are only scanned: unrolled they compile for minutes."""
    case = problem.case
    convolutions = any(isinstance(module, nn.Conv2d) for module in problem.model.modules())
    variables = {
        "parameters": {name: array(p) for name, p in problem.parameters.items()},
        "data": {name: array(problem.data[name]) for name in case.wanted if name != "lr"},
        "lr": jax.tree.map(lambda rate: array(rate) if isinstance(rate, Tensor) else rate, problem.lr),
    }
    fixed = {name: array(value) for name, value in problem.data.items() if name not in case.wanted}
    if "lr" not in case.wanted:
        fixed["lr"] = variables.pop("lr")

    def read(found: dict[str, Any]) -> list[jax.Array]:
        """In the order of ``problem.unknowns``."""
        result = [found["parameters"][name] for name in problem.parameters]
        for name in case.wanted:
            if name != "lr":
                result.append(found["data"][name])
            elif isinstance(found["lr"], dict):
                result += [found["lr"][key] for key in problem.moving]
            else:
                result.append(found["lr"])
        return result

    unrolls = {SCANNED: 1} if convolutions or case.steps == 1 else {SCANNED: 1, "unrolled": case.steps}
    return {
        form: step(jax.grad(mean_loss(name, problem, unroll)), read, variables, fixed)
        for form, unroll in unrolls.items()
    }


def mean_loss(name: str, problem: Problem, unroll: int) -> Callable[[dict[str, Any], dict[str, Any]], jax.Array]:
    """The mean of the tasks' query losses, as a function of what is wanted and of what is not."""
    case = problem.case
    network, loss = NETWORKS[name], LOSSES[case.loss]

    def value(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(network(params, x), y)

    def task(params: Params, lr: Any, xs: jax.Array, ys: jax.Array, xq: jax.Array, yq: jax.Array) -> jax.Array:
        rest = {name: p for name, p in params.items() if name not in problem.moving}

        def inner(moving: Params, now: dict[str, Any]) -> tuple[Params, None]:
            x, y = (now["x"], now["y"]) if case.stepwise else (xs, ys)
            found = clipped(jax.grad(lambda m: value({**rest, **m}, x, y))(moving), case.clip)
            rates = lr if isinstance(lr, dict) else dict.fromkeys(moving, now.get("lr", lr))
            return {name: p - rates[name] * found[name] for name, p in moving.items()}, None

        each = {"x": xs, "y": ys} if case.stepwise else {}
        if case.rates == "per step":
            each["lr"] = lr
        start = {name: params[name] for name in problem.moving}
        adapted, _ = lax.scan(inner, start, each, length=case.steps, unroll=unroll)
        return value({**rest, **adapted}, xq, yq)

    def mean(variables: dict[str, Any], fixed: dict[str, Any]) -> jax.Array:
        found = {**fixed, **variables["data"]}
        lr = variables["lr"] if "lr" in variables else found["lr"]
        data = (found[name] for name in ("xs", "ys", "xq", "yq"))
        return jax.vmap(task, (None, None, 0, 0, 0, 0))(variables["parameters"], lr, *data).mean()

    return mean


def clipped(gradients: Params, limit: float | None) -> Params:
    if limit is None:
        return gradients
    norm = jnp.sqrt(sum((g * g).sum() for g in gradients.values()))
    factor = jnp.minimum(limit / (norm + 1e-6), 1)
    return {name: factor * g for name, g in gradients.items()}
