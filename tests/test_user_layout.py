"""Hessian-vector products of each task's own weights, which are read and written where the user has them
(csrc/cpu/primitives/user_linear.h): layers of every sort in front, behind and between, and what is no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from judge import assert_close
from metafast.engine import native

TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}
Tensors = dict[str, Tensor]


def layers(*widths: int, between: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        modules += [nn.Linear(before, after, bias=bias), between()]
    return nn.Sequential(*modules[:-1])


def shifted(shift: float) -> nn.Module:
    model = layers(272, 64, 96, 32, 5)
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.bias += shift
    return model


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(272, 64), nn.Linear(64, 64), nn.Linear(64, 5)


class Tied(Three):
    """One weight in two layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.hidden(torch.relu(self.hidden(x)))))  # type: ignore[no-any-return]


class Around(Three):
    """Layers whose inputs and outputs somebody else reads too."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.hidden(x))
        return self.last(torch.relu(x) + x)  # type: ignore[no-any-return]


def frozen(hidden: int) -> nn.Module:
    model = layers(272, 64, 64, 5)
    model[hidden].requires_grad_(False)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "half open": lambda: shifted(0.0),
    "inactive": lambda: shifted(-100.0),
    "few": lambda: shifted(-0.3),
    "open": lambda: shifted(2.0),
    "tanh": lambda: layers(272, 64, 64, 5, between=nn.Tanh),
    "tanh, wide": lambda: layers(272, 300, 5, between=nn.Tanh),
    "leaky": lambda: layers(272, 64, 64, 5, between=lambda: nn.LeakyReLU(0.1)),
    "gelu": lambda: layers(272, 64, 64, 5, between=nn.GELU),
    "no bias": lambda: layers(272, 64, 64, 5, bias=False),
    "widths of no register": lambda: layers(272, 70, 64, 71, 5),
    "wide": lambda: layers(272, 144, 160, 5),
    "a frozen layer": lambda: frozen(2),
    "a frozen first layer": lambda: frozen(0),
    "two layers in a row": lambda: nn.Sequential(nn.Linear(272, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)),
    "tied": Tied,
    "around": Around,
}


def problem(model: nn.Module, examples: int, dtype: torch.dtype, tasks: int = 3) -> tuple[Tensors, Tensors, Tensor]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    own = {name: p.detach() + 0.01 * torch.randn(tasks, *p.shape, dtype=dtype) for name, p in named}
    vectors = {name: torch.randn_like(p) for name, p in own.items()}
    return own, vectors, torch.randn(tasks, examples, 272, dtype=dtype)


def exact(tensors: Tensors) -> Tensors:
    return {name: t.double().requires_grad_() for name, t in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("examples", [3, 16, 50, 70])
@pytest.mark.parametrize("network", NETWORKS)
def test_products_equal_the_oracle(network: str, examples: int, dtype: torch.dtype) -> None:
    model = NETWORKS[network]().to(dtype)
    own, vectors, x = problem(model, examples, dtype)
    y = torch.randint(5, (3, examples))
    made = mf.hvp(model, own, (x, y), vectors, loss="cross_entropy", strict=True)
    truth = oracle.hvp(model.double(), "cross_entropy", exact(own), (x.double(), y), exact(vectors))
    assert_close(made, {name: t.to(dtype) for name, t in truth.items()}, TOLERANCE[dtype])


@pytest.mark.parametrize("outputs", [1, 2])
def test_squares_of_few_outputs(outputs: int) -> None:
    model = layers(272, 64, 64, outputs).double()
    own, vectors, x = problem(model, 20, torch.float64)
    y = torch.randn(3, 20, outputs, dtype=torch.float64)
    made = mf.hvp(model, own, (x, y), vectors, strict=True)
    assert_close(made, oracle.hvp(model, "mse", exact(own), (x, y), exact(vectors)), TOLERANCE[torch.float64])


def test_parameters_and_vectors_that_tasks_share() -> None:
    model = shifted(0.0).double()
    _, _, x = problem(model, 20, torch.float64)
    y = torch.randint(5, (3, 20))
    same = {name: p.detach().clone() for name, p in model.named_parameters()}
    vectors = {name: torch.randn_like(p) for name, p in same.items()}

    def each(tensors: Tensors) -> Tensors:
        return exact({name: t.expand(3, *t.shape) for name, t in tensors.items()})

    made = mf.hvp(model, same, (x, y), vectors, loss="cross_entropy", strict=True)
    truth = oracle.hvp(model, "cross_entropy", each(same), (x, y), each(vectors))
    assert_close(made, truth, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS)
def test_parts_come_to_the_same_bits(
    network: str, dtype: torch.dtype, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NETWORKS[network]().to(dtype)
    own, vectors, x = problem(model, 50, dtype)
    batch = x, torch.randint(5, (3, 50))

    def products() -> list[Tensor]:
        return list(mf.hvp(model, own, batch, vectors, loss="cross_entropy", strict=True).values())

    threads(1)
    expected = products()
    monkeypatch.setattr(native, "sharing", "always")
    for count in (2, 3):
        threads(count)
        assert all(map(torch.equal, expected, products()))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("examples", [12, 20])
@pytest.mark.parametrize(
    "where",
    ["x", "x that makes all units inactive", "0.weight", "0.bias of v", "2.weight", "2.weight of v", "4.weight of v"],
)
def test_what_is_no_number_stays_none(
    where: str, examples: int, bad: float, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one task, and in weights behind a unit that is inactive for all examples: zero times infinity is NaN."""
    model = shifted(0.0)
    own, vectors, x = problem(model, examples, torch.float32)
    y = torch.randint(5, (3, examples))
    own["0.bias"][:, 3] = own["2.bias"][:, 3] = -1000
    if where == "x that makes all units inactive":
        own["0.weight"][1, :, 11] = -own["0.weight"][1, :, 11].abs() * (-1 if bad < 0 else 1)
    if where.startswith("x"):
        x[1, 7, 11] = bad
    else:
        (vectors if where.endswith("v") else own)[where.removesuffix(" of v")][1, ..., 3] = bad

    def products() -> Tensors:
        return mf.hvp(model, own, (x, y), vectors, loss="cross_entropy", strict=True)

    made = products()
    truth = oracle.hvp(model, "cross_entropy", exact(own), (x.double(), y), exact(vectors))
    others = [0, 2]
    assert_close(
        {name: t[others] for name, t in made.items()}, {name: t[others].float() for name, t in truth.items()}, 3e-6
    )
    assert where == "0.bias of v" or any(not t[1].isfinite().all() for t in truth.values())
    # Of what an inactive unit hands on autograd writes zeros, and metafast zero times what came.
    for name, t in made.items():
        assert not (t[1].isfinite() & ~truth[name][1].isfinite()).any(), name
    monkeypatch.setattr(native, "sharing", "always")
    threads(2)
    assert all(torch.equal(made[name].isfinite(), t.isfinite()) for name, t in products().items())
