"""Estimators where a formula says what they are; exact zeros, at which a convention decides; and that verify judges
rules and estimators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from judge import Tensors, assert_close, assert_same_bits, pull_back
from metafast.rules.rule import Rule
from rule_cases import ESTIMATORS, EXECUTIONS, MODELS, RULES, adapt, executing, forward, learner, problem

# ----------------------------------------------------------------------------------------------------------- estimators


def gradients(rule: str, engine: str, steps: int, estimator: Any) -> Tensors:
    p = problem(rule, "mlp", "[steps]", steps, "tasks")
    with executing(engine) as backend:
        maml = learner(p, rule, "[steps]", estimator=estimator, backend=backend)
        outputs = forward(maml, p) | adapt(maml, p)
        return pull_back(outputs, p.leaves, {n: torch.ones_like(outputs[n]) for n in ("loss", "logits")})


@pytest.mark.parametrize("engine", EXECUTIONS)
@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adam", "proximal, sgd"])
def test_truncation_beyond_the_loop_is_exact(rule: str, engine: str) -> None:
    exact = gradients(rule, engine, 3, mf.Exact())
    for steps in (3, 4, 100):
        assert_same_bits(gradients(rule, engine, 3, mf.Truncated(steps)), exact)
    assert not torch.equal(gradients(rule, engine, 3, mf.Truncated(2))["xs"], exact["xs"])


@pytest.mark.parametrize("engine", EXECUTIONS)
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_truncated_loop_is_the_exact_one_from_where_it_begins(rule: str, engine: str) -> None:
    """Without states, the last m steps from theta_{K-m} say everything; hyper-parameters of earlier steps get zero."""
    steps, swept = 5, 2
    found = gradients(rule, engine, steps, mf.Truncated(swept))
    for name, value in found.items():
        if name in RULES[rule].hypers and name != "weight_decay":
            assert (value[: steps - swept] == 0).all() and (value[steps - swept :] != 0).all(), name
    if rule != "sgd":
        return
    p = problem(rule, "mlp", "[steps]", steps, "tasks")
    with executing(engine) as backend:
        first = learner(p, rule, "[steps]", backend=backend)
        middle = first.adapt(p.support, steps - swept, lr=p.hypers["lr"][: steps - swept], start=p.start)
        start = {n: v.detach().requires_grad_() for n, v in middle.items()}
        lr = p.hypers["lr"].detach()[steps - swept :].requires_grad_()
        out = first(p.support, p.query, swept, lr=lr, start=start)
        seeds = [torch.ones_like(out.loss), torch.ones_like(out.logits)]
        expected = torch.autograd.grad([out.loss, out.logits], [*start.values(), lr, *p.support], seeds)
    truth = {
        f"start.{n}": e if n in p.start and p.start[n].dim() == e.dim() else None
        for n, e in zip(start, expected, strict=False)
    }
    named = {n: v for n, v in truth.items() if v is not None} | dict(zip(("xs", "ys"), expected[-2:], strict=True))
    assert len(named) > 3
    assert_same_bits({n: found[n] for n in named}, named)
    assert_same_bits({"lr": found["lr"][steps - swept :]}, {"lr": expected[len(start)]})


@pytest.mark.parametrize("engine", EXECUTIONS)
def test_first_order_leaves_support_data_alone_and_hypers_not(engine: str) -> None:
    found = gradients("clip_norm, proximal, adam, soft_threshold", engine, 3, mf.FirstOrder())
    assert all((found[n] == 0).all() for n in ("xs", "ys"))
    assert all((found[n] != 0).any() for n in ("lr", "beta1", "beta2", "eps", "clip_norm", "proximal", "xq", "yq"))


# ---------------------------------------------------------------------------------------------------------- exact zeros


def dead_unit() -> nn.Module:
    """The first ReLU never opens: the gradients of its weights, and of those that read it, are exactly zero."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias[0] = -1
    return model


