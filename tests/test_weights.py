"""Weights of examples: what they may mean, their gradients where they are zero, and warnings where they mislead."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from changes import WAYS, with_norm
from metafast import arguments, losses
from metafast.engine import device, ops
from metafast.losses import resolve
from metafast.model.program import Loss, Program
from small import NQ, N, T, mlp, tasks

REDUCTIONS = ("weighted_mean", "mean", "sum")


@pytest.fixture(params=["native", "torch", "emulated"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend; "emulated" is the CUDA code."""
    if request.param == "emulated":
        pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")
    with device.emulated() if request.param == "emulated" else nullcontext():
        yield "native" if request.param == "emulated" else request.param


# --------------------------------------------------------------------------------------------------------- closed forms


class Regression:
    """Least squares, l_i = r_i^2 with r_i = theta . (x_i, 1) - y_i, so that g_i = 2 r_i (x_i, 1)."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 1).double()
        self.support, self.query = self.examples(N), self.examples(NQ)

    @staticmethod
    def examples(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(T, count, 3, dtype=torch.float64), torch.randn(T, count, 1, dtype=torch.float64)

    def each(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """l_i [T, N] and g_i [T, N, 4]."""
        r = (x @ self.model.weight[0] + self.model.bias - y[..., 0]).detach()
        return r.square(), 2 * r[..., None] * self.rows(x)

    @staticmethod
    def rows(x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def divided(total: Tensor, w: Tensor, reduction: str) -> Tensor:
    divisor = {"weighted_mean": w.sum(1), "mean": torch.full((T,), float(w.shape[1])), "sum": torch.ones(T)}[reduction]
    return total / divisor.reshape(T, *[1] * (total.dim() - 1))


def joined(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([named["weight"].flatten(1), named["bias"].flatten(1)], 1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_three_meanings(reduction: str, engine: str) -> None:
    problem = Regression()
    x, y = problem.support
    w = torch.randn(T, N, dtype=torch.float64)
    each, g = problem.each(x, y)
    settings = dict(loss="mse", backend=engine, reduction=reduction)
    given = dict(problem.model.named_parameters())
    loss, slopes = mf.grad(problem.model, given, (x, y, w), **settings)
    torch.testing.assert_close(loss, divided((w * each).sum(1), w, reduction), rtol=1e-13, atol=0)
    torch.testing.assert_close(joined(slopes), divided((w[..., None] * g).sum(1), w, reduction), rtol=1e-13, atol=1e-14)
    v = {name: torch.randn(T, *p.shape, dtype=torch.float64) for name, p in given.items()}
    rows = problem.rows(x)
    hessian = divided(torch.einsum("tn,tni,tnj->tij", w, 2 * rows, rows), w, reduction)
    product = mf.hvp(problem.model, given, (x, y, w), v, **settings)
    expected = torch.einsum("tij,tj->ti", hessian, joined(v))
    torch.testing.assert_close(joined(product), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_learning_to_reweight(reduction: str, engine: str) -> None:
    """Ren et al. 2018: at w = 0, d L_q / d w_i = -a g_i . grad L_q, divided by N for a mean."""
    problem, rate = Regression(), 0.2
    w = torch.zeros(T, N, dtype=torch.float64, requires_grad=True)
    maml = mf.MAML(problem.model, lr=rate, steps=1, loss="mse", backend=engine, reduction=reduction)
    out = maml((*problem.support, w), problem.query)
    assert torch.equal(out.support_loss, torch.zeros_like(out.support_loss))
    _, g = problem.each(*problem.support)
    _, of_query = problem.each(*problem.query)
    of_query = of_query.sum(1) if reduction == "sum" else of_query.mean(1)
    expected = -rate * torch.einsum("tni,ti->tn", g, of_query) / (1 if reduction == "sum" else N)
    (made,) = torch.autograd.grad(out.task_loss.sum(), w)
    torch.testing.assert_close(made, expected, rtol=1e-13, atol=1e-14)
    _, again = maml.meta_gradient((*problem.support, w.detach()), problem.query)
    torch.testing.assert_close(
        torch.cat([g.flatten() for g in again]), of_query.mean(0), rtol=1e-13, atol=1e-14
    )  # nothing has moved


def test_advantages_of_both_signs(engine: str) -> None:
    """Whose sum is zero: the policy gradient is a mean of w l, and the weighted mean of them nothing one could use."""
    problem = Regression()
    w = torch.randn(T, N, dtype=torch.float64)
    w = w - w.mean(1, keepdim=True)
    each, _ = problem.each(*problem.support)
    given = dict(problem.model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, _ = mf.grad(problem.model, given, (*problem.support, w), "mse", backend=engine, reduction="mean")
    torch.testing.assert_close(loss, (w * each).mean(1), rtol=1e-13, atol=0)


# -------------------------------------------------------------------------------------------------------------- asking


def own(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


@pytest.mark.parametrize(
    ("loss", "reduction", "message"),
    [
        (own, "sum", "reduction='sum' needs a loss known by name.*; own is a function"),
        (nn.CTCLoss(), "mean", "reduction='mean' needs a loss known by name.*; CTCLoss has no native form"),
        (nn.BCELoss(weight=torch.ones(WAYS)), "sum", "BCELoss with weight has no native form"),
        ("cross_entropy", "median", "reduction must be one of 'weighted_mean', 'mean', 'sum'; it is 'median'"),
        (own, "median", "reduction must be one of"),
        ("mse", None, "reduction must be one of .* it is None"),
        (nn.MSELoss(reduction="none"), "weighted_mean", "expected 'mean' or 'sum', which make one number"),
    ],
)
def test_what_cannot_be_reduced_so(loss: Any, reduction: Any, message: str) -> None:
    model, (support, _) = mlp(), tasks()
    given = dict(model.named_parameters())
    for call in (
        lambda: mf.MAML(model, loss=loss, reduction=reduction),
        lambda: mf.grad(model, given, support, loss, reduction=reduction),
        lambda: mf.hvp(model, given, support, given, loss, reduction=reduction),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_it_may_be_assigned(engine: str) -> None:
    model, (support, query) = mlp(), tasks()
    maml = mf.MAML(model, lr=0.1, steps=2, backend=engine)
    mean = maml(support, query).task_loss
    maml.reduction = "sum"
    expected = mf.MAML(model, lr=0.1, steps=2, backend=engine, reduction="sum")(support, query).task_loss
    assert torch.equal(maml(support, query).task_loss, expected) and not torch.equal(mean, expected)
    maml.reduction = "product"
    with pytest.raises(ValueError, match="reduction must be one of"):
        maml(support, query)


def test_it_is_shown_and_travels() -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), lr=0.1, steps=2, reduction="sum")
    assert "reduction='sum'" in repr(maml) and "reduction" not in repr(mf.MAML(mlp()))
    expected = maml(support, query).loss
    for twin in (copy.deepcopy(maml), pickle.loads(pickle.dumps(maml))):
        assert torch.equal(twin(support, query).loss, expected)
    state = maml.__getstate__()
    del state["reduction"]  # as a learner pickled before there were reductions has it
    old = mf.MAML.__new__(mf.MAML)
    old.__setstate__(state)
    assert torch.equal(old(support, query).loss, mf.MAML(maml.model, lr=0.1, steps=2)(support, query).loss)


def test_a_program_shows_what_is_not_the_default() -> None:
    lines = [str(Program(((2,),), (), (), resolve("mse", r)[0])).splitlines()[-1] for r in REDUCTIONS]
    assert lines == ["loss = mse(%0)", "loss = mse(%0) reduction=mean", "loss = mse(%0) reduction=sum"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_verify_honours_it(reduction: str, backend: str) -> None:
    (xs, ys), (xq, yq) = tasks()
    w, wq = torch.randn(T, N).double(), torch.rand(T, NQ).double()
    report = mf.verify(
        mf.MAML(mlp(), lr=0.01, steps=2, backend=backend, reduction=reduction), (xs, ys, w), (xq, yq, wq)
    )
    report.raise_if_wrong()


def test_verify_finds_another_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    def weighted_mean(loss: Loss, each: Tensor, w: Tensor | None, masses: Any) -> Tensor:
        return each.mean(-1) if w is None else (w * each).sum(-1) / w.sum(-1)

    maml = mf.MAML(mlp(), lr=0.1, steps=2, backend="torch", reduction="sum")
    assert mf.verify(maml, *tasks()).ok
    monkeypatch.setattr(losses, "reduced", weighted_mean)
    assert not mf.verify(maml, *tasks()).ok


# ------------------------------------------------------------------------------------------------------------ warnings


def centred(*shape: int) -> Tensor:
    """As advantages are: of both signs, the sum nothing but rounding."""
    w = torch.randn(shape, dtype=torch.float64)
    return w - w.mean(-1, keepdim=True)


def said(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(w.filename == __file__ for w in caught)  # the line of the user's own
    return [str(w.message) for w in caught]


def test_weights_that_cancel_are_named_once(engine: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), backend=engine)
    w = torch.ones(T, N).double()
    w[1] = centred(N)
    (message,) = said(lambda: maml((*support, w), query))
    assert "support weights nearly cancel" in message
    assert "reduction='mean'" in message and "reduction='sum'" in message
    assert not said(lambda: maml((*support, w), query))
    (message,) = said(lambda: maml(support, (*query, centred(T, NQ))))
    assert "query weights nearly cancel" in message


def test_weights_of_every_call_are_looked_at(engine: str) -> None:
    model, (support, query) = mlp(), tasks()
    given = dict(model.named_parameters())
    stream, _ = tasks((5,))
    w = centred(T, N)
    steps = torch.ones(T, 5, N).double()
    steps[0, 3] = w[0]
    calls: dict[str, Callable[[mf.MAML], Any]] = {
        "support": lambda maml: maml.meta_gradient((*support, w), query),
        "support weights": lambda maml: maml.adapt((*support, w)),
        "support weights nearly": lambda maml: maml((*stream, steps), query, stepwise=True),
    }
    for expected, call in calls.items():
        maml = mf.MAML(model, backend=engine)
        (message,) = said(lambda maml=maml, call=call: call(maml))
        assert expected in message
    for call in (
        lambda model: mf.grad(model, given, (*support, w), "cross_entropy", backend=engine),
        lambda model: mf.hvp(model, given, (*support, w), given, "cross_entropy", backend=engine),
    ):
        (message,) = said(lambda call=call: call(copy.deepcopy(model)))
        assert "batch weights nearly cancel" in message


def test_the_short_way_looks_at_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (support, query) = mlp(), tasks()
    given = {name: p.detach() for name, p in model.named_parameters()}
    vectors = {name: torch.randn(T, *p.shape).double() for name, p in given.items()}
    good, bad = torch.rand(T, N).double(), centred(T, N)
    steps, gradients = (mf.MAML(model, strict=True) for _ in range(2))

    def product(w: Tensor) -> Any:
        return mf.hvp(model, given, (*support, w), vectors, "cross_entropy", strict=True)

    calls = [
        lambda w: steps((*support, w), query),
        lambda w: gradients.meta_gradient((*support, w), query),
        product,
    ]
    for call in calls:
        assert not said(lambda call=call: call(good))
    for name in ("unroll", "meta_gradient", "hvp"):
        monkeypatch.delattr(ops, name)  # the long way
    for call in calls:
        assert not said(lambda call=call: call(good + 1))
        (message,) = said(lambda call=call: call(bad))
        assert "weights nearly cancel" in message
        assert not said(lambda call=call: call(bad))


HARMLESS: dict[str, Callable[[], Tensor]] = {
    "ones": lambda: torch.ones(T, N).double(),
    "all zero": lambda: torch.zeros(T, N).double(),
    "one negative": lambda: torch.tensor([1, 1, 1, 1, -0.9]).double().expand(T, N),
    "not a number": lambda: torch.full((T, N), torch.nan).double(),
    "infinite": lambda: torch.full((T, N), torch.inf).double(),
    "a hundredth": lambda: torch.tensor([1, -1, 0, 0.0, 0.02]).double().expand(T, N),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_other_weights_pass_in_silence(kind: str, engine: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), lr=0.1, steps=1, backend=engine)
    assert not said(lambda: maml((*support, HARMLESS[kind]()), query))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_divides_by_weights_that_cancel(reduction: str, engine: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), lr=0.1, steps=1, backend=engine, reduction=reduction)
    assert not said(lambda: maml((*support, centred(T, N)), (*query, centred(T, NQ))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cancelling_looks_the_same_in_c_and_python(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    around = [torch.tensor([[1.0, 1.0], [1.0, share - 1.0]]) for share in (-0.0021, -0.0019, 0.0, 0.0019, 0.0021)]
    cases = [w.to(dtype) for w in around]
    cases += [w.expand(2, 2, 2) for w in cases] + [w.repeat_interleave(2, 1)[:, ::2] for w in cases]
    cases += [w.clone().requires_grad_() for w in cases[:5]]
    found = [arguments.cancels(w) for w in cases]
    assert found == [False, True, True, True, False] * 4
    monkeypatch.setattr(arguments, "rows_add_up", lambda tensor, share: False)
    assert [arguments.cancels(w) for w in cases] == found


def test_weights_may_be_differentiated_by_torch_func() -> None:
    model, (support, _) = mlp(), tasks()
    given = dict(model.named_parameters())

    def loss(w: Tensor) -> Tensor:
        return mf.grad(model, given, (*support, w), "cross_entropy", backend="torch")[0].sum()

    w = torch.rand(T, N).double().requires_grad_()
    (expected,) = torch.autograd.grad(loss(w), w)
    assert not said(lambda: torch.testing.assert_close(torch.func.grad(loss)(w.detach()), expected, rtol=1e-12, atol=0))
    (message,) = said(lambda: torch.func.grad(loss)(centred(T, N)))
    assert "batch weights nearly cancel" in message


def padded() -> Tensor:
    w = torch.ones(T, N).double()
    w[1, -2:] = 0
    return w


NORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "training": (with_norm, "batch norm '1'"),
    "no statistics, eval": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False)).double().eval(),
        "batch norm '1'",
    ),
    "eval": (lambda: with_norm().eval(), ""),
    "of each example": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)).double(), ""),
    "none": (mlp, ""),
}


@pytest.mark.filterwarnings("ignore:metafast. .*is in eval mode")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", NORMS)
def test_padding_in_front_of_a_norm(kind: str, reduction: str, backend: str) -> None:
    support, query = tasks()
    build, named = NORMS[kind]
    maml = mf.MAML(build(), lr=0.1, steps=1, backend=backend if kind != "of each example" else "torch")
    maml.reduction = reduction
    maml(support, query)
    assert not said(lambda: maml((*support, torch.zeros(T, N).double()), query))  # which nobody pads with
    found = said(lambda: maml((*support, padded()), query))
    assert len(found) == bool(named)
    assert all("support weights are zero for some examples" in message and named in message for message in found)
    assert not said(lambda: maml((*support, padded()), query))
