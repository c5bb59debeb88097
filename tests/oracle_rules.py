"""The truth about rules and estimators: an inner loop in plain torch, one task at a time, that autograd differentiates.

It shares no code with metafast. A rule is a list of links; each is written once more from the papers and from torch's
documentation, for all of a task's adapted parameters at once, and changes what it is given::

    link(task, hyper, k),    hyper(name, parameter) -> the value of a hyper-parameter at step k
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import oracle
from oracle import Batch, Parameters


@dataclass
class Task:
    """What links read and change: name -> tensor, all of the parameters' shapes."""

    theta: Parameters
    start: Parameters
    g: Parameters = field(default_factory=dict)
    state: dict[str, Parameters] = field(default_factory=dict)  # by the name of the state

    def states(self, name: str) -> Parameters:
        return self.state.setdefault(name, {n: torch.zeros_like(t) for n, t in self.theta.items()})


Hyper = Callable[[str, str], Any]
Link = Callable[[Task, Hyper, int], None]

# ------------------------------------------------------------------------------------------------------------ the links


def sgd(task: Task, hyper: Hyper, k: int) -> None:
    for n, g in task.g.items():
        task.theta[n] = task.theta[n] - hyper("lr", n) * g


def momentum(task: Task, hyper: Hyper, k: int, nesterov: bool = False) -> None:
    buffers = task.states("momentum")
    for n, g in task.g.items():
        mu = hyper("momentum", n)
        d = g + hyper("weight_decay", n) * task.theta[n]
        buffers[n] = d if k == 0 else mu * buffers[n] + (1 - hyper("dampening", n)) * d
        task.theta[n] = task.theta[n] - hyper("lr", n) * (d + mu * buffers[n] if nesterov else buffers[n])


def adam(
    task: Task, hyper: Hyper, k: int, decoupled: bool = False, amsgrad: bool = False, detached: bool = False
) -> None:
    first, second, largest = task.states("m"), task.states("v"), task.states("largest")
    for n, g in task.g.items():
        lr, b1, b2 = hyper("lr", n), hyper("beta1", n), hyper("beta2", n)
        if decoupled:
            task.theta[n] = task.theta[n] * (1 - lr * hyper("weight_decay", n))
        else:
            g = g + hyper("weight_decay", n) * task.theta[n]
        first[n] = b1 * first[n] + (1 - b1) * g
        second[n] = b2 * second[n] + (1 - b2) * g**2
        largest[n] = torch.maximum(largest[n], second[n])
        v = largest[n] if amsgrad else second[n]
        denominator = v.sqrt() / (1 - b2 ** (k + 1)) ** 0.5 + hyper("eps", n)
        if detached:
            denominator = denominator.detach()
        task.theta[n] = task.theta[n] - lr * (first[n] / (1 - b1 ** (k + 1))) / denominator


def clip_norm(task: Task, hyper: Hyper, k: int) -> None:
    norm = torch.cat([g.flatten() for g in task.g.values()]).norm()
    factor = hyper("clip_norm", next(iter(task.g))) / (norm + 1e-6)
    if factor < 1:
        task.g = {n: factor * g for n, g in task.g.items()}


def clip_value(task: Task, hyper: Hyper, k: int) -> None:
    for n, g in task.g.items():
        c = hyper("clip_value", n) * torch.ones_like(g)
        task.g[n] = torch.minimum(torch.maximum(g, -c), c)


def proximal(task: Task, hyper: Hyper, k: int) -> None:
    for n, g in task.g.items():
        task.g[n] = g + hyper("proximal", n) * (task.theta[n] - task.start[n])


def soft_threshold(task: Task, hyper: Hyper, k: int) -> None:
    for n, theta in task.theta.items():
        task.theta[n] = theta.sign() * (theta.abs() - hyper("soft_threshold", n)).clamp(min=0)


LINKS: dict[str, Link] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": partial(momentum, nesterov=True),
    "adam": adam,
    "adamw": partial(adam, decoupled=True),
    "amsgrad": partial(adam, amsgrad=True),
    "adam_detached": partial(adam, detached=True),
    "clip_norm": clip_norm,
    "clip_value": clip_value,
    "proximal": proximal,
    "soft_threshold": soft_threshold,
}

# ------------------------------------------------------------------------------------------------------------- the loop


def value_at(value: Any, parameter: str, k: int, per_step: bool) -> Any:
    """A hyper-parameter in any of its forms, at step k for one parameter."""
    if isinstance(value, Mapping):
        return value[parameter][k] if per_step else value[parameter]
    return value[min(k, len(value) - 1)] if isinstance(value, Tensor) and value.dim() == 1 else value


def detached(tensors: Parameters) -> Parameters:
    return {n: t.detach() for n, t in tensors.items()}


def plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def unroll(
    model: nn.Module,
    loss: oracle.LossName,
    support: Batch,
    query: Batch,
    *,
    links: Sequence[str],
    hypers: Mapping[str, Any],
    per_step: bool,
    steps: int,
    names: Sequence[str],
    estimator: tuple[str, int],
    stepwise: bool,
    start: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Loss, task losses, logits, support losses and adapted parameters, as one dict.

    ``estimator`` is ("exact", 0), ("first_order", 0) or ("truncated", steps). ``start`` replaces parameters of the
    model, for all tasks or, with one more axis, for each.
    """
    order, swept = estimator
    first = max(0, steps - swept) if order == "truncated" else 0
    shapes = {n: p.dim() for n, p in model.named_parameters()}
    outputs: dict[str, list[Tensor]] = {"task_loss": [], "logits": [], "support_loss": []}
    for t in range(len(support[0])):
        own = {n: s[t] if s.dim() > shapes[n] else s for n, s in start.items()}
        everything = dict(model.named_parameters()) | own
        origin = {n: everything[n] for n in names}
        task, history = Task(dict(origin), origin), []
        for k in range(steps):
            if k == first > 0:  # what stands here is taken for the initial parameters
                task.theta = {n: v.detach() + (origin[n] - origin[n].detach()) for n, v in task.theta.items()}
            batch = [tensor[t, k] if stepwise else tensor[t] for tensor in support]
            value = oracle.task_loss(loss, oracle.call(model, everything | task.theta, batch[0]), *batch[1:])
            slopes = torch.autograd.grad(value, list(task.theta.values()), create_graph=True, materialize_grads=True)
            task.g = dict(zip(task.theta, slopes, strict=True))
            constant = k < first

            def hyper(name: str, parameter: str, k: int = k, constant: bool = constant) -> Any:
                found = value_at(hypers[name], parameter, k, per_step)
                return plain(found) if constant else found

            if constant or order == "first_order":
                task.g = detached(task.g)
            for link in links:
                LINKS[link](task, hyper, k)
            if constant:
                task.state = {name: detached(of) for name, of in task.state.items()}
                task.theta = {n: v.detach().requires_grad_() for n, v in task.theta.items()}
            history.append(value.detach())
        x, *targets = [tensor[t] for tensor in query]
        logits = oracle.call(model, everything | task.theta, x)
        outputs["task_loss"].append(oracle.task_loss(loss, logits, *targets))
        outputs["logits"].append(logits)
        outputs["support_loss"].append(torch.stack(history) if history else logits.new_zeros(0))
        for n in names:
            outputs.setdefault(f"adapted.{n}", []).append(task.theta[n])
    made = {name: torch.stack(values) for name, values in outputs.items()}
    return {"loss": made["task_loss"].mean(), **made}
