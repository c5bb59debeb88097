"""Which engine runs what, and that they agree: the fallback, mf.grad and mf.hvp, mf.verify."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from changes import WAYS, with_norm
from metafast.call import Call, InnerLoop
from metafast.engine import ops, reference
from models import Cumulative
from small import NQ, N, Pair, T, gradients, lr_forms, mlp, same, tasks


def test_what_cannot_be_lowered_runs_on_torch_and_says_so_once(warned: list[warnings.WarningMessage]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), Cumulative(6), nn.Linear(6, WAYS)).double()
    maml = mf.MAML(model)
    support, query = tasks()
    for _ in range(2):
        out = maml(support, query)
        maml.predict(maml.adapt((support[0][:1], support[1][:1])), query[0][:1])
    assert len(warned) == 1
    assert "layer '1': logcumsumexp" in str(warned[0].message) and warned[0].filename == __file__
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=0.4, steps=5)
    same(gradients(out.loss, model), gradients(truth.loss, model))
    mf.MAML(model, backend="torch")(support, query)
    assert len(warned) == 1


@pytest.mark.parametrize("options", [{"strict": True}, {"backend": "native"}])
def test_strict_raises_naming_layer_and_reason(options: dict[str, Any]) -> None:
    maml = mf.MAML(nn.Sequential(nn.Linear(4, 6), Cumulative(6), nn.Linear(6, WAYS)).double(), **options)
    with pytest.raises(RuntimeError, match=r"layer '1': logcumsumexp\(\) in Cumulative has no native form"):
        maml(*tasks())
    with pytest.raises(RuntimeError, match=r"loss: logcumsumexp\(\) in the function has no native form"):
        mf.MAML(mlp(), loss=lambda o, y: o.logcumsumexp(1).mean(), **options)(*tasks())


def test_a_model_that_neither_engine_can_run_is_the_callers_mistake(warned: list[warnings.WarningMessage]) -> None:
    (xs, ys), query = tasks()
    for options in ({}, {"backend": "torch"}, {"strict": True}):
        with pytest.raises(ValueError, match=r"support x has, for each task, 5 examples of shape \[3\]"):
            mf.MAML(mlp(), **options)((xs[..., :3], ys), query)  # type: ignore[arg-type]
    assert not warned


def test_embeddings_take_integers() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, WAYS)).double()
    xs, xq = torch.randint(7, (T, N, 2)), torch.randint(7, (T, NQ, 2))
    (_, ys), (_, yq) = tasks()
    out = mf.MAML(model, steps=2, backend="torch")((xs, ys), (xq, yq))
    truth = oracle.unroll(model, "cross_entropy", (xs, ys), (xq, yq), lr=0.4, steps=2)
    same(gradients(out.loss, model), gradients(truth.loss, model))


def test_statistics_never_updated_warn_once(backend: str, warned: list[warnings.WarningMessage]) -> None:
    support, query = tasks()
    maml = mf.MAML(with_norm(), backend=backend).eval()
    for _ in range(2):
        maml(support, query)
        maml.train()(support, query)
        maml.eval()
    assert len(warned) == 1
    assert "layer '1' (BatchNorm1d) is in eval mode" in str(warned[0].message)


@pytest.mark.parametrize("lr", ["float", "dict of both"])
def test_tapes_that_leave_the_cache(lr: str) -> None:
    """Together larger than csrc/cpu/threads/prefetch.h takes a cache to be, one by one smaller."""
    model = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2)).double()
    support, query = [(torch.randn(2, n, 24).double(), torch.randn(2, n, 2).double()) for n in (24, 7)]
    rate = lr_forms(model)[lr]
    maml = mf.MAML(model, lr=rate, steps=24, loss="mse", memory="keep", strict=True)
    truth = oracle.unroll(model, "mse", support, query, lr=rate, steps=24)
    same(gradients(maml(support, query).loss, model), gradients(truth.loss, model))


# ----------------------------------------------------------------------------------------------------- mf.grad, mf.hvp


def test_gradients_and_hessian_vector_products(backend: str) -> None:
    model, (batch, _) = with_norm(), tasks()
    model[3].bias.requires_grad_(False)  # type: ignore[index]
    named = dict(model.named_parameters())
    params = {n: p.detach() + 0.1 * torch.randn(T, *p.shape).double() for n, p in named.items() if n != "0.bias"}
    params["1.weight"] = named["1.weight"].detach()  # shared
    learnt = {n: p for n, p in params.items() if n != "3.bias"}
    fixed = {n: p for n, p in params.items() if n not in learnt}
    v = {n: torch.randn(T, *named[n].shape).double() for n in learnt}
    model_at = copy.deepcopy(model)

    loss, grads = mf.grad(model, params, batch, "cross_entropy", backend=backend)
    products = mf.hvp(model, params, batch, v, "cross_entropy", backend=backend)
    assert list(grads) == list(products) == list(learnt)
    for t in range(T):
        rest = {n: p[t] for n, p in fixed.items()}
        at = {n: (p if p.shape == named[n].shape else p[t]).clone().requires_grad_() for n, p in learnt.items()}
        value = oracle.task_loss(
            "cross_entropy",
            oracle.call(model_at, {**dict(model_at.named_parameters()), **rest, **at}, batch[0][t]),
            batch[1][t],
        )
        slopes = torch.autograd.grad(value, list(at.values()), create_graph=True)
        along = sum((s * v[n][t]).sum() for n, s in zip(at, slopes, strict=True))
        truth = torch.autograd.grad(along, list(at.values()))  # type: ignore[arg-type]
        torch.testing.assert_close(loss[t], value, rtol=1e-12, atol=0)
        same([grads[n][t] for n in at], [s.detach() for s in slopes])
        for n, h in zip(at, truth, strict=True):
            torch.testing.assert_close(products[n][t], h, rtol=1e-9, atol=1e-11)


def test_a_shared_vector_is_everybodys(backend: str) -> None:
    model, (batch, _) = mlp(), tasks()
    params = dict(model.named_parameters())
    shared = {n: torch.randn(p.shape).double() for n, p in params.items()}
    full = {n: p.expand(T, *p.shape).clone() for n, p in shared.items()}
    a = mf.hvp(model, params, batch, shared, "cross_entropy", backend=backend)
    b = mf.hvp(model, params, batch, full, "cross_entropy", backend=backend)
    assert all(torch.equal(a[n], b[n]) for n in params)


def test_a_vector_that_lacks_a_parameter_is_refused_and_zeros_are_not(backend: str) -> None:
    model, (batch, _) = mlp(), tasks()
    model[0].bias.requires_grad_(False)  # type: ignore[index]  # needs no vector
    params = {n: p.detach() for n, p in model.named_parameters()}
    v = {n: torch.randn(T, *p.shape).double() for n, p in params.items() if n != "0.bias"}
    part = {n: p for n, p in v.items() if n == "0.weight"}

    def product(params: dict[str, Tensor], v: dict[str, Tensor]) -> dict[str, Tensor]:
        return mf.hvp(model, params, batch, v, "cross_entropy", backend=backend)

    for _ in range(3):  # the short path of a repeated call refuses as the first one does
        product(params, v)
        with pytest.raises(ValueError, match=r"v has no entry for '2.weight' \[3, 6\], '2.bias' \[3\];.*zeros_like"):
            product(params, part)
    with pytest.raises(ValueError, match=r"v\['0.wait'\]"):
        product(params, {"0.wait": v["0.weight"]})
    zeros = part | {n: torch.zeros_like(params[n]) for n in ("2.weight", "2.bias")}
    alone = product({n: params[n] for n in part}, part)["0.weight"]
    same([product(params, zeros)["0.weight"]], [alone])


# ---------------------------------------------------------------------------------------------------------- mf.verify


def weighted(batch: Pair) -> tuple[Tensor, ...]:
    return (*batch, torch.rand(batch[0].shape[:-1]).double())


@pytest.mark.parametrize("lr", ["[]", "[steps]", "dict of both"])
@pytest.mark.parametrize("first_order", [False, True])
def test_verify_agrees_with_a_right_engine(lr: str, first_order: bool, backend: str) -> None:
    model = with_norm()
    maml = mf.MAML(model, lr_forms(model)[lr], steps=3, first_order=first_order, backend=backend)
    support, query = tasks((3,))
    report = mf.verify(maml, weighted(support), weighted(query), stepwise=True)
    assert report.ok, str(report)
    report.raise_if_wrong()
    assert {"loss", "0.weight", "3.bias", "xs", "xq", "ws", "wq"} < set(report.errors)
    assert report.engine.startswith(backend)
    assert all(p.grad is None for p in model.parameters())
    assert 0 < report.errors_float32["loss"] < 1e-5


def test_verify_learnt_rates_and_float32(backend: str) -> None:
    model = mlp().float()
    maml = mf.MAML(model, {n: 0.1 for n, _ in model.named_parameters()}, steps=2, learn_lr=True, backend=backend)
    (xs, ys), (xq, yq) = tasks()
    report = mf.verify(maml, (xs.float(), ys), (xq.float(), yq))
    assert report.ok and "lr 0.weight" in report.errors, str(report)


def test_verify_notices_a_wrong_engine(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    engine = ops if backend == "native" else reference
    right = engine.unroll

    def wrong(program: Any, call: Call, loop: InnerLoop, **options: Any) -> Any:
        return right(program, call, replace(loop, estimator=mf.FirstOrder()), **options)

    monkeypatch.setattr(engine, "unroll", wrong)
    report = mf.verify(mf.MAML(mlp(), steps=2, backend=backend), *tasks())
    assert not report.ok and "WRONG" in str(report) and report.errors["loss"] < 1e-12
    with pytest.raises(RuntimeError, match="DIFFERS"):
        report.raise_if_wrong()


def test_verify_refuses_a_random_model() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, WAYS)).double()
    with pytest.raises(ValueError, match="two answers for one input"):
        mf.verify(mf.MAML(model, backend="torch"), *tasks())
