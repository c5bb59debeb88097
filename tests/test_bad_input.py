"""Every mistake a user can make, and what the exception says: which argument, what shape it has, what was expected."""

# ruff: noqa: E501 - a table: one mistake a line

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from metafast.learner import DEFAULT_LR
from models import Cumulative

T, N, Q, STEPS, CLASSES = 3, 4, 2, 2, 5
NAN, INF = float("nan"), float("inf")


def x(*lead: int, size: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*(lead or (T, N)), size).to(dtype)


def y(*lead: int) -> Tensor:
    return torch.randint(CLASSES, lead or (T, N))


SUPPORT, QUERY = (x(), y()), (x(T, Q), y(T, Q))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def maml(**options: Any) -> mf.MAML:
    return mf.MAML(options.pop("model", None) or net(), **{"lr": 0.1, "steps": STEPS, **options})


def support(*items: Any, **options: Any) -> Callable[[], Any]:
    return lambda: maml(**options)(items, QUERY)


def query(*items: Any, **options: Any) -> Callable[[], Any]:
    return lambda: maml(**options)(SUPPORT, items)


def call(**arguments: Any) -> Callable[[], Any]:
    return lambda: maml()(SUPPORT, QUERY, **arguments)


def create(**options: Any) -> Callable[[], Any]:
    return lambda: maml(**options)


def grown() -> None:
    learner = maml()
    learner(SUPPORT, QUERY)
    learner.model[2].weight = nn.Parameter(torch.randn(CLASSES, 8))
    learner(SUPPORT, QUERY)


def reshaped_data() -> None:
    learner = maml()
    learner(SUPPORT, QUERY)
    learner.model[2].weight.data = torch.randn(CLASSES, 8)
    learner(SUPPORT, QUERY)


def twice(**options: Any) -> None:
    learner = maml(backend="native", **options)
    parameters = list(learner.parameters())
    first = torch.autograd.grad(learner(SUPPORT, QUERY).loss, parameters, create_graph=True)
    torch.autograd.grad(sum((g**2).sum() for g in first), parameters)


def predict(**options: Any) -> Callable[[], Any]:
    learner = maml()
    arguments = {"params": {"0.bias": torch.zeros(T, 7)}, "x": QUERY[0]} | options
    return lambda: learner.predict(**arguments)


def grad(**options: Any) -> Callable[[], Any]:
    model = net()
    arguments = {"params": dict(model.named_parameters()), "batch": SUPPORT, "loss": "cross_entropy"} | options
    return lambda: mf.grad(model, **arguments)


def hvp(v: Any) -> Callable[[], Any]:
    model = net()
    return lambda: mf.hvp(model, dict(model.named_parameters()), SUPPORT, v, loss="cross_entropy")


@dataclass(frozen=True)
class Mistake:
    name: str
    make: Callable[[], Any]
    error: type[Exception]
    says: str  # a regular expression


