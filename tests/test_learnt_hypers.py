"""Hyper-parameters of rules that the learner holds as parameters; how rules are shown, saved, and called again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from judge import assert_close, assert_same_bits
from rule_cases import RULES, forward, problem, run_oracle
from small import mlp, tasks

NAMES = [name for name, _ in mlp().named_parameters()]


def dotted(*hypers: str) -> list[str]:
    return [f"{h}.{n}" for h in hypers for n in NAMES]


def elements(value: float) -> dict[str, Tensor]:
    return {n: torch.full(p.shape, value) for n, p in mlp().named_parameters()}


def steps_of_elements(value: float) -> dict[str, Tensor]:
    return {n: torch.full((2, *p.shape), value) for n, p in mlp().named_parameters()}


#: A rule that learns, and the names that its learner's state_dict has for it.
LEARNT: dict[str, tuple[Callable[[], mf.Rule], list[str]]] = {
    "sgd": (lambda: mf.SGD(0.3, learn="lr"), ["lr"]),
    "momentum": (lambda: mf.SGD(0.3, 0.5, learn=("lr", "momentum")), ["lr", "momentum"]),
    "momentum from zero": (lambda: mf.SGD(0.3, learn=("momentum",)), ["momentum"]),
    "all of SGD": (
        lambda: mf.SGD(0.3, 0.5, 0.1, weight_decay=0.1, learn=["lr", "momentum", "dampening", "weight_decay"]),
        ["lr", "momentum", "dampening", "weight_decay"],
    ),
    "nesterov per element": (
        lambda: mf.SGD(elements(0.3), elements(0.5), nesterov=True, learn=("lr", "momentum")),
        dotted("lr", "momentum"),
    ),
    "per step": (
        lambda: mf.SGD(steps_of_elements(0.3), steps_of_elements(0.5), per_step=True, learn=("momentum", "lr")),
        dotted("lr", "momentum"),
    ),
    "betas": (lambda: mf.Adam(0.05, learn="betas"), ["beta1", "beta2"]),
    "beta and eps": (lambda: mf.AdamW(torch.tensor([0.05, 0.1]), learn=("lr", "beta2", "eps")), ["lr", "beta2", "eps"]),
    "in a chain": (
        lambda: mf.chain(mf.clip_norm(0.5), mf.Adam(0.05, learn=("lr", "betas")), mf.soft_threshold(0.01)),
        ["lr", "beta1", "beta2"],
    ),
    "in a chain of a chain": (
        lambda: mf.chain(mf.clip_norm(2.0), mf.chain(mf.clip_norm(0.5), mf.SGD(0.3, 0.5, learn="momentum"))),
        ["momentum"],
    ),
}


def maml_of(name: str, backend: str = "native") -> mf.MAML:
    return mf.MAML(mlp(), rule=LEARNT[name][0](), steps=2, backend=backend)


def own(named: Any) -> list[str]:
    return [name for name, _ in named if not name.startswith("model.")]


@pytest.mark.parametrize("name", LEARNT)
def test_learnt_hypers_are_parameters_of_the_learner(name: str, backend: str) -> None:
    maml, names, (support, query) = maml_of(name, backend), LEARNT[name][1], tasks()
    assert own(maml.named_parameters()) == names and own(maml.state_dict().items()) == names
    hypers = [maml.get_parameter(n) for n in names]
    assert all(h.dtype == torch.float64 and h.requires_grad for h in hypers)

    optimiser, before = torch.optim.SGD(maml.parameters(), 1e-3), [h.detach().clone() for h in hypers]
    out = maml(support, query)
    out.loss.backward()
    assert all(bool(h.grad.abs().sum() > 0) for h in hypers)
    optimiser.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, hypers, strict=True))
    assert not torch.equal(maml(support, query).loss, out.loss), "the new values count"

    torch.manual_seed(1)
    other = maml_of(name, backend)
    assert not torch.equal(other(support, query).loss, maml(support, query).loss)
    other.load_state_dict(maml.state_dict())
    assert torch.equal(other(support, query).loss, maml(support, query).loss)


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda maml: pickle.loads(pickle.dumps(maml))])
@pytest.mark.parametrize("name", LEARNT)
def test_copies_have_hypers_of_their_own(name: str, travel: Callable[[mf.MAML], mf.MAML]) -> None:
    maml, names, (support, query) = maml_of(name), LEARNT[name][1], tasks()
    expected = maml(support, query).loss
    other = travel(maml)
    assert own(other.named_parameters()) == names and repr(other) == repr(maml)
    assert torch.equal(other(support, query).loss, expected)
    with torch.no_grad():
        other.get_parameter(names[0]).mul_(0.5).add_(0.01)
    assert not torch.equal(other(support, query).loss, expected)
    assert torch.equal(maml(support, query).loss, expected)


def test_learn_lr_is_learn_of_lr(backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    for rule in (mf.SGD, mf.Adam):
        one = mf.MAML(model, rule=rule(0.1), learn_lr=True, backend=backend)
        two = mf.MAML(model, rule=rule(0.1, learn=("lr",)), backend=backend)
        three = mf.MAML(model, 0.1, rule=rule(learn="lr"), backend=backend)
        found = []
        for maml in (one, two, three):
            assert own(maml.named_parameters()) == ["lr"] and maml.learn_lr
            parameters = dict(maml.named_parameters())
            gradients = torch.autograd.grad(maml(support, query).loss, list(parameters.values()))
            found.append(dict(zip(parameters, gradients, strict=True)))
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("rule", ["nesterov", "dampening", "adamw", "amsgrad", "clip_norm, adam"])
def test_gradients_of_learnt_hypers_equal_the_oracle(rule: str, backend: str) -> None:
    """Those of parameters of the learner are those of tensors that are given."""
    p = problem(rule, "mlp", "element", 3, "model")
    given = {n: {k: v.detach() for k, v in h.items()} if isinstance(h, dict) else h for n, h in p.hypers.items()}
    of_optimiser = [n for n in given if n not in ("clip_norm", "proximal") and not (rule == "nesterov" and n[0] == "d")]
    made = RULES[rule].build(given, per_step=False, learn=of_optimiser)
    maml = mf.MAML(p.model, rule=made, steps=3, loss=p.row.loss, backend=backend)
    learnt = {n: h for n, h in maml.named_parameters() if not n.startswith("model.")}
    assert len(learnt) == 6 * len(of_optimiser)
    found = torch.autograd.grad(forward(maml, p)["loss"], list(learnt.values()))
    truth = torch.autograd.grad(run_oracle(p, rule, "element", "exact")["loss"], [p.leaves[n] for n in learnt])
    assert_close(dict(zip(learnt, found, strict=True)), dict(zip(learnt, truth, strict=True)))


def test_meta_gradient_has_learnt_hypers_too(backend: str) -> None:
    maml, (support, query) = maml_of("betas", backend), tasks()
    out, gradients = maml.meta_gradient(support, query)
    expected = torch.autograd.grad(maml(support, query).loss, list(maml.parameters()))
    assert not out.loss.requires_grad and len(gradients) == len(NAMES) + 2
    assert all(map(torch.equal, gradients, expected))


def test_a_tensor_that_is_learnt_stays_the_users_and_a_parameter_is_shared() -> None:
    tensor, parameter = torch.tensor(0.5), nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    maml = mf.MAML(mlp(), rule=mf.SGD(0.1, momentum=tensor, weight_decay=parameter, learn=("momentum", "weight_decay")))
    assert maml.hyper("momentum") is not tensor and maml.hyper("weight_decay") is parameter
    assert maml.hyper("dampening") == 0.0 and maml.hyper("lr") == 0.1


# -------------------------------------------------------------------------------------------------- how rules are shown

SHOWN = [
    (mf.SGD(), "SGD()"),
    (mf.SGD(1), "SGD(lr=1.0)"),
    (mf.SGD(0.1, 0.9), "SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0)"),
    (
        mf.SGD(0.1, 0.9, nesterov=True),
        "SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=True)",
    ),
    (mf.SGD(torch.tensor(0.1), learn="lr"), "SGD(lr=Tensor, learn=('lr',))"),
    (mf.SGD({"0.weight": torch.ones(2)}, per_step=True), "SGD(lr=dict, per_step=True)"),
    (mf.Adam(), "Adam(beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0)"),
    (
        mf.Adam(0.1, amsgrad=True, detach_denominator=True),
        "Adam(lr=0.1, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, amsgrad=True, detach_denominator=True)",
    ),
    (mf.AdamW(0.1, learn="betas"), "AdamW(lr=0.1, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01, "),
    (
        mf.chain(mf.clip_norm(1), mf.proximal(0.5), mf.SGD(0.1), mf.soft_threshold(0.01)),
        "chain(clip_norm(max_norm=1.0), proximal(strength=0.5), SGD(lr=0.1), soft_threshold(strength=0.01))",
    ),
    (
        mf.chain(mf.clip_value(2), mf.clip_value(1), mf.SGD()),
        "chain(clip_value(limit=2.0), clip_value(limit=1.0), SGD()",
    ),
]


@pytest.mark.parametrize(("rule", "text"), SHOWN, ids=[text for _, text in SHOWN])
def test_a_rule_shows_its_settings(rule: mf.Rule, text: str) -> None:
    assert repr(rule).startswith(text)
    if rule.spec != mf.SGD().spec:
        assert f"rule={rule!r}" in repr(mf.MAML(mlp(), rule=rule))


# --------------------------------------------------------------------------------------- numbers, and calls that repeat

RULES_OF_INTEGERS: list[tuple[Callable[[], mf.Rule], Callable[[], mf.Rule]]] = [
    (lambda: mf.SGD(1), lambda: mf.SGD(1.0)),
    (lambda: mf.SGD(1, momentum=0, weight_decay=0), lambda: mf.SGD(1.0)),
    (lambda: mf.SGD(1, momentum=1, dampening=0), lambda: mf.SGD(1.0, 1.0)),
    (lambda: mf.Adam(1, (0, 0.5), 1), lambda: mf.Adam(1.0, (0.0, 0.5), 1.0)),
    (lambda: mf.chain(mf.clip_norm(1), mf.SGD(1)), lambda: mf.chain(mf.clip_norm(1.0), mf.SGD(1.0))),
]


@pytest.mark.parametrize(("integers", "floats"), RULES_OF_INTEGERS)
def test_integers_are_floats_and_calls_with_them_repeat(
    integers: Callable[[], mf.Rule], floats: Callable[[], mf.Rule]
) -> None:
    model, (support, query) = mlp(), tasks()
    one, two = mf.MAML(model, rule=integers()), mf.MAML(model, rule=floats())
    assert all(type(value) is float for value in one.rule.hypers.values()) and one.rule.spec == two.rule.spec
    for maml in (one, two):
        maml.meta_gradient(support, query)
        assert maml._repeat is not None, "the short way"
    assert torch.equal(one.meta_gradient(support, query)[0].loss, two.meta_gradient(support, query)[0].loss)


def test_an_integer_rate_of_the_learner_is_a_float() -> None:
    maml, (support, query) = mf.MAML(mlp(), 1), tasks()
    assert type(maml.lr) is float and maml.lr == 1
    maml(support, query)
    assert maml._repeat is not None
