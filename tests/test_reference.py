"""The plain-torch engine against what nobody can argue with: a closed form, central differences, one task at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
import oracle
from metafast import losses
from metafast.call import Batch, Call, Hyper, InnerLoop, Unrolled
from metafast.engine import batchable, reference
from problems import make
from row import Row
from rows import BY_NAME, ROWS

Tensors = dict[str, Tensor]


def unroll(
    model: reference.Model,
    tensors: list[Tensor],
    rates: Hyper,
    support: Batch,
    query: Batch,
    steps: int,
    adapted: bool = False,
) -> Unrolled:
    loop = InnerLoop(steps, mf.SGD(), mf.Exact(), "auto")
    return reference.unroll(model, Call(tensors, (rates,), support, query), loop, want_adapted=adapted)


def described(
    module: nn.Module, loss: Any, x: Tensor, adapted: Callable[[str], bool] = lambda name: True
) -> tuple[reference.Model, list[Tensor]]:
    known, function = losses.resolve(loss)
    model = reference.describe(module, known or function, adapted, x)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return model, [tensors[p.name] for p in model.parameters]


def relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


# ------------------------------------------------------------------------------------------------------- a closed form


def test_one_step_of_linear_regression_is_what_algebra_says() -> None:
    """L = |Xw - y|^2 / N, one step: d loss / d w = (I - a H) (2/N) Xq'(Xq w' - yq), and H = (2/N) Xs'Xs."""
    tasks, n, d, lr = 3, 7, 4, 0.05
    xs, xq = torch.randn(2, tasks, n, d, dtype=torch.float64)
    ys, yq = torch.randn(2, tasks, n, 1, dtype=torch.float64)
    module = nn.Linear(d, 1, bias=False).double()
    rate = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    model, tensors = described(module, "mse", xs[0])
    out = unroll(
        model, tensors, Hyper(rate.expand(1, 1)), Batch(xs, ys, None), Batch(xq, yq, None), steps=1, adapted=True
    )
    assert out.loss is not None and out.adapted is not None
    found = torch.autograd.grad(out.loss, [module.weight, rate])

    w = module.weight.detach().T
    gradient = 2 / n * xs.mT @ (xs @ w - ys)
    adapted = w - lr * gradient
    slope = 2 / n * xq.mT @ (xq @ adapted - yq)
    hessian = 2 / n * xs.mT @ xs
    meta = (slope - lr * hessian @ slope).mean(0)
    torch.testing.assert_close(out.adapted[0], adapted.mT, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0], meta.T, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], -(slope * gradient).sum((1, 2)).mean(), rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------ every differentiable input


