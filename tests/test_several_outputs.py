"""A model may return several tensors, and its loss takes all of them: rows of such are in rows_of_losses.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from judge import assert_close
from metafast.call import named, tensors_of

D = torch.float64


class Found(NamedTuple):
    label: Tensor
    box: Tensor


class Heads(nn.Module):
    """Classes and a box, in the container that ``made`` makes of the two."""

    def __init__(self, made: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.label, self.box = nn.Linear(4, 3), nn.Linear(4, 4)
        self.made = made

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return self.made(self.label(h), self.box(h).view(-1, 2, 2))


def by_place(outputs: Any, target: Any) -> Tensor:
    (label, box), (y, at) = outputs, target
    return F.cross_entropy(label, y) + 0.3 * F.smooth_l1_loss(box, at) + 0.1 * (label[:, :2] * box[:, 0]).mean()


def by_name(outputs: Any, target: Any) -> Tensor:
    return by_place((outputs["label"], outputs["box"]), (target["y"], target["at"]))


def by_attribute(outputs: Any, target: Any) -> Tensor:
    return by_place((outputs.label, outputs.box), target)


def nested(outputs: Any, target: Any) -> Tensor:
    return by_place((outputs["label"], outputs["more"][0]), target)


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any, Any], Tensor]]] = {
    "tuple": (lambda a, b: (a, b), by_place),
    "list": (lambda a, b: [a, b], by_place),
    "dict": (lambda a, b: {"label": a, "box": b}, by_name),
    "named tuple": (Found, by_attribute),
    "nested": (lambda a, b: {"label": a, "more": (b,)}, nested),
}


def batch(n: int, loss: Any = by_place) -> tuple[Tensor, Any]:
    y, at = torch.randint(3, (4, n)), torch.randn(4, n, 2, 2, dtype=D, requires_grad=True)
    return torch.randn(4, n, 3, dtype=D, requires_grad=True), {"y": y, "at": at} if loss is by_name else (y, at)


def everything(model: nn.Module, loss: Any, backend: str, support: Any, query: Any) -> dict[str, Tensor]:
    """Outputs and gradients of all that takes a model and a loss."""
    maml = mf.MAML(model, lr=0.1, steps=2, loss=loss, backend=backend)
    out = maml(support, query)
    logits = named("logits", out.logits)
    total = out.loss + sum((t * torch.linspace(-1, 1, t.numel(), dtype=D).view(t.shape)).sum() for t in logits.values())
    leaves = [*model.parameters(), *(t for b in (support, query) for t in tensors_of(b) if t.requires_grad)]
    made = {"loss": out.loss, "task": out.task_loss, "support": out.support_loss, **logits}
    made |= {f"d{i}": t for i, t in enumerate(torch.autograd.grad(total, leaves))}
    made |= {f"meta{i}": t for i, t in enumerate(maml.meta_gradient(support, query)[1])}
    adapted = maml.adapt(support)
    made |= {f"adapted {name}": t for name, t in adapted.items()}
    made |= named("predicted", maml.predict(adapted, query[0]))
    at = {name: p.detach() for name, p in adapted.items()}
    losses, slopes = mf.grad(model, at, support, loss, backend=backend)
    made |= {"losses": losses} | {f"grad {name}": t for name, t in slopes.items()}
    products = mf.hvp(model, at, support, {name: p.cos() for name, p in at.items()}, loss, backend=backend)
    return made | {f"hvp {name}": t for name, t in products.items()}


@pytest.mark.parametrize("case", CASES)
def test_all_calls_are_native_and_give_what_torch_gives(case: str) -> None:
    torch.manual_seed(0)
    made, loss = CASES[case]
    model = Heads(made).double()
    support, query = batch(5, loss), batch(6, loss)
    native, torchs = (everything(model, loss, backend, support, query) for backend in ("native", "torch"))
    assert_close(native, torchs)
    out = mf.MAML(model, steps=1, loss=loss, backend="native")(support, query)
    parts = made(torch.empty(4, 6, 3), torch.empty(4, 6, 2, 2))
    assert type(out.logits) is type(parts)
    assert {n: t.shape for n, t in named("", out.logits).items()} == {n: t.shape for n, t in named("", parts).items()}


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("case", ["dict", "nested"])
def test_verify(case: str, backend: str) -> None:
    torch.manual_seed(0)
    made, loss = CASES[case]
    report = mf.verify(
        mf.MAML(Heads(made).double(), steps=2, loss=loss, backend=backend), batch(4, loss), batch(3, loss)
    )
    report.raise_if_wrong()
    assert report.engine.startswith(backend)
    assert ("ys['at']" if loss is by_name else "ys[1]") in report.errors


def test_a_repeated_call_takes_the_short_way() -> None:
    torch.manual_seed(0)
    model = Heads(CASES["tuple"][0]).double()
    maml = mf.MAML(model, lr=0.1, steps=2, loss=by_place, backend="native")
    plain = [tuple((x.detach(), (y, at.detach())) for x, (y, at) in (batch(5), batch(6))) for _ in range(3)]
    for support, query in plain:
        repeat = maml._repeat
        out, gradients = maml.meta_gradient(support, query)
        there = mf.MAML(model, lr=0.1, steps=2, loss=by_place, backend="torch")(support, query)
        expected = torch.autograd.grad(there.loss, [*model.parameters()])
        assert_close(dict(enumerate((*out.logits, *gradients))), dict(enumerate((*there.logits, *expected))))
    assert repeat is not None and repeat is maml._repeat
    assert repeat.gradient(maml, *plain[0]) is not None
    x, (y, at) = plain[0][0]
    for other in ((y, at, at), [y, at], (y.int(), at), (y[:, :2], at)):
        assert repeat.gradient(maml, (x, other), plain[0][1]) is None


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
def test_a_named_loss_takes_one_output(backend: str) -> None:
    maml = mf.MAML(Heads(CASES["dict"][0]).double(), loss="mse", backend=backend)
    x, y = torch.randn(2, 3, 3, dtype=D), torch.randn(2, 3, 3, dtype=D)
    words = r"Heads returned 2 tensors: \[N, 3\] of torch.float64, \[N, 2, 2\] of torch.float64; loss 'mse' takes one"
    for call in (lambda: maml((x, y), (x, y)), lambda: maml.predict({}, x)):
        with pytest.raises(ValueError, match=words):
            call()


def test_explain_says_what_a_model_of_several_outputs_is() -> None:
    model = Heads(CASES["dict"][0])
    assert mf.explain(model, (2, 5, 3)).native
    tuples = Heads(CASES["tuple"][0])
    assert mf.explain(tuples, (2, 5, 3), by_place).native
    assert "median" in mf.explain(tuples, (2, 5, 3), lambda o, y: o[0].median() + by_place(o, y)).reason
    assert "takes one output, and the model returns 2 tensors" in mf.explain(model, (2, 5, 3), "mse").reason


class OwnKind(dict[str, Tensor]):
    """Tells its items by attributes as well."""


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda a, b: OwnKind(label=a), "returned a OwnKind; expected a tensor"),
        (lambda a, b: (a, b[0]), r"returned a tensor of shape \[2, 2\] for \[1\]"),
        (lambda a, b: {"label": a, "none": None}, r"returned a NoneType for \['none'\]"),
        (lambda a, b: (), "returned an empty tuple"),
        (lambda a, b: (a, a.argmax(1)), r"returned a tensor of torch.int64 for \[1\]"),
    ],
)
def test_what_is_no_output_is_named(made: Callable[[Tensor, Tensor], Any], words: str, backend: str) -> None:
    with pytest.raises(ValueError, match=words):
        mf.MAML(Heads(made).double(), loss=by_place, backend=backend)(batch(3), batch(3))


@pytest.mark.parametrize(
    ("loss", "y", "error", "words"),
    [
        ("mse", lambda a, b: (a, b), TypeError, r"support y is 2 tensors; loss 'mse' expects one.*torch.stack"),
        (by_place, lambda a, b: [a, b], TypeError, r"support y must be a torch.Tensor; it is a list"),
        (by_place, lambda a, b: (a, 3), TypeError, r"support y\[1\] must be a torch.Tensor; it is a int"),
        (by_name, lambda a, b: {"y": a, "at": b[:, :2]}, ValueError, r"support y\['at'\] has shape \[4, 2, 2, 2\]"),
        (
            by_place,
            lambda a, b: (a, b.float()),
            ValueError,
            r"query y is 2 tensors: .*float64; expected .*float32, as supp",
        ),
        (by_place, lambda a, b: (a + 3, b), IndexError, r"support y\[0\] holds the index \d; expected 0 to 2"),
        (by_place, lambda a, b: (b, a), ValueError, r"query y is 2 tensors: .*; expected 2 tensors: .*, as support y"),
    ],
)
def test_mistakes_in_targets_are_named(loss: Any, y: Any, error: type[Exception], words: str) -> None:
    made = CASES["dict" if loss is by_name else "tuple"][0]
    model = nn.Linear(3, 3).double() if loss == "mse" else Heads(made).double()
    x, (labels, at) = batch(3)
    with pytest.raises(error, match=words):
        mf.MAML(model, loss=loss)((x, y(labels, at)), (x, (labels, at)))


def test_a_frozen_body_runs_once_on_torch_too() -> None:
    torch.manual_seed(0)
    model = Heads(CASES["nested"][0]).double()
    support, query = batch(5), batch(6)
    made = [
        mf.MAML(model, lr=0.1, steps=2, loss=nested, adapt_params=["label.*", "box.*"], backend=backend)
        for backend in ("torch", "native")
    ]
    there, here = (maml(support, query) for maml in made)
    assert made[0]._plans().plans[0].composed is not None
    assert_close({"loss": here.loss}, {"loss": there.loss})
    assert_close(*(dict(enumerate(torch.autograd.grad(out.loss, [*model.parameters()]))) for out in (here, there)))
