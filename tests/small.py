"""A network of a few dozen weights, and tasks for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from changes import WAYS

Pair = tuple[Tensor, Tensor]
T, N, NQ = 3, 5, 4


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, WAYS)).double()


def tasks(lead: tuple[int, ...] = ()) -> tuple[Pair, Pair]:
    def batch(*shape: int) -> Pair:
        return torch.randn(*shape, 4, dtype=torch.float64), torch.randint(WAYS, shape)

    return batch(T, *lead, N), batch(T, NQ)


def lr_forms(model: nn.Module) -> dict[str, Any]:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {
        "int": 1,
        "float": 0.3,
        "[]": torch.tensor(0.3).double(),
        "[steps]": torch.tensor([0.3, 0.2, 0.1]).double(),
        "dict of floats": {name: 0.1 * i for i, name in enumerate(shapes, 1)},
        "dict of []": {name: torch.tensor(0.1 * i).double() for i, name in enumerate(shapes, 1)},
        "dict of elements": {name: torch.rand(shape).double() for name, shape in shapes.items()},
        "dict of both": {n: torch.rand(s if len(s) > 1 else ()).double() for n, s in shapes.items()},
    }


def gradients(loss: Tensor, *wrt: Any) -> list[Tensor]:
    leaves = [p for w in wrt for p in (w.parameters() if isinstance(w, nn.Module) else [w])]
    return list(torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True))


def same(found: list[Tensor], truth: list[Tensor]) -> None:
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