def without_the_unit(model: nn.Module) -> nn.Module:
    small = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        small[0].weight.copy_(model[0].weight[1:])
        small[0].bias.copy_(model[0].bias[1:])
        small[2].weight.copy_(model[2].weight[:, 1:])
        small[2].bias.copy_(model[2].bias)
    return small


ZEROS: dict[str, Callable[[dict[str, Tensor]], mf.Rule]] = {
    "adam": lambda h: mf.Adam(h["lr"], (h["beta1"], h["beta2"]), h["eps"]),
    "amsgrad": lambda h: mf.Adam(h["lr"], (h["beta1"], h["beta2"]), h["eps"], amsgrad=True),
    "adamw": lambda h: mf.AdamW(h["lr"], (h["beta1"], h["beta2"]), h["eps"], weight_decay=0.0),
    "adam detached": lambda h: mf.Adam(h["lr"], (h["beta1"], h["beta2"]), h["eps"], detach_denominator=True),
    "clipped adam": lambda h: mf.chain(
        mf.clip_norm(0.3), mf.Adam(h["lr"], (h["beta1"], h["beta2"]), h["eps"]), mf.soft_threshold(0.0)
    ),
}


def data() -> tuple[Any, Any]:
    random = torch.Generator().manual_seed(2)
    x, y, xq, yq = (torch.randn(3, n, k, generator=random).double() for n, k in ((5, 3), (5, 2), (4, 3), (4, 2)))
    return (x.requires_grad_(), y.requires_grad_()), (xq, yq)


def hypers(eps: float) -> dict[str, Tensor]:
    values = dict(lr=0.05, beta1=0.75, beta2=0.875, eps=eps)
    return {n: torch.tensor(v).double().requires_grad_() for n, v in values.items()}


@pytest.mark.parametrize("engine", EXECUTIONS)
@pytest.mark.parametrize("eps", [1e-3, 1e-8])
@pytest.mark.parametrize("rule", ZEROS)
def test_zero_gradients_have_finite_derivatives_by_the_convention(rule: str, eps: float, engine: str) -> None:
    """The slope of the root at zero is zero: a dead unit is as good as none, in every gradient of the others."""
    big, found = dead_unit(), []
    for model in (big, without_the_unit(big)):
        support, query = data()
        h = hypers(eps)
        with executing(engine) as backend:
            maml = mf.MAML(model, rule=ZEROS[rule](h), steps=4, loss="mse", backend=backend)
            out = maml(support, query)
            leaves = {**dict(model.named_parameters()), **h, "xs": support[0], "ys": support[1]}
            made = torch.autograd.grad(out.loss, list(leaves.values()), materialize_grads=True)
            theta = maml.adapt(support)
        assert all(g.isfinite().all() for g in made)
        found.append((dict(zip(leaves, made, strict=True)), {n: v.detach() for n, v in theta.items()}))
    (with_it, moved), (without, _) = found
    # What stands behind the unit, and the unit itself, have stayed where they were, and it has no part in the loss.
    assert (moved["0.weight"][:, 0] == 0).all() and (moved["0.bias"][:, 0] == -1).all()
    assert torch.equal(moved["2.weight"][:, :, 0], big[2].weight[:, 0].detach().expand(3, 2))
    assert (with_it["0.weight"][0] == 0).all() and (with_it["0.bias"][0] == 0).all()
    assert (with_it["2.weight"][:, 0] == 0).all()
    with_it |= {n: with_it[n][1:] for n in ("0.weight", "0.bias")} | {"2.weight": with_it["2.weight"][:, 1:]}
    assert_close(with_it, without, tolerance=1e-12)


