"""Which derivatives by the input run natively, and which are refused by name and run on torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from metafast.model.layers.derivatives import SLOPES
from metafast.model.layers.pointwise import POINTWISE

Function = Callable[[nn.Module, Tensor], Tensor]


class Derives(nn.Module):
    def __init__(self, function: Function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.body = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def slope(y: Tensor, x: Tensor, **settings: bool) -> Tensor:
    return torch.autograd.grad(y.sum(), x, **{"create_graph": True, **settings})[0]


def asked(x: Tensor) -> Tensor:
    x = x.clone()
    x.requires_grad = True
    return x


def by_two(body: nn.Module, x: Tensor) -> Tensor:
    h = body(x)
    by_h, by_x = torch.autograd.grad(body(h).sum(), [h, x], create_graph=True)
    return by_h + 2 * by_x


def tasks() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return tuple((torch.randn(2, n, 2).double(), torch.randn(2, n, 2).double()) for n in (5, 4))  # type: ignore[return-value]


def meta_gradient(model: nn.Module, backend: str) -> tuple[Tensor, ...]:
    out = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend=backend)(*tasks())
    return torch.autograd.grad(out.loss, list(model.parameters()), materialize_grads=True)


NATIVE: dict[str, Function] = {
    "an attribute asks": lambda m, x: slope(m.body(y := asked(x)), y),
    "of a linear map": lambda m, x: slope(m.body[0](y := x.clone().requires_grad_()), y) + m.body(x),
    "of an activation": lambda m, x: m.body(x) + slope(F.silu(h := m.body[0](x)).square(), h)[:, :2],
    "of a ReLU": lambda m, x: m.body(x) + slope(F.relu(m.body(y := asked(x))).square(), y),
    "of a ReLU, twice": lambda m, x: slope(slope(F.relu(m.body[0](y := asked(x))), y), y) + m.body(x),
    "of a square of ReLUs, twice": lambda m, x: slope(slope(F.relu(m.body(y := asked(x))).square(), y), y) + m.body(x),
    "by two layers": lambda m, x: by_two(m.body, asked(x)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_ones_equal_torchs(name: str) -> None:
    model = Derives(NATIVE[name]).double()
    for found, expected in zip(meta_gradient(model, "native"), meta_gradient(model, "torch"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


REFUSED: dict[str, tuple[Function, str]] = {
    "without a graph": (lambda m, x: slope(m.body(y := asked(x)), y, create_graph=False), "create_graph=True"),
    "of an ELU": (lambda m, x: slope(F.elu(m.body(y := asked(x))), y), "differentiates through elu"),
    "of a norm over the examples": (lambda m, x: slope(m.norm(m.body(y := asked(x))), y), "through batch_norm"),  # type: ignore[operator]
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_others_are_refused_by_name(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(RuntimeError, match=reason):
        meta_gradient(Derives(function, norm=nn.BatchNorm1d(2)).double(), "native")


def test_a_refused_one_runs_on_torch() -> None:
    model = Derives(REFUSED["of an ELU"][0]).double()
    with pytest.warns(UserWarning, match="differentiates through elu"):
        found = meta_gradient(model, "auto")
    for ours, expected in zip(found, meta_gradient(model, "torch"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, float]]] = {
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), {}),
    "log_sigmoid": (F.logsigmoid, {}),
    "pow": (lambda x: x**2.5, {"exponent": 2.5}),
    "silu": (F.silu, {}),
    "softplus": (lambda x: F.softplus(x, 2.0, 3.0), {"beta": 2.0, "threshold": 3.0}),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_those_of_torch(name: str) -> None:
    assert name in POINTWISE
    function, settings = FUNCTIONS[name] if name in FUNCTIONS else (getattr(torch, name), {})
    x = torch.linspace(0.3, 2, 9, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(function(x).sum(), x)
    found = SLOPES[name](lambda each, *arguments: each(*arguments), x, function(x), settings)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_a_frozen_body_is_not_cut_off_from_its_derivatives() -> None:
    """The body is neither native nor moved; the head is both."""

    def energy(m: nn.Module, x: Tensor) -> Tensor:
        x = asked(x)
        return m.head(slope(torch.erfinv(torch.tanh(m.body(x))), x))  # type: ignore[operator,no-any-return]

    model = Derives(energy, head=nn.Linear(2, 2)).double()
    found, expected = (
        mf.MAML(model, lr=0.1, steps=2, loss="mse", adapt_params="head.*", backend=backend)(*tasks())
        for backend in ("auto", "torch")
    )
    own = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(out.loss, own) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
