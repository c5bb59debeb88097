"""Rules and estimators against plain torch: torch.optim's own steps, differentiated by autograd in float64.

To add a rule or an estimator, add a row to ``RULES`` or ``ESTIMATORS``.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from rule_cases import EXECUTIONS, executing


class Rule(NamedTuple):
    ours: Callable[..., Any]
    torchs: Callable[..., torch.optim.Optimizer]
    settings: dict[str, Any]


RULES = {
    "sgd": Rule(mf.SGD, torch.optim.SGD, {"lr": 0.1}),
    "adagrad": Rule(mf.Adagrad, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.02, "eps": 1e-3}),
    "adam": Rule(mf.Adam, torch.optim.Adam, {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.02}),
}

#: What the derivative of each of five steps is: exact, through a gradient that is a constant, or none.
ESTIMATORS = {
    "exact": (mf.Exact(), "eeeee"),
    "first order": (mf.FirstOrder(), "ccccc"),
    "annealed": (mf.Annealed(2), "cccee"),
    "truncated": (mf.Truncated(2), "...ee"),
}
STEPS = 5


class Problem(NamedTuple):
    model: nn.Module
    sets: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """torch.optim counts steps in the default dtype, and corrects Adam's moments with it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(wide: bool) -> Problem:
    """Wide: the first layer is kept as its products with the data."""
    torch.manual_seed(3)
    inputs, tasks = (300, 2) if wide else (3, 4)
    model = nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 2))
    sets = [(torch.randn(tasks, n, inputs), torch.randn(tasks, n, 2)) for n in (4, 3)]
    return Problem(model, (sets[0], sets[1]))


def loss(model: nn.Module, names: list[str], theta: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    output = torch.func.functional_call(model, dict(zip(names, theta, strict=True)), (x,))
    return (output - y).square().mean()


def oracle(at: Problem, rule: Rule, modes: str) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients for the parameters: torch.optim's steps on parameters that each step replaces."""
    names, initial = zip(*at.model.named_parameters(), strict=True)
    losses = []
    for xs, ys, xq, yq in zip(*at.sets[0], *at.sets[1], strict=True):
        optimiser = rule.torchs([p.clone() for p in initial], differentiable=True, **rule.settings)
        for k, mode in enumerate(modes):
            theta = optimiser.param_groups[0]["params"]
            kept = [optimiser.state[p] for p in theta]
            if modes[max(k - 1, 0)] == ".":
                theta = [p.detach().requires_grad_() for p in theta]
                kept = [{n: t.detach() for n, t in state.items()} for state in kept]
                if mode != ".":
                    theta = [p.detach() + (start - start.detach()) for p, start in zip(theta, initial, strict=True)]
            gradients = torch.autograd.grad(loss(at.model, list(names), theta, xs, ys), theta, create_graph=mode == "e")
            moved = [p.clone() for p in theta]
            states = [{n: t.clone() for n, t in state.items() if t is not None} for state in kept]
            optimiser.state = defaultdict(dict, zip(moved, states, strict=True))
            optimiser.param_groups[0]["params"] = moved
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of gradients of tensors that are no leaves
                for p, g in zip(moved, gradients, strict=True):
                    p.grad = g
                optimiser.step()
        losses.append(loss(at.model, list(names), optimiser.param_groups[0]["params"], xq, yq))
    mean = torch.stack(losses).mean()
    return mean.detach(), list(torch.autograd.grad(mean, initial))


@pytest.mark.parametrize("engine", EXECUTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rule", RULES)
def test_loss_and_gradient_are_torchs(rule: str, estimator: str, engine: str) -> None:
    kind, modes = ESTIMATORS[estimator]
    for wide in (False, True) if engine in ("torch", "alone") else (False,):
        at = problem(wide)
        value, gradients = oracle(at, RULES[rule], modes)
        with executing(engine) as backend:
            maml = mf.MAML(
                at.model, steps=STEPS, loss="mse", rule=RULES[rule].ours(**RULES[rule].settings), estimator=kind,
                backend=backend,
            )  # fmt: skip
            for memory in ("keep", "recompute", mf.Checkpoint(2)):
                maml.memory = memory
                out, made = maml.meta_gradient(*at.sets)
                torch.testing.assert_close(out.loss, value, rtol=1e-13, atol=1e-14)
                for a, b in zip(made, gradients, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rule", RULES)
def test_both_engines_agree_on_hyper_parameters_and_data(rule: str, estimator: str) -> None:
    at = problem(wide=False)
    numbers = {name: value for name, value in RULES[rule].settings.items() if isinstance(value, float)}
    made = []
    for backend in ("torch", "native"):
        values = {name: torch.tensor(value, requires_grad=True) for name, value in numbers.items()}
        chosen = RULES[rule].ours(**{**RULES[rule].settings, **values})
        sets = [tuple(t.clone().requires_grad_() for t in batch) for batch in at.sets]
        maml = mf.MAML(
            at.model, steps=STEPS, loss="mse", rule=chosen, estimator=ESTIMATORS[estimator][0], backend=backend
        )
        wanted = [*values.values(), *sets[0], *sets[1], *at.model.parameters()]
        made.append(torch.autograd.grad(maml(*sets).loss, wanted, materialize_grads=True))
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_hyper_parameters_are_slopes_of_torchs_loss(rule: str) -> None:
    """Central differences of the oracle."""
    at = problem(wide=False)
    ours, torchs, settings = RULES[rule]
    for name in [name for name, value in settings.items() if isinstance(value, float)]:
        value = torch.tensor(settings[name], requires_grad=True)
        maml = mf.MAML(at.model, steps=STEPS, loss="mse", rule=ours(**{**settings, name: value}), backend="native")
        (slope,) = torch.autograd.grad(maml(*at.sets).loss, value)
        h = 1e-5 * settings[name]
        above, below = (
            oracle(at, Rule(ours, torchs, {**settings, name: settings[name] + d}), "e" * STEPS)[0] for d in (h, -h)
        )
        torch.testing.assert_close(slope, (above - below) / (2 * h), rtol=1e-7, atol=1e-10)
