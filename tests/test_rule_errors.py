"""Every bad argument of rules, chains, estimators, checkpoints and initial parameters is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metafast as mf
from small import T, mlp, tasks

NAN, INF = float("nan"), float("inf")
Row = tuple[Callable[[], Any], type[Exception], str]


def maml(rule: mf.Rule | None = None, **options: Any) -> mf.MAML:
    return mf.MAML(mlp(), rule=rule, steps=3, **options)


SETTINGS: list[Row] = [
    (lambda: mf.SGD("0.1"), TypeError, "lr must be a float, a tensor, or a dict .* it is '0.1'"),
    (lambda: mf.SGD(True), TypeError, "lr must be a float"),
    (lambda: mf.SGD([0.1]), TypeError, "lr must be a float"),
    (lambda: mf.SGD(np.ones(3)), TypeError, "lr must be a float"),
    (lambda: mf.SGD(1j), TypeError, "lr must be a float"),
    (lambda: mf.SGD(NAN), ValueError, "lr must be finite; it is nan"),
    (lambda: mf.SGD(INF), ValueError, "lr must be finite; it is inf"),
    (lambda: mf.SGD({"0.weight": "x"}), TypeError, r"lr\['0.weight'\] must be a float"),
    (lambda: mf.SGD(momentum=None), TypeError, "momentum must be a float"),
    (lambda: mf.SGD(momentum=-0.5), ValueError, "momentum must be >= 0; it is -0.5"),
    (lambda: mf.SGD(momentum=NAN), ValueError, "momentum must be finite; it is nan"),
    (lambda: mf.SGD(momentum=torch.tensor([0.5, -0.5])), ValueError, "momentum must be >= 0; its values are from -0.5"),
    (lambda: mf.SGD(momentum={"0.bias": -1}), ValueError, r"momentum\['0.bias'\] must be >= 0; it is -1"),
    (lambda: mf.SGD(dampening="no"), TypeError, "dampening must be a float"),
    (lambda: mf.SGD(weight_decay=-1), ValueError, "weight_decay must be >= 0; it is -1"),
    (lambda: mf.SGD(nesterov=True), ValueError, "nesterov=True needs momentum, and dampening = 0"),
    (lambda: mf.SGD(momentum=0.9, dampening=0.1, nesterov=True), ValueError, "nesterov=True needs momentum"),
    (lambda: mf.SGD(learn="rate"), ValueError, "learn names 'rate'; SGD has lr, momentum, dampening, weight_decay"),
    (lambda: mf.SGD(learn=3), TypeError, "learn must be names of settings"),
    (lambda: mf.SGD(learn=("lr", None)), TypeError, "learn must be names of settings"),
    (lambda: mf.Adam(learn="momentum"), ValueError, "learn names 'momentum'; Adam has lr, beta1, beta2, eps"),
    (lambda: mf.Adam(betas=0.9), TypeError, r"betas must be a pair \(b1, b2\); it is 0.9"),
    (lambda: mf.Adam(betas=(0.9,)), TypeError, "betas must be a pair"),
    (lambda: mf.Adam(betas=(0.9, 0.99, 0.999)), TypeError, "betas must be a pair"),
    (lambda: mf.Adam(betas=(1.0, 0.9)), ValueError, r"betas\[0\] must be >= 0 and < 1; it is 1"),
    (lambda: mf.AdamW(betas=(0.9, -0.1)), ValueError, r"betas\[1\] must be >= 0 and < 1; it is -0.1"),
    (lambda: mf.Adam(betas=(0.9, torch.tensor(1.0))), ValueError, r"betas\[1\] must be >= 0 and < 1; its values"),
    (lambda: mf.Adam(betas=(0.9, None)), TypeError, r"betas\[1\] must be a float"),
    (lambda: mf.Adam(lr=NAN), ValueError, "lr must be finite"),
    (lambda: mf.Adam(eps=-1e-8), ValueError, "eps must be >= 0; it is -1e-08"),
    (lambda: mf.Adam(weight_decay="0"), TypeError, "weight_decay must be a float"),
    (lambda: mf.clip_norm(-1), ValueError, "max_norm must be >= 0; it is -1"),
    (lambda: mf.clip_norm(None), TypeError, "max_norm must be a float"),
    (lambda: mf.clip_norm({"0.weight": 1.0}), TypeError, "max_norm bounds the gradient of all parameters together"),
    (lambda: mf.clip_value(-1), ValueError, "limit must be >= 0; it is -1"),
    (lambda: mf.clip_value("1"), TypeError, "limit must be a float"),
    (lambda: mf.proximal(-1), ValueError, "strength must be >= 0; it is -1"),
    (lambda: mf.soft_threshold(NAN), ValueError, "strength must be finite; it is nan"),
]

CHAINS: list[Row] = [
    (lambda: mf.chain(), ValueError, "chain needs one optimiser .* it got 0"),
    (lambda: mf.chain(mf.clip_norm(1.0)), ValueError, r"chain needs one optimiser .* it got 0: clip_norm\(max_norm=1"),
    (lambda: mf.chain(mf.SGD(), mf.Adam()), ValueError, r"chain needs one optimiser .* it got 2: SGD\(\), Adam"),
    (lambda: mf.chain(mf.clip_norm(1.0), torch.optim.SGD), TypeError, "chain takes rules .* it got a type"),
    (lambda: mf.chain(mf.clip_norm, mf.SGD()), TypeError, "chain takes rules .* it got a function"),
    (lambda: mf.chain([mf.SGD()]), TypeError, "chain takes rules .* it got a list"),
    (lambda: mf.chain(*[mf.clip_norm(1.0)] * 8, mf.SGD()), ValueError, "chain takes at most 8 rules; it got 9"),
    (
        lambda: mf.chain(mf.SGD(), mf.clip_norm(1.0)),
        ValueError,
        "clip_norm changes gradients, so it must stand in",
    ),
    (
        lambda: mf.chain(mf.Adam(), mf.proximal(1.0)),
        ValueError,
        "proximal changes gradients, so it must stand in",
    ),
    (lambda: mf.chain(mf.soft_threshold(1), mf.SGD()), ValueError, "soft_threshold changes parameters, .* behind"),
    (lambda: maml(mf.clip_norm(1.0)), ValueError, r"rule has no optimiser: it is clip_norm\(max_norm=1.0\)"),
    (lambda: maml(mf.SGD), TypeError, "rule must be a metafast rule such as metafast.SGD"),
]

OPTIONS: list[Row] = [
    (lambda: mf.Truncated(0), ValueError, "steps of Truncated must be >= 1; it is 0"),
    (lambda: mf.Truncated(-2), ValueError, "steps of Truncated must be >= 1; it is -2"),
    (lambda: mf.Truncated(1.5), TypeError, "steps of Truncated must be a whole number >= 1; it is 1.5"),
    (lambda: mf.Truncated(True), TypeError, "steps of Truncated must be a whole number"),
    (lambda: mf.Truncated("2"), TypeError, "steps of Truncated must be a whole number"),
    (lambda: mf.Checkpoint(0), ValueError, "every of Checkpoint must be >= 1, or None; it is 0"),
    (lambda: mf.Checkpoint(2.0), TypeError, "every of Checkpoint must be a whole number >= 1, or None; it is 2.0"),
    (lambda: mf.Checkpoint(False), TypeError, "every of Checkpoint must be a whole number"),
    (lambda: maml(memory=mf.Checkpoint), ValueError, "memory must be one of .* or a metafast.Checkpoint"),
    (lambda: maml(memory="checkpoint"), ValueError, "memory must be one of 'auto', 'keep', 'recompute', or a"),
    (lambda: maml(estimator="exact"), TypeError, r"estimator must be one of .*metafast\.Exact.*it is"),
    (lambda: maml(estimator=mf.FirstOrder), TypeError, r"estimator must be one of .*metafast\.Exact.*it is"),
    (
        lambda: maml(estimator=mf.Truncated(2), first_order=True),
        ValueError,
        r"first_order=True and estimator",
    ),
]


#: What fits the model is seen by the learner.
FITTING: list[Row] = [
    (lambda: maml(mf.SGD(0.1, torch.ones(2))), ValueError, r"momentum has shape \[2\]: 2 values .* expected steps=3"),
    (lambda: maml(mf.SGD(0.1, torch.ones(3, 4))), ValueError, r"momentum is a tensor of shape \[3, 4\]"),
    (lambda: maml(mf.SGD(0.1, torch.ones(3).int())), TypeError, "momentum must be floating"),
    (lambda: maml(mf.SGD(0.1, torch.tensor(NAN))), ValueError, "momentum must be finite"),
    (lambda: maml(mf.SGD(0.1, torch.tensor(INF))), ValueError, "momentum must be finite"),
    (lambda: maml(mf.SGD(0.1, {"0.weight": 0.9})), ValueError, "momentum has no entry for '0.bias'"),
    (lambda: maml(mf.SGD(0.1, {"0.wait": 0.9})), ValueError, "momentum names '0.wait', which is no parameter"),
    (lambda: maml(mf.Adam(betas=(torch.ones(2) / 2, 0.9))), ValueError, r"beta1 has shape \[2\]"),
    (
        lambda: maml(mf.chain(mf.clip_norm(torch.ones(4, 4)), mf.SGD(0.1))),
        ValueError,
        r"clip_norm is a tensor of shape \[4, 4\]",
    ),
]


@pytest.mark.parametrize(("attempt", "kind", "message"), SETTINGS + CHAINS + OPTIONS + FITTING)
def test_a_bad_argument_is_named(attempt: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        attempt()


WEIGHT = torch.zeros(6, 4, dtype=torch.float64)
STARTS: list[tuple[Any, type[Exception], str]] = [
    ([WEIGHT], TypeError, "start must be a dict from parameter name to tensor; it is a list"),
    ([], TypeError, "start must be a dict from parameter name to tensor; it is a list"),
    (WEIGHT, TypeError, "start must be a dict from parameter name to tensor; it is a Tensor"),
    ({"0.wait": WEIGHT}, ValueError, r"start\['0.wait'\]: the model has no such parameter; it has 0.weight, 0.bias"),
    ({"0.weight": 0.0}, TypeError, r"start\['0.weight'\] must be a torch.Tensor; it is a float"),
    (
        {"0.weight": WEIGHT.T},
        ValueError,
        r"start\['0.weight'\] has shape \[4, 6\]; expected \[6, 4\] or \[T, \*shape\]",
    ),
    ({"0.weight": WEIGHT.expand(T + 1, 6, 4)}, ValueError, r"expected \[6, 4\] or \[T, \*shape\] = \[3, 6, 4\]"),
    ({"0.weight": WEIGHT.float()}, TypeError, r"start\['0.weight'\] has dtype torch.float32; expected torch.float64"),
]


@pytest.mark.parametrize(("start", "kind", "message"), STARTS)
def test_bad_initial_parameters_are_named(start: Any, kind: type[Exception], message: str, backend: str) -> None:
    learner, (support, query) = maml(backend=backend), tasks()
    for call in (learner, learner.meta_gradient):
        with pytest.raises(kind, match=message):
            call(support, query, start=start)
    with pytest.raises(kind, match=message):
        learner.adapt(support, start=start)


def test_no_initial_parameters_are_the_models_own(backend: str) -> None:
    learner, (support, query) = maml(backend=backend), tasks()
    assert torch.equal(learner(support, query, start={}).loss, learner(support, query).loss)


def test_gradients_for_what_is_frozen_are_refused_natively() -> None:
    """And taken on torch; never silently absent."""
    model, (support, query) = mlp(), tasks()
    model[0].weight.requires_grad_(False)
    given = {"0.weight": WEIGHT.clone().requires_grad_(), "2.weight": model[2].weight}
    for backend in ("native", "torch"):
        learner = mf.MAML(model, 0.1, steps=2, backend=backend)

        def by_grad(backend: str = backend) -> Tensor:
            return mf.grad(model, given, support, "cross_entropy", backend=backend)[0].sum()

        uses: list[tuple[str, Callable[[], Tensor]]] = [
            ("start", lambda learner=learner: learner(support, query, start=given).loss),
            ("params", lambda learner=learner: learner.predict(given, query[0]).sum()),
            ("params", by_grad),
        ]
        for name, use in uses:
            if backend == "torch":
                assert torch.autograd.grad(use(), given["0.weight"])[0].norm() > 0
            else:
                with pytest.raises(ValueError, match=rf"{name}\['0.weight'\] requires grad, but the model's own does"):
                    use()
            with torch.no_grad():
                use()