def test_every_gradient_is_the_slope_of_the_loss() -> None:
    """Central differences along a random direction in each input."""
    xs, xq = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    ys, yq = torch.randn(2, 2, 5, 2, dtype=torch.float64)
    ws, wq = torch.rand(2, 2, 5, dtype=torch.float64) + 0.1
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    model, tensors = described(module, "mse", xs[0])
    table = 0.1 + 0.1 * torch.rand(3, 6, dtype=torch.float64)
    each = 0.1 + 0.1 * torch.rand(3, 4, 3, dtype=torch.float64)  # a rate per step and element of the first weight
    at = {"xs": xs, "ys": ys, "ws": ws, "xq": xq, "yq": yq, "wq": wq, "table": table, "each": each}
    at |= {p.name: t.detach() for p, t in zip(model.parameters, tensors, strict=True)}
    differentiable = [name for name, value in at.items() if value.is_floating_point() and "running" not in name]

    def loss(v: Tensors) -> Tensor:
        out = unroll(
            model,
            [v[p.name] for p in model.parameters],
            Hyper(v["table"], ((0, v["each"]),)),
            Batch(v["xs"], v["ys"], v["ws"]),
            Batch(v["xq"], v["yq"], v["wq"]),
            steps=3,
        )
        assert out.loss is not None
        return out.loss

    leaves = at | {name: at[name].clone().requires_grad_() for name in differentiable}
    gradients = torch.autograd.grad(loss(leaves), [leaves[name] for name in differentiable])
    for name, gradient in zip(differentiable, gradients, strict=True):
        direction, h = torch.randn_like(at[name]), 1e-5
        with torch.no_grad():
            up, down = (loss(at | {name: at[name] + s * h * direction}) for s in (1, -1))
        slope, expected = (gradient * direction).sum().item(), (up - down).item() / (2 * h)
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("backwards", [2, 3])
def test_derivatives_of_any_order(backwards: int) -> None:
    xs = torch.randn(2, 4, 2, dtype=torch.float64)
    ys = torch.randn(2, 4, 1, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    model, tensors = described(module, "mse", xs[0])
    rates = Hyper(torch.full((1, 4), 0.1, dtype=torch.float64))
    for p in module.parameters():
        p.requires_grad_(False)
    weight = module[0].weight

    def once(value: Tensor) -> Tensor:
        """The first ``backwards`` - 1 derivatives along ones."""
        out = unroll(model, [value, *tensors[1:]], rates, Batch(xs, ys, None), Batch(-xs, ys, None), steps=1).loss
        assert out is not None
        for _ in range(backwards - 1):
            out = torch.autograd.grad(out, value, create_graph=True)[0].sum()
        return out

    assert torch.autograd.gradcheck(once, weight.detach().clone().requires_grad_())


# ------------------------------------------------------------------------------------------------- tasks all at once


class Between(nn.Module):
    """A function of six features between two linear layers, so that its second derivatives count."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.inner = nn.Linear(4, 6), nn.Linear(inner(torch.ones(2, 6)).shape[1], 3), inner

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.inner(self.first(x)))
        return output


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda h: h,
    "abs": torch.abs,
    "add": lambda h: h * (h + 1.5),
    "bmm": lambda h: torch.bmm(h.view(-1, 2, 3), h.view(-1, 3, 2)).flatten(1),
    "cat": lambda h: torch.cat([h[:, 3:].sin(), h[:, :3].cos()], 1),
    "clone": lambda h: h.clone() ** 3,
    "detach": lambda h: h * h.detach(),
    "div": lambda h: h / (2 + h * h),
    "elu": F.elu,
    "exp": lambda h: torch.exp(0.3 * h),
    "expand": lambda h: h * h[:, :1].expand(-1, 6),
    "gelu": F.gelu,
    "gelu tanh": lambda h: F.gelu(h, approximate="tanh"),
    "leaky relu": lambda h: F.leaky_relu(h, 0.1),
    "leaky relu in place": lambda h: F.leaky_relu(h, 0.1, inplace=True),
    "log": lambda h: torch.log(1 + h * h),
    "log softmax": lambda h: F.log_softmax(h, 1),
    "mean": lambda h: h * h.mean(1, keepdim=True),
    "mm": lambda h: torch.tanh(h @ h.mT @ h),
    "neg": lambda h: -h * h,
    "permute": lambda h: h.view(-1, 2, 3).permute(0, 2, 1).reshape(-1, 6) ** 2,
    "relu": F.relu,
    "relu in place": F.relu_,
    "select": lambda h: h * h[:, 2].unsqueeze(1),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "silu in place": lambda h: F.silu(h, inplace=True),
    "slice": lambda h: torch.cat([h[:, 1:] ** 2, h[:, :1]], 1),
    "softmax": lambda h: F.softmax(h, 1),
    "softplus": F.softplus,
    "split": lambda h: torch.cat([a * a for a in h.split(2, 1)], 1),
    "sqrt": lambda h: torch.sqrt(1 + h * h),
    "squeeze": lambda h: (h.unsqueeze(1) ** 2).squeeze(1),
    "sub": lambda h: h * (h - 0.5),
    "sum": lambda h: h * h.sum(1, keepdim=True),
    "tanh": torch.tanh,
    "transpose": lambda h: h.view(-1, 2, 3).transpose(1, 2).flatten(1) ** 2,
}


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_tasks_at_once_equal_one_at_a_time(name: str, loss: str) -> None:
    xs, xq = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    module = Between(FUNCTIONS[name]).double()
    y = torch.randint(3, (2, 3, 5)) if loss == "cross_entropy" else torch.randn(2, 3, 5, 3, dtype=torch.float64)
    model, tensors = described(module, loss, xs[0])
    assert model.batched, f"{name} ought to be batched"
    rates = Hyper(torch.full((3, len(model.adapted)), 0.1, dtype=torch.float64))
    out = unroll(model, tensors, rates, Batch(xs, y[0], None), Batch(xq, y[1], None), steps=3)
    assert out.loss is not None
    truth = oracle.unroll(module, loss, (xs, y[0]), (xq, y[1]), lr=0.1, steps=3)
    named = dict(module.named_parameters())
    found = torch.autograd.grad(out.loss, list(named.values()))
    expected = torch.autograd.grad(truth.loss, list(named.values()))
    torch.testing.assert_close(out.logits, truth.logits, rtol=1e-10, atol=1e-12)
    for parameter, a, b in zip(named, found, expected, strict=True):
        assert relative(a, b) < 1e-11, parameter


def test_large_tasks_run_one_at_a_time() -> None:
    module = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 1))
    assert described(module, "mse", torch.randn(128, 4))[0].batched
    assert not described(module, "mse", torch.randn(129, 4))[0].batched
    assert described(nn.Linear(784, 64), "mse", torch.randn(8, 784))[0].batched  # its weight is large, and not made


def test_every_operation_listed_as_batchable_is_exercised_above() -> None:
    seen = set()
    for function in FUNCTIONS.values():
        module, x = nn.Sequential(Between(function), nn.Linear(3, 2, bias=False)), torch.randn(5, 4)
        with torch.no_grad(), batchable.Operations() as operations:
            module(x)
        seen |= operations.names
    assert seen == batchable.BATCHABLE


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


UNBATCHED: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
    "group norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)),
    "functional norm": lambda: Between(lambda h: F.layer_norm(h, (6,))),
    "rms norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Linear(5, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)),
    "branch": Branch,
    "code that torch cannot see": lambda: Between(lambda h: h + torch.from_numpy(h.detach().numpy())),
    "noise": lambda: Between(lambda h: h + torch.randn(6)),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_norms_randomness_and_branches_run_one_task_at_a_time(name: str) -> None:
    assert not described(UNBATCHED[name](), "mse", torch.randn(5, 4))[0].batched


def test_a_branch_is_taken_by_every_task_for_itself() -> None:
    module = Branch().double()
    xs = torch.stack([torch.ones(5, 4), -torch.ones(5, 4)]).double()
    ys = torch.randn(2, 5, 3, dtype=torch.float64)
    model, tensors = described(module, "mse", xs[0])
    rates = Hyper(torch.full((2, 2), 0.1, dtype=torch.float64))
    out = unroll(model, tensors, rates, Batch(xs, ys, None), Batch(xs, ys, None), steps=2)
    truth = oracle.unroll(module, "mse", (xs, ys), (xs, ys), lr=0.1, steps=2)
    torch.testing.assert_close(out.task_loss, truth.task_loss, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------- gradient, hvp and predict

SAMPLE = [row for row in ROWS if row.name in {"torch/cumulative", "act/mish", "norm/2d-weighted", "option/tasks-3"}]


@pytest.mark.parametrize("row", SAMPLE, ids=lambda row: row.name)
@pytest.mark.parametrize("shared", [True, False])
def test_gradient_hvp_and_predict_equal_the_oracle(row: Row, shared: bool) -> None:
    problem = make(row)
    model, tensors = described(problem.model, row.loss, problem.support[0][0])
    tasks = problem.support[0].shape[0]
    learnt = [model.parameters[i].name for i in model.learnt]
    if not shared:
        tensors = [
            t + 0.1 * torch.randn(tasks, *t.shape, dtype=t.dtype) if p.name in learnt else t
            for p, t in zip(model.parameters, tensors, strict=True)
        ]
    given = {p.name: t for p, t in zip(model.parameters, tensors, strict=True) if p.name in learnt}
    batch = Batch(*problem.support, *[None] * (3 - len(problem.support)))
    vectors = {
        name: torch.randn(tasks, *dict(problem.model.named_parameters())[name].shape).double() for name in learnt
    }

    loss, gradients = reference.gradient(model, tensors, batch)
    true_loss, true_gradients = oracle.gradient(problem.model, row.loss, given, problem.support)
    torch.testing.assert_close(loss, true_loss, rtol=1e-12, atol=0)
    products, _ = reference.hvp(model, tensors, batch, [vectors[name] for name in learnt])
    true_products = oracle.hvp(problem.model, row.loss, given, problem.support, vectors)
    for name, g, h in zip(learnt, gradients, products, strict=True):
        torch.testing.assert_close(g, true_gradients[name], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(h, true_products[name], rtol=1e-9, atol=1e-12)
        assert not h.requires_grad
    found = torch.autograd.grad(sum((g * v).sum() for g, v in zip(gradients, vectors.values(), strict=True)), batch.x)
    true = torch.autograd.grad(sum((g * vectors[n]).sum() for n, g in true_gradients.items()), batch.x)
    assert relative(found[0], true[0]) < 1e-11
    torch.testing.assert_close(
        reference.predict(model, tensors, batch.x),
        oracle.predict(problem.model, given, batch.x),
        rtol=1e-12,
        atol=1e-14,
    )


# ------------------------------------------------------------------------------------------ the module stays as it is


def test_module_and_random_state_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    before, seed = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    xs, ys = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    torch.set_rng_state(seed)
    model, tensors = described(module, "mse", xs[0])
    assert torch.equal(torch.get_rng_state(), seed)
    rates = Hyper(torch.full((2, 6), 0.1))
    unroll(model, tensors, rates, Batch(xs, ys, None), Batch(xs, ys, None), steps=2)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_values_are_the_same(mode: Callable[[], Any]) -> None:
    problem = make(BY_NAME["torch/cumulative"])
    model, tensors = described(problem.model, problem.row.loss, problem.support[0][0])
    rates = Hyper(torch.full((2, len(model.adapted)), 0.1, dtype=torch.float64))
    support, query = Batch(*problem.support, None), Batch(*problem.query, None)  # type: ignore[misc]
    with_graph = unroll(model, tensors, rates, support, query, steps=2)
    with mode():
        made = Batch(support.x.clone(), support.y.clone(), None)  # type: ignore[union-attr]
        without = unroll(model, tensors, rates, made, query, steps=2)
    assert with_graph.loss is not None and without.loss is not None
    assert with_graph.loss.requires_grad and not without.loss.requires_grad
    assert torch.equal(with_graph.loss, without.loss)