@pytest.mark.parametrize("engine", EXECUTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_gradient_that_is_zero_altogether_is_clipped_to_zero(estimator: str, engine: str) -> None:
    """A target that is met exactly. By hand: theta stays; d theta'/d g = -lr, as if nothing were clipped."""
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    x = torch.randint(-3, 4, (2, 3, 2)).double()  # so that nothing is rounded
    y = x @ model.weight.detach().T
    bound, lr = (torch.tensor(v).double().requires_grad_() for v in (0.5, 0.1))
    found = []
    for rule in (mf.chain(mf.clip_norm(bound), mf.SGD(lr)), mf.SGD(lr)):
        with executing(engine) as backend:
            settings: dict[str, Any] = dict(steps=3, loss="mse", estimator=ESTIMATORS[estimator][0])
            maml = mf.MAML(model, rule=rule, backend=backend, **settings)
            out = maml((x, y), (x, y + 1))
        leaves = [model.weight, lr, bound]
        found.append(torch.autograd.grad(out.loss, leaves, materialize_grads=True))
    (weight, of_lr, of_bound), (expected, _, _) = found
    assert of_bound == 0 and of_lr == 0
    assert_close({"weight": weight}, {"weight": expected}, tolerance=1e-12)
    assert float(expected.norm()) > 1e-3


# --------------------------------------------------------------------------------------------------------------- verify


def batch_of(p: Any) -> tuple[Any, Any]:
    return tuple(t.detach() for t in p.support), tuple(t.detach() for t in p.query)


FORMS = ("numbers", "element", "[]", "per_step tensor", "tensor")


@pytest.mark.parametrize(
    ("rule", "estimator", "model", "form"),
    list(zip(RULES, cycle(ESTIMATORS), cycle(MODELS), cycle(FORMS), strict=False)),
)
def test_verify_agrees(rule: str, estimator: str, model: str, form: str) -> None:
    p = problem(rule, model, form, 3, "model", tasks=2)
    maml = learner(p, rule, form, estimator=ESTIMATORS[estimator][0])
    report = mf.verify(maml, *batch_of(p), stepwise=p.row.stepwise)
    assert report.ok and report.engine == "native", str(report)
    assert all(any(n.split()[0] == hyper for n in report.errors) for hyper in maml.rule.hypers)


#: A fault of the native engine: another flag, another link, another order of links.
FAULTS: dict[str, tuple[str, Callable[[tuple[tuple[str, int], ...]], Any]]] = {
    "nesterov forgotten": ("nesterov", lambda spec: (("momentum", 0),)),
    "nesterov invented": ("momentum", lambda spec: (("momentum", 1),)),
    "weight decay decoupled": ("adam", lambda spec: (("adam", 1),)),
    "weight decay coupled": ("adamw", lambda spec: (("adam", 0),)),
    "denominator detached": ("adam", lambda spec: (("adam", 2),)),
    "denominator attached": ("adam_detached", lambda spec: (("adam", 0),)),
    "elements clipped instead of the norm": ("clip_norm, adam", lambda spec: (("clip_value", 0), spec[1])),
    "links in another order": (
        "clip_norm, proximal, adam, soft_threshold",
        lambda spec: (spec[3], *spec[1:3], spec[0]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_sees_a_wrong_rule(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, wrong = FAULTS[fault]
    p = problem(rule, "mlp", "[]", 3, "model", tasks=2)
    healthy = Rule.spec
    assert mf.verify(learner(p, rule, "[]"), *batch_of(p)).ok
    monkeypatch.setattr(Rule, "spec", property(lambda self: wrong(healthy.fget(self))))  # type: ignore[attr-defined]
    report = mf.verify(learner(p, rule, "[]"), *batch_of(p))
    assert not report.ok and "WRONG" in str(report), str(report)


WRONG_ESTIMATORS = {
    "first order": (mf.Exact(), ("first_order", 0)),
    "exact": (mf.FirstOrder(), ("exact", 0)),
    "a step too many": (mf.Truncated(1), ("truncated", 2)),
    "a step too few": (mf.Truncated(2), ("truncated", 1)),
}


@pytest.mark.parametrize("fault", WRONG_ESTIMATORS)
def test_verify_sees_a_wrong_estimator(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, spec = WRONG_ESTIMATORS[fault]
    p = problem("momentum", "mlp", "[]", 4, "model", tasks=2)
    monkeypatch.setattr(type(estimator), "spec", property(lambda self: spec))
    report = mf.verify(learner(p, "momentum", "[]", estimator=estimator), *batch_of(p))
    assert not report.ok and "WRONG" in str(report), str(report)