REAL = x(T, N, size=CLASSES)
MISTAKES = [
    # ---- shapes
    Mistake("support x without tasks", support(x(N), y()), ValueError, r"support x has, for each task, 6 examples of shape \[\]"),
    Mistake("support x of rank 1", support(torch.randn(6), y()), ValueError, r"support x has shape \[6\]; expected \[T, N"),
    Mistake("query x without tasks", query(x(Q), y(T, Q)), ValueError, r"query x has shape \[2, 6\]"),
    Mistake("support x too narrow", support(x(size=5), y()), ValueError, r"support x.*5"),
    Mistake("query x too narrow", query(x(T, Q, size=5), y(T, Q)), ValueError, r"query x has shape \[3, 2, 5\], support x \[3, 4, 6\]"),
    Mistake("other T in query", query(x(T + 1, Q), y(T + 1, Q)), ValueError, r"query x has shape \[4, 2, 6\].*same number of tasks"),
    Mistake("other T in y", support(x(), y(T + 1, N)), ValueError, r"support y has shape \[4, 4\].*\[3, 4\]"),
    Mistake("other N in y", support(x(), y(T, N + 1)), ValueError, r"support y has shape \[3, 5\].*\[3, 4\]"),
    Mistake("other N in query y", query(x(T, Q), y(T, Q + 1)), ValueError, r"query y has shape \[3, 3\].*\[3, 2\]"),
    Mistake("labels with an axis too many", support(x(), y(T, N, 1)), ValueError, r"support y has shape \[3, 4, 1\]"),
    Mistake("no tasks", support(x(0, N), y(0, N)), ValueError, r"support x has shape \[0, 4, 6\].*T=0"),
    Mistake("no support examples", support(x(T, 0), y(T, 0)), ValueError, r"support x has shape \[3, 0, 6\].*N=0"),
    Mistake("no query examples", query(x(T, 0), y(T, 0)), ValueError, r"query x has shape \[3, 0, 6\].*N=0"),
    Mistake("targets that would broadcast", support(x(), x(size=1), loss="mse"), ValueError, r"support y has shape \[3, 4, 1\].*\[3, 4, 5\]"),
    Mistake("targets without their last axis", support(x(), torch.randn(T, N), loss="mse"), ValueError, r"support y has shape \[3, 4\].*\[3, 4, 5\]"),
    Mistake("probabilities of too few classes", support(x(), x(size=4)), (TypeError, ValueError), r"support y.*\[3, 4, 4\].*\[3, 4, 5\]"),
    Mistake("weights of another N", support(x(), y(), torch.ones(T, N + 1)), ValueError, r"support weights have shape \[3, 5\].*\[3, 4\]"),
    Mistake("weights of one axis", query(x(T, Q), y(T, Q), torch.ones(Q)), ValueError, r"query weights have shape \[2\].*\[3, 2\]"),
    Mistake("stepwise without its axis", call(stepwise=True), ValueError, r"support x has shape \[3, 4, 6\].*K = steps = 2"),
    Mistake(
        "stepwise of another K",
        lambda: maml()((x(T, 3, N), y(T, 3, N)), QUERY, stepwise=True),
        ValueError,
        r"support x has shape \[3, 3, 4, 6\].*K = steps = 2",
    ),
    # ---- dtypes and devices
    Mistake("integers as inputs", support(torch.ones(T, N, 6, dtype=torch.int64), y()), TypeError, r"support x has dtype torch.int64; expected torch.float32"),
    Mistake("booleans as inputs", support(torch.ones(T, N, 6, dtype=torch.bool), y()), TypeError, r"support x has dtype torch.bool"),
    Mistake("float64 data for a float32 model", support(x(dtype=torch.float64), y()), TypeError, r"support x has dtype torch.float64; expected torch.float32"),
    Mistake("float64 query", query(x(T, Q, dtype=torch.float64), y(T, Q)), TypeError, r"query x has dtype torch.float64; expected torch.float32"),
    Mistake("float64 targets", support(x(), REAL.double(), loss="mse"), TypeError, r"support y has dtype torch.float64.*torch.float32"),
    Mistake("integer targets of a regression", support(x(), y(T, N, CLASSES), loss="mse"), TypeError, r"support y has dtype torch.int64.*'mse'"),
    Mistake("floating labels", support(x(), y().float()), TypeError, r"support y has dtype torch.float32.*integer classes"),
    Mistake("floating labels of a hinge", support(x(), REAL, loss="multi_margin"), TypeError, r"support y has dtype torch.float32.*'multi_margin'"),
    Mistake("probabilities where a class is ignored", support(x(), torch.rand(T, N, CLASSES), loss=nn.CrossEntropyLoss(ignore_index=1)), TypeError, r"support y has dtype torch.float32.*the loss ignores class 1"),
    Mistake("boolean labels", support(x(), y() > 2), TypeError, r"support y has dtype torch.bool"),
    Mistake("float64 weights", support(x(), y(), torch.ones(T, N).double()), TypeError, r"support weights have dtype torch.float64"),
    Mistake("integer weights", support(x(), y(), torch.ones(T, N).long()), TypeError, r"support weights have dtype torch.int64"),
    Mistake("half precision", support(x().half(), y(), model=net().half()), TypeError, r"float16"),
    Mistake("bfloat16", support(x().bfloat16(), y(), model=net().bfloat16()), TypeError, r"bfloat16"),
    Mistake("parameters of two dtypes", support(x(), y(), model=nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5).double())), (TypeError, ValueError), r"float(32|64).*float(32|64)"),
    Mistake("inputs on another device", support(x().to("meta"), y()), ValueError, r"support x is on meta"),
    Mistake("labels on another device", support(x(), y().to("meta")), ValueError, r"support y is on meta"),
    Mistake("weights on another device", support(x(), y(), torch.ones(T, N, device="meta")), ValueError, r"support weights is on meta"),
    Mistake("query on another device", query(x(T, Q).to("meta"), y(T, Q)), ValueError, r"query x is on meta"),
    # ---- values
    Mistake("a label too large", support(x(), torch.full((T, N), CLASSES)), ValueError, r"support y holds label 5; expected classes 0 to 4"),
    Mistake("a negative label", query(x(T, Q), torch.full((T, Q), -1)), ValueError, r"query y holds label -1; expected classes 0 to 4"),
    # ---- what is no tensor
    Mistake("support is a tensor", lambda: maml()(x(), QUERY), TypeError, r"support must be a tuple \(x, y\)"),
    Mistake("support of four", support(x(), y(), y(), y()), TypeError, r"support must be a tuple.*4 items"),
    Mistake("query of one", query(x(T, Q)), TypeError, r"query must be a tuple.*1 items"),
    Mistake("x is a numpy array", support(x().numpy(), y()), TypeError, r"support x must be a torch.Tensor.*numpy.ndarray; use torch.as_tensor"),
    Mistake("y is a list", support(x(), y().tolist()), TypeError, r"support y must be a torch.Tensor.*list"),
    # ---- steps
    Mistake("negative steps", create(steps=-1), ValueError, r"steps must be >= 0; it is -1"),
    Mistake("fractional steps", create(steps=2.5), TypeError, r"steps must be a whole number.*2.5"),
    Mistake("steps is a bool", create(steps=True), TypeError, r"steps must be a whole number.*True"),
    Mistake("steps is text", create(steps="5"), TypeError, r"steps must be a whole number"),
    Mistake("negative steps in a call", call(steps=-3), ValueError, r"steps must be >= 0; it is -3"),
    Mistake("fractional steps in a call", call(steps=1.0), TypeError, r"steps must be a whole number.*1.0"),
    # ---- learning rates
    Mistake("lr is NaN", create(lr=NAN), ValueError, r"lr must be finite; it is nan"),
    Mistake("lr is infinite", create(lr=INF), ValueError, r"lr must be finite; it is inf"),
    Mistake("lr is infinite in a call", call(lr=-INF), ValueError, r"lr must be finite; it is -inf"),
    Mistake("lr tensor not finite", call(lr=torch.tensor([0.1, NAN])), ValueError, r"lr must be finite; 1 of its 2 values"),
    Mistake("lr of the wrong length", create(lr=torch.ones(3)), ValueError, r"lr has shape \[3\].*steps=2"),
    Mistake("lr of the wrong length in a call", call(lr=torch.ones(3)), ValueError, r"lr has shape \[3\].*steps=2"),
    Mistake("lr of no length", create(lr=torch.ones(0)), ValueError, r"lr has shape \[0\]"),
    Mistake("lr of two axes", call(lr=torch.ones(2, 2)), ValueError, r"lr is a tensor of shape \[2, 2\]; expected \[\] or \[steps\]"),
    Mistake("integer lr tensor", call(lr=torch.ones(2, dtype=torch.int64)), TypeError, r"lr must be floating.*int64"),
    Mistake("lr is text", create(lr="0.1"), TypeError, r"lr must be a float or a tensor; it is a str"),
    Mistake("lr is a bool", create(lr=True), TypeError, r"lr must be a float or a tensor; it is a bool"),
    Mistake("lr for an unknown name", call(lr={"9.weight": 0.1}), ValueError, r"lr names '9.weight'.*0.weight, 0.bias"),
    Mistake("lr without a name", call(lr={"0.weight": 0.1}), ValueError, r"lr has no entry for '0.bias'"),
    Mistake(
        "lr of another shape than its parameter",
        call(lr={"0.weight": torch.ones(6, 7), "0.bias": 0.1, "2.weight": 0.1, "2.bias": 0.1}),
        ValueError,
        r"lr\['0.weight'\] has shape \[6, 7\].*\[7, 6\]",
    ),
    Mistake(
        "lr not finite for a name",
        call(lr={"0.weight": 0.1, "0.bias": NAN, "2.weight": 0.1, "2.bias": 0.1}),
        ValueError,
        r"lr\['0.bias'\] must be finite",
    ),
    Mistake("lr given twice", create(rule=mf.SGD(lr=0.2), lr=0.1), ValueError, r"lr is given twice"),
    Mistake("lr given twice, as by default", create(rule=mf.SGD(lr=0.2), lr=0.4), ValueError, r"lr is given twice"),
    Mistake("per_step without a dict", create(rule=mf.SGD(lr=0.2, per_step=True), lr=DEFAULT_LR), TypeError, r"per_step=True"),
    # ---- names
    Mistake("unknown loss", create(loss="cross-entropy"), ValueError, r"loss.*'cross-entropy'.*cross_entropy"),
    Mistake("loss is a number", create(loss=3), ValueError, r"loss must be one of 'cross_entropy'.*it is 3"),
    Mistake("loss of each", create(loss=nn.MSELoss(reduction="none")), ValueError, r"loss.*reduction"),
    Mistake("unknown backend", create(backend="cuda"), ValueError, r"backend must be one of 'auto', 'native', 'torch'; it is 'cuda'"),
    Mistake("unknown memory", create(memory="low"), ValueError, r"memory must be one of 'auto'.*'low'"),
    Mistake("adapt_params of no parameter", create(adapt_params="head.*"), ValueError, r"adapt_params: 'head.\*' matches no parameter.*0.weight"),
    Mistake("adapt_params names a module", create(adapt_params=["2"]), ValueError, r"adapt_params: '2' matches no parameter.*did you mean '2.\*'"),
    Mistake("adapt_params chooses nothing", create(adapt_params=lambda name: False), ValueError, r"adapt_params.*leaves nothing to adapt"),
    Mistake("adapt_params is a number", create(adapt_params=3), TypeError, r"adapt_params must be"),
    Mistake("rule is no rule", create(rule=torch.optim.SGD), TypeError, r"rule must be a metafast rule"),
    # ---- models
    Mistake("model is a function", lambda: mf.MAML(torch.tanh, lr=0.1), TypeError, r"model must be an nn.Module; it is a"),
    Mistake("everything frozen", create(model=net().requires_grad_(False)), ValueError, r"requires grad"),
    Mistake("a module that does not fit the one before", support(x(), y(), model=nn.Sequential(nn.Linear(6, 4), nn.Linear(5, 5))), ValueError, r"support x"),
    Mistake("a parameter replaced by one of another shape", grown, ValueError, r"support x"),
    Mistake("a parameter resized in place", reshaped_data, ValueError, r"support x"),
    Mistake("no native form, strict", support(x(), y(), model=nn.Sequential(nn.Linear(6, 6), Cumulative(6), net()), strict=True), RuntimeError, r"strict=True.*Cumulative"),
    Mistake("no native form, native", support(x(), y(), model=nn.Sequential(nn.Linear(6, 6), Cumulative(6), net()), backend="native"), RuntimeError, r"backend='native'.*Cumulative"),
    Mistake("batch norm of one value", support(x(T, 1), y(T, 1), model=nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))), ValueError, r"support x has shape \[3, 1, 6\].*layer '1' \(batch norm\) in training mode needs more than 1 value per channel"),
    # ---- a second differentiation
    Mistake("differentiated twice", twice, RuntimeError, r'backend="torch"'),
    # ---- predict, grad, hvp
    Mistake("predict with an unknown name", predict(params={"1.bias": torch.zeros(7)}), ValueError, r"params\['1.bias'\]: the model has no such parameter"),
    Mistake("predict with another T", predict(params={"0.bias": torch.zeros(T + 1, 7)}), ValueError, r"params\['0.bias'\] has shape \[4, 7\].*\[7\].*\[3, 7\]"),
    Mistake("predict with float64", predict(params={"0.bias": torch.zeros(7).double()}), TypeError, r"params\['0.bias'\] has dtype torch.float64"),
    Mistake("predict without a dict", predict(params=[torch.zeros(7)]), TypeError, r"params must be a dict"),
    Mistake("predict on a list", predict(x=[1.0]), TypeError, r"x must be a torch.Tensor"),
    Mistake("predict on rank 1", predict(x=torch.zeros(6)), ValueError, r"x has shape \[6\]; expected \[T, N"),
    Mistake("grad with an unknown name", grad(params={"w": torch.zeros(7)}), ValueError, r"params\['w'\]: the model has no such parameter"),
    Mistake("grad with an unknown loss", grad(loss="l2"), ValueError, r"loss.*'l2'"),
    Mistake("grad with other targets", grad(loss="mse"), TypeError, r"y has dtype torch.int64.*'mse'"),
    Mistake("hvp with an unknown name", hvp({"w": torch.zeros(7)}), ValueError, r"v\['w'\]: the model has no such parameter"),
    Mistake("hvp with another shape", hvp({"0.bias": torch.zeros(T, 8)}), ValueError, r"v\['0.bias'\] has shape \[3, 8\].*\[3, 7\]"),
    Mistake("hvp without a name", hvp({"0.bias": torch.zeros(T, 7)}), ValueError, r"v has no entry for '0.weight' \[7, 6\], '2.weight'"),
    Mistake("hvp without a dict", hvp(torch.zeros(7)), TypeError, r"v must be a dict"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake_is_named(mistake: Mistake) -> None:
    with pytest.raises(mistake.error, match=f"(?s){mistake.says}"):
        mistake.make()


def test_the_same_data_without_a_mistake_is_accepted() -> None:
    out = maml()(SUPPORT, QUERY)
    assert out.loss.isfinite()
    assert out.logits.shape == (T, Q, CLASSES)


@pytest.mark.parametrize(
    ("v", "message"),
    [
        ({"0.bias": torch.zeros(T, 8)}, r"v\['0.bias'\] has shape \[3, 8\]"),
        ({"0.bias": torch.zeros(T, 7, dtype=torch.float64)}, r"v\['0.bias'\] has dtype torch.float64"),
        ({"0.bias": [0.0] * 7}, r"v\['0.bias'\] must be a torch.Tensor"),
        ({"1.bias": torch.zeros(T, 7)}, r"v\['1.bias'\]: the model has no such parameter"),
        ({"2.bias": torch.zeros(T, 7)}, r"v\['2.bias'\] has shape"),
        ({"2.bias": torch.zeros(T, 5)}, r"v has no entry for '0.bias' \[7\]"),
        ({}, r"v has no entry for '0.bias' \[7\], '2.bias' \[5\]"),
    ],
)
def test_what_was_accepted_once_hides_no_mistake(v: Any, message: str) -> None:
    """Shapes and dtypes that passed are remembered; a call that differs in one of them is checked again."""
    model = net()
    given = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    zeros = {"0.bias": torch.zeros(T, 7), "2.bias": torch.zeros(T, 5)}
    for _ in range(2):
        mf.hvp(model, given, SUPPORT, zeros, loss="cross_entropy")
    with pytest.raises((TypeError, ValueError), match=message):
        mf.hvp(model, given, SUPPORT, v, loss="cross_entropy")


def test_per_step_rates_stretch_to_more_steps() -> None:
    """An overriding ``steps`` beyond a learner's per-step rates repeats the last."""
    learner = maml(lr=torch.tensor([0.1, 0.2]))
    expected = maml(model=learner.model, lr=torch.tensor([0.1, 0.2, 0.2, 0.2]), steps=4)(SUPPORT, QUERY)
    assert torch.equal(learner(SUPPORT, QUERY, steps=4).logits, expected.logits)
