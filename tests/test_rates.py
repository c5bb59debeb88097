"""Forms of lr: given, per step, per tensor, per element, learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from small import T, gradients, lr_forms, mlp, same, tasks


@pytest.mark.parametrize("form", lr_forms(mlp()))
def test_every_form_of_lr_equals_the_oracle(form: str, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    lr = lr_forms(model)[form]
    out = mf.MAML(model, lr, steps=3, backend=backend)(support, query)
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=lr, steps=3)
    same(gradients(out.loss, model), gradients(truth.loss, model))
    overridden = mf.MAML(model, 0.77, steps=3, backend=backend)(support, query, lr=lr)
    assert torch.equal(overridden.task_loss, out.task_loss)


@pytest.mark.parametrize("elements", [False, True])
def test_rates_per_step_in_a_dict(elements: bool, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    shapes = {name: p.shape if elements else () for name, p in model.named_parameters()}
    lr = {name: torch.rand(2, *shape).double().requires_grad_() for name, shape in shapes.items()}
    out = mf.MAML(model, steps=2, rule=mf.SGD(lr, per_step=True), backend=backend)(support, query)
    first = {name: rate[0] for name, rate in lr.items()}
    second = {name: rate[1] for name, rate in lr.items()}
    losses = []
    for t in range(T):  # two loops of one step each
        theta, _ = oracle.adapt_one(
            model, "cross_entropy", (support[0][t], support[1][t]), first, 1, list(lr), False, False
        )
        loss = oracle.task_loss("cross_entropy", oracle.call(model, theta, support[0][t]), support[1][t])
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: v - second[n] * g for (n, v), g in zip(theta.items(), slopes, strict=True)}
        losses.append(oracle.task_loss("cross_entropy", oracle.call(model, theta, query[0][t]), query[1][t]))
    truth = torch.stack(losses).mean()
    same(gradients(out.loss, model, *lr.values()), gradients(truth, model, *lr.values()))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_steps_beyond_the_rates_repeat_the_last(steps: int, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    lr = torch.tensor([0.4, 0.1]).double().requires_grad_()
    out = mf.MAML(model, lr, steps=2, backend=backend)(support, query, steps=steps)
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=lr, steps=steps)
    assert out.support_loss.shape == (T, steps)
    same(gradients(out.loss, model, lr), gradients(truth.loss, model, lr))


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (float("nan"), "lr must be finite; it is nan"),
        (torch.tensor([0.1, float("inf"), 0.1]), "lr must be finite; 1 of its 3 values are not"),
        (torch.ones(2), r"lr has shape \[2\]: 2 values along its step axis; expected steps=3"),
        (torch.ones(3, 4), r"lr is a tensor of shape \[3, 4\]; expected \[\] or \[steps\]"),
        ({"0.weight": 0.1}, "lr has no entry for '0.bias'"),
        ({"0.wait": 0.1}, "lr names '0.wait', which is no parameter of the model; it has 0.weight, 0.bias"),
        (
            {"0.weight": torch.ones(6), "0.bias": 1.0, "2.weight": 1.0, "2.bias": 1.0},
            r"lr\['0.weight'\] has shape \[6\]; expected \[\] or \[6, 4\]",
        ),
    ],
)
def test_lr_that_does_not_fit(lr: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mf.MAML(mlp(), lr, steps=3)
    support, query = tasks()
    with pytest.raises(ValueError, match=message):
        mf.MAML(mlp(), steps=3)(support, query, lr=lr)


@pytest.mark.parametrize("lr", [True, "0.1", [0.1], torch.tensor(1), None])
def test_lr_of_a_wrong_type(lr: Any) -> None:
    with pytest.raises(TypeError, match="lr must be"):
        mf.MAML(mlp(), lr)


def test_large_finite_rates_are_finite() -> None:
    big = torch.full((3,), torch.finfo(torch.float64).max, dtype=torch.float64)
    mf.MAML(mlp(), big, steps=3)


def test_rule_and_lr_together() -> None:
    assert mf.MAML(mlp(), rule=mf.SGD(0.1)).lr == 0.1
    assert mf.MAML(mlp(), 0.1, rule=mf.SGD()).lr == 0.1
    with pytest.raises(ValueError, match="lr is given twice"):
        mf.MAML(mlp(), 0.2, rule=mf.SGD(0.1))
    with pytest.raises(TypeError, match="per_step=True describes a dict"):
        mf.MAML(mlp(), rule=mf.SGD(0.1, per_step=True))


LEARNT: dict[str, tuple[Callable[[nn.Module], Any], list[str]]] = {
    "float": (lambda m: 0.3, ["lr"]),
    "[steps]": (lambda m: torch.full((2,), 0.3), ["lr"]),
    "dict": (
        lambda m: {n: torch.full(p.shape, 0.3) for n, p in m.named_parameters()},
        ["lr.0.weight", "lr.0.bias", "lr.2.weight", "lr.2.bias"],
    ),
}


@pytest.mark.parametrize("form", LEARNT)
def test_learnt_rates_are_optimised_and_saved(form: str, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    build, names = LEARNT[form]
    given = build(model)
    maml = mf.MAML(model, given, steps=2, learn_lr=True, backend=backend)
    own = [n for n, _ in maml.named_parameters() if not n.startswith("model.")]
    assert own == names and [n for n in maml.state_dict() if not n.startswith("model.")] == names
    assert all(p.dtype == torch.float64 for p in maml.parameters())

    optimiser = torch.optim.SGD(maml.parameters(), 0.1)
    before = [maml.get_parameter(n).clone() for n in names]
    maml(support, query).loss.backward()
    optimiser.step()
    assert all(not torch.equal(a, maml.get_parameter(n)) for a, n in zip(before, names, strict=True))
    if isinstance(given, Tensor):
        assert torch.equal(given, torch.full((2,), 0.3)), "the user's own tensor is not the learner's"

    other = mf.MAML(mlp(), build(model), steps=2, learn_lr=True, backend=backend)
    other.load_state_dict(maml.state_dict())
    assert torch.equal(other(support, query).loss, maml(support, query).loss)


def test_a_parameter_given_as_lr_belongs_to_the_learner_only_if_learnt(backend: str) -> None:
    rate = nn.Parameter(torch.tensor(0.2).double())
    support, query = tasks()
    fixed, learnt = (mf.MAML(mlp(), rate, backend=backend, learn_lr=learn) for learn in (False, True))
    assert "lr" not in dict(fixed.named_parameters()) and dict(learnt.named_parameters())["lr"] is rate
    for maml in (fixed, learnt):
        (gradient,) = torch.autograd.grad(maml(support, query).loss, rate)
        assert gradient != 0


def test_assigning_another_rate_counts(backend: str) -> None:
    support, query = tasks()
    model = mlp()
    maml = mf.MAML(model, 0.1, backend=backend)
    maml(support, query)
    maml.lr = 0.3
    assert torch.equal(maml(support, query).loss, mf.MAML(model, 0.3, backend=backend)(support, query).loss)
