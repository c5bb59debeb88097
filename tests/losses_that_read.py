"""Losses that read the model, in every way that somebody may write them, and their meta-gradient by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf

T, N, NQ, LR, STEPS, DECAY = 3, 5, 4, 0.2, 3, 0.1


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(T, n, 3, dtype=torch.float64), torch.randn(T, n, 2, dtype=torch.float64)


def squares(parameters: Iterable[Tensor]) -> Tensor:
    return torch.stack([p.square().sum() for p in parameters]).sum()


class Decaying(nn.Module):
    """A module that holds the model, or parameters of it."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + DECAY * squares(self.held.parameters())


class Objective:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + DECAY * squares(self.model.parameters())

    def bound(self, output: Tensor, target: Tensor) -> Tensor:
        return self(output, target)


def with_model(output: Tensor, target: Tensor, model: nn.Module) -> Tensor:
    return F.mse_loss(output, target) + DECAY * squares(model.parameters())


def decay_over(choose: Callable[[nn.Module], Iterable[Tensor]]) -> Callable[[nn.Module], Any]:
    return lambda model: lambda o, y: F.mse_loss(o, y) + DECAY * squares(choose(model))


#: how the weight decay of all parameters is written
WAYS: dict[str, Callable[[nn.Sequential], Any]] = {
    "parameters()": decay_over(lambda m: m.parameters()),
    "named_parameters()": decay_over(lambda m: dict(m.named_parameters()).values()),
    "what requires grad": decay_over(lambda m: [p for p in m.parameters() if p.requires_grad]),
    "what is an nn.Parameter": decay_over(lambda m: [p for p in m.parameters() if isinstance(p, nn.Parameter)]),
    "what is not marked": decay_over(lambda m: [p for p in m.parameters() if not getattr(p, "no_decay", False)]),
    "attributes": decay_over(lambda m: [m[0].weight, m[0].bias, m[2].weight, m[2].bias]),
    "one vector": decay_over(lambda m: [nn.utils.parameters_to_vector(m.parameters())]),
    "a partial": lambda m: functools.partial(with_model, model=m),
    "an object": Objective,
    "a bound method": lambda m: Objective(m).bound,
    "a module that holds the model": Decaying,
    "a module that holds its parameters": lambda m: Decaying(nn.ParameterList(m.parameters())),
}


def unrolled(loss: Callable[..., Tensor], theta0: list[Tensor], support: Any, query: Any) -> Tensor:
    """mean_t loss(theta_t; Q_t), where theta_t is theta0 after STEPS steps along -LR d loss / d theta on S_t: one task
    at a time. ``loss`` takes (parameters, x, y)."""
    losses = []
    for t in range(T):
        theta = [p if p.requires_grad else p.clone().requires_grad_() for p in theta0]
        for _ in range(STEPS):
            slopes = torch.autograd.grad(loss(theta, support[0][t], support[1][t]), theta, create_graph=True)
            theta = [p - LR * g for p, g in zip(theta, slopes, strict=True)]
        losses.append(loss(theta, query[0][t], query[1][t]))
    return torch.stack(losses).mean()


def meta_loss(theta0: list[Tensor], support: Any, query: Any, decayed: list[int], prox: bool = False) -> Tensor:
    """By hand, without a module: two layers, and DECAY times the squares of the ``decayed`` parameters (of their
    distance to theta_0 with ``prox``)."""

    def loss(p: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = torch.tanh(x @ p[0].T + p[1]) @ p[2].T + p[3]
        return F.mse_loss(output, y) + DECAY * squares(p[i] - theta0[i] if prox else p[i] for i in decayed)

    return unrolled(loss, theta0, support, query)


def central_difference(f: Callable[[list[Tensor]], Tensor], at: list[Tensor], along: list[Tensor]) -> float:
    h = 1e-5
    up, down = ([p.detach() + s * h * v for p, v in zip(at, along, strict=True)] for s in (1, -1))
    return float((f(up) - f(down)).detach()) / (2 * h)


def agrees_with_central_differences(
    maml: mf.MAML, model: nn.Module, decayed: list[int], support: Any, query: Any, prox: bool = False
) -> None:
    parameters = list(model.parameters())
    loss = maml(support, query).loss
    by_hand = [p.detach() for p in parameters]
    assert loss.item() == pytest.approx(meta_loss(by_hand, support, query, decayed, prox).item(), rel=1e-12)
    gradients = torch.autograd.grad(loss, parameters)
    for i, gradient in enumerate(gradients):
        along = [torch.randn_like(p) if j == i else torch.zeros_like(p) for j, p in enumerate(parameters)]
        slope = central_difference(lambda at: meta_loss(at, support, query, decayed, prox), by_hand, along)
        assert (gradient * along[i]).sum().item() == pytest.approx(slope, rel=1e-8, abs=1e-9)
