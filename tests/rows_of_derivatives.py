"""Rows of networks whose outputs hold derivatives by their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import grad

from models import seq
from row import L, Row


class Heat(nn.Module):
    """u and the residual du/dt - 0.3 d2u/dx2 of a physics-informed network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = seq(L(2, 4), nn.Tanh(), L(4, 3), nn.Tanh(), L(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            u = self.body(x)
            first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            second = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)[0]
        return torch.cat([u, first[:, 1:] - 0.3 * second[:, :1]], 1)


class Wave(nn.Module):
    """Coordinates one by one, a learnt speed, and a sine network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = L(2, 4), L(4, 1)
        self.speed = nn.Parameter(torch.tensor([0.7]))

    def forward(self, xt: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            xt = xt.clone().requires_grad_()
            x, t = xt[:, :1], xt[:, 1:]
            u = self.last(torch.sin(3 * self.first(torch.cat([x, t], 1))))
            u_x, u_t = grad(u, [x, t], torch.ones_like(u), create_graph=True)
            (u_xx,) = grad(u_x, x, torch.ones_like(u), create_graph=True)
            (u_tt,) = grad(u_t.sum(), t, create_graph=True, retain_graph=True)
        return u, u_tt - self.speed.square() * u_xx


class Hamiltonian(nn.Module):
    """The symplectic gradient of a learnt energy, which is made of many functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = L(2, 4), L(4, 4), nn.Parameter(torch.tensor([0.5, 1.5]))

    def forward(self, state: Tensor) -> Tensor:
        with torch.enable_grad():
            state = state.clone().requires_grad_()
            q, p = (state * self.scale).unbind(1)
            h = nn.functional.silu(self.first(state)) - torch.sigmoid(self.second(torch.cos(self.first(state))))
            norm = torch.sqrt(1 + h.square().sum(1, keepdim=True))
            energy = (torch.exp(-h.mean(1)) + p**2 / (1 + q**2) + torch.log(norm[:, 0]) + (h / norm).sum(1)).sum()
            slope = grad(energy, state, create_graph=True)[0]
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


def residual(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor]) -> Tensor:
    (u, rest), (y,) = outputs, targets
    return (u - y).square().mean() + 0.1 * rest.square().mean()


DERIVATIVES = [
    Row("derivatives/heat", Heat, (2,)),
    Row("derivatives/heat-stepwise", Heat, (2,), stepwise=True, lr_form="per_element"),
    Row("derivatives/heat-last-layer", Heat, (2,), adapt_params="body.4.*", static=True),
    Row("derivatives/wave", Wave, (2,), loss=residual, targets=(((1,), 0),), lr=0.02),
    Row("derivatives/hamiltonian", Hamiltonian, (2,)),
]
