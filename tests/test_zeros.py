"""Products skip the zeros that ReLUs leave (csrc/cpu/kernels/zeros.h, dot.h): the same numbers however many there are.

Widths and batches are those of blocks and registers, and one more or less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from judge import assert_close
from metafast.engine import native

#: What is added to the hidden layers' biases, and so how much the ReLUs let through: nothing, some, half, nearly all.
SHIFTS = {"inactive": -100.0, "few": -0.5, "half": 0.0, "open": 1.5}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}


def network(inputs: int, width: int, shift: float, dtype: torch.dtype) -> nn.Module:
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width + 7), nn.ReLU(), nn.Linear(width + 7, 5)
    )
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias += shift
    return model.to(dtype)


class Around(nn.Module):
    """A layer that a ReLU reads, and somebody else: its cotangents are not zero where the ReLU's are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(288, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.hidden(x) + torch.relu(x)
        return self.last(torch.relu(x) + x)  # type: ignore[no-any-return]


def classes(tasks: int, examples: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(tasks, examples, inputs).to(dtype), torch.randint(5, (tasks, examples))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("examples", [1, 31, 64, 65, 128, 129])
@pytest.mark.parametrize("width", [31, 64, 130])
def test_meta_gradient_equals_the_oracle(width: int, examples: int, shift: str) -> None:
    model = network(21, width, SHIFTS[shift], torch.float64)
    sets = classes(2, examples, 21, torch.float64), classes(2, examples, 21, torch.float64)
    maml = mf.MAML(model, lr=0.1, steps=2, strict=True)
    truth = oracle.unroll(model, "cross_entropy", *sets, lr=0.1, steps=2)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(truth.loss, parameters, materialize_grads=True)
    made = torch.autograd.grad(maml(*sets).loss, parameters)
    assert_close(dict(zip(names, made, strict=True)), dict(zip(names, expected, strict=True)), TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(
    ("inputs", "width", "examples"), [(16, 5, 3), (272, 64, 16), (432, 64, 17), (848, 100, 35), (256, 130, 70)]
)
def test_hessian_vector_products_of_each_task_s_own(
    inputs: int, width: int, examples: int, shift: str, dtype: torch.dtype
) -> None:
    model = network(inputs, width, SHIFTS[shift], dtype)
    own = {name: p.detach() + 0.01 * torch.randn(3, *p.shape, dtype=dtype) for name, p in model.named_parameters()}
    vectors = {name: torch.randn_like(p) for name, p in own.items()}
    batch = classes(3, examples, inputs, dtype)
    made = mf.hvp(model, own, batch, vectors, loss="cross_entropy", strict=True)

    def exact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.double().requires_grad_() for name, t in tensors.items()}

    x, y = batch
    truth = oracle.hvp(model.double(), "cross_entropy", exact(own), (x.double(), y), exact(vectors))
    assert_close(made, {name: t.to(dtype) for name, t in truth.items()}, TOLERANCE[dtype])


def test_a_relu_that_is_not_the_only_reader() -> None:
    model = Around(70).double()
    sets = classes(2, 33, 288, torch.float64), classes(2, 20, 288, torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    truth = oracle.unroll(model, "cross_entropy", *sets, lr=0.1, steps=2)
    expected = dict(zip(names, torch.autograd.grad(truth.loss, parameters), strict=True))
    _, made = mf.MAML(model, lr=0.1, steps=2, strict=True).meta_gradient(*sets)
    assert_close(dict(zip(names, made, strict=True)), expected, TOLERANCE[torch.float64])

    own = {name: p.detach().expand(2, *p.shape).clone().requires_grad_() for name, p in model.named_parameters()}
    vectors = {name: torch.randn_like(p) for name, p in own.items()}
    product = mf.hvp(model, own, sets[0], vectors, loss="cross_entropy", strict=True)
    assert_close(product, oracle.hvp(model, "cross_entropy", own, sets[0], vectors), TOLERANCE[torch.float64])


@pytest.fixture(params=SHIFTS)
def everything(request: pytest.FixtureRequest) -> Callable[[], list[Tensor]]:
    """All that a call gives, in float32, where the order of sums shows."""
    model = network(21, 70, SHIFTS[request.param], torch.float32)
    sets = classes(5, 40, 21, torch.float32), classes(5, 67, 21, torch.float32)

    def call() -> list[Tensor]:
        maml = mf.MAML(model, lr=0.1, steps=2, learn_lr=True, strict=True)
        out: Any = maml(*sets)
        return [*out, *torch.autograd.grad(out.loss, list(maml.parameters()))]

    return call


def test_packs_which_skip_nothing_come_to_the_same_bits(
    everything: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "packing", "whole")
    expected = everything()
    monkeypatch.setattr(native, "packing", "never")
    assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))


def test_parts_come_to_the_same_bits(
    everything: Callable[[], list[Tensor]], threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "packing", "never")
    expected = everything()
    monkeypatch.setattr(native, "sharing", "always")
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_zero_times_infinity_is_not_skipped(bad: float) -> None:
    """A unit inactive for every example, a weight behind it that is no number, and no step, which would spread it."""
    model = network(21, 70, 0.0, torch.float32)
    with torch.no_grad():
        model[0].bias[3] = -1000
        model[2].weight[:, 3] = bad
    support, query = classes(2, 9, 21, torch.float32), classes(2, 9, 21, torch.float32)
    assert oracle.unroll(model, "cross_entropy", support, query, lr=0.1, steps=0).task_loss.isnan().all()
    assert mf.MAML(model, lr=0.1, steps=0, strict=True)(support, query).task_loss.isnan().all()


@pytest.mark.parametrize("inputs", [130, 131, 144])
def test_a_gram_matrix_of_rows_of_any_length(inputs: int) -> None:
    """Inner products of the data (csrc/cpu/first_layer.h), whose rows need not be whole registers."""
    model = network(inputs, 12, 0.0, torch.float64)
    sets = classes(2, 29, inputs, torch.float64), classes(2, 9, inputs, torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    truth = oracle.unroll(model, "cross_entropy", *sets, lr=0.1, steps=3)
    expected = torch.autograd.grad(truth.loss, parameters)
    _, made = mf.MAML(model, lr=0.1, steps=3, strict=True).meta_gradient(*sets)
    assert_close(dict(zip(names, made, strict=True)), dict(zip(names, expected, strict=True)), TOLERANCE[torch.float64])
