"""Proof on the user's own batch: the engine in use against the plainest loop that computes the same thing.

The loop below is the judge, so it is written to be read: one task at a time, ``create_graph=True``, in float64, with
nothing batched, fused or cached.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metafast import arguments, losses
from metafast.batch import Batch, Rates
from metafast.learner import MAML
from metafast.program import Loss, Parameter
from metafast.rules import SGD, LearntRates, rates

#: Relative L2 error up to which float64 results are the same numbers, summed in another order.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Report:
    """Relative L2 errors ``|a - b| / (|b| + s)`` against the float64 loop, by quantity.

    s is 1e-4 of the norm of all gradients together, so that a gradient which is zero in exact arithmetic (a bias in
    front of a BatchNorm) is not judged by the rounding it consists of; s is 0 for the loss.

    Quantities are ``loss``, the meta-gradient of every parameter under its name, and the gradients of ``lr``, ``xs``,
    ``xq`` and of targets and weights where they are floating.
    """

    engine: str  # "native", or "torch" and why
    errors: dict[str, float]  # the engine in float64
    errors_float32: dict[str, float]  # the engine in float32
    torch_float32: dict[str, float]  # the loop in float32: how far rounding alone carries
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether every float64 error is within the tolerance. Float32 is reported, not judged: a rounding that flips a
        ReLU or a max-pool moves torch's own result as well."""
        return all(error <= self.tolerance for error in self.errors.values())

    def raise_if_wrong(self) -> None:
        """Raise RuntimeError with the whole report unless it is ok."""
        if not self.ok:
            raise RuntimeError(str(self))

    def __str__(self) -> str:
        width = max(map(len, self.errors))
        lines = [
            f"engine: {self.engine}",
            f"{'relative error of':{width}}   float64   float32   torch's own float32",
        ]
        for name, error in self.errors.items():
            wrong = "" if error <= self.tolerance else "   WRONG"
            single, own = self.errors_float32[name], self.torch_float32[name]
            lines.append(f"{name:{width}}   {error:7.1e}   {single:7.1e}   {own:7.1e}{wrong}")
        verdict = "agrees with" if self.ok else "DIFFERS from"
        lines.append(f"{verdict} the float64 loop, one task at a time, to {self.tolerance:.0e}")
        return "\n".join(lines)


def verify(maml: MAML, support: Any, query: Any, steps: int | None = None, stepwise: bool = False) -> Report:
    """Compare the learner's engine with a plain float64 autograd loop on this batch, one task at a time.

    Args:
        maml: the learner; neither it nor its gradients are changed.
        support, query, steps, stepwise: as the learner takes them.

    Raises:
        ValueError: the model draws random numbers (dropout in training mode), so that no two runs agree.
    """
    count = maml.steps if steps is None else arguments.steps(steps)
    train, test = arguments.batch("support", support), arguments.batch("query", query)
    arguments.axes("support x", train.x, stepwise)
    _refuse_randomness(maml.model, train.x[0, 0] if stepwise else train.x[0])
    case = _Case(maml, train, test, count, stepwise)
    truth = case.measure(_by_loop, torch.float64)
    return Report(
        case.engine(),
        _errors(case.measure(_by_engine, torch.float64), truth),
        _errors(case.measure(_by_engine, torch.float32), truth),
        _errors(case.measure(_by_loop, torch.float32), truth),
    )


class _Case:
    """The learner's settings and one batch, ready to be run in any dtype without touching the learner."""

    def __init__(self, maml: MAML, support: Batch, query: Batch, steps: int, stepwise: bool) -> None:
        self.maml, self.support, self.query = maml, support, query
        self.steps, self.stepwise = steps, stepwise

    def learner(self, dtype: torch.dtype) -> tuple[MAML, dict[str, Tensor]]:
        """A copy of the learner in ``dtype``, and its learning rates as leaves to differentiate: name -> tensor."""
        given: Any = self.maml.lr
        if isinstance(given, LearntRates):
            given = given.as_dict()
        leaf = _leaves(given if isinstance(given, Mapping) else {"": given}, dtype)
        lr: Any = leaf if isinstance(given, Mapping) else leaf[""]
        copied = MAML(
            copy.deepcopy(self.maml.model).to(dtype),
            lr,
            self.maml.steps,
            self.maml.loss,
            self.maml.first_order,
            SGD(per_step=self.maml.per_step),
            adapt_params=self.maml.adapt_params,
            memory=self.maml.memory,
            backend=self.maml.backend,
            strict=self.maml.strict,
            reduction=self.maml.reduction,
        )
        return copied, {f"lr {name}".strip(): value for name, value in leaf.items()}

    def data(self, dtype: torch.dtype) -> tuple[Batch, Batch, dict[str, Tensor]]:
        named = {
            f"{part}{kind}": t
            for kind, b in (("s", self.support), ("q", self.query))
            for part, t in zip("xyw", b, strict=True)
        }
        leaves = _leaves({name: t for name, t in named.items() if t is not None}, dtype)
        support, query = (Batch(*(leaves.get(f"{part}{kind}") for part in "xyw")) for kind in "sq")  # type: ignore[arg-type]
        return support, query, {name: t for name, t in leaves.items() if t.requires_grad}

    def measure(self, run: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The loss and its gradients, by name."""
        learner, lr = self.learner(dtype)
        support, query, data = self.data(dtype)
        named = {n: p for n, p in learner.model.named_parameters() if p.requires_grad}
        leaves = {**named, **lr, **data}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the learner itself has said it once
            loss = run(learner, support, query, self.steps, self.stepwise)
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}

    def engine(self) -> str:
        x = self.support.x
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = self.maml._plans().plan("support x", x, self.stepwise)
        return "native" if plan.native else f"torch ({plan.why})"


def _leaves(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies to differentiate with respect to; integers stay what they are."""
    leaves = {}
    for name, value in values.items():
        tensor = torch.as_tensor(value if isinstance(value, Tensor) else float(value)).detach()
        leaves[name] = tensor.to(dtype, copy=True).requires_grad_() if tensor.is_floating_point() else tensor
    return leaves


def _by_engine(learner: MAML, support: Batch, query: Batch, steps: int, stepwise: bool) -> Tensor:
    loss: Tensor = learner(_tuple(support), _tuple(query), steps=steps, stepwise=stepwise).loss
    return loss


def _tuple(batch: Batch) -> tuple[Tensor, ...]:
    return tuple(t for t in batch if t is not None)


def _by_loop(learner: MAML, support: Batch, query: Batch, steps: int, stepwise: bool) -> Tensor:
    """loss = mean_t L(theta_K; Q_t),   theta_{k+1} = theta_k - a_k dL(theta_k; S_t)/d theta."""
    model = learner.model
    known, function = losses.resolve(learner.loss, learner.reduction)
    chosen = arguments.predicate(learner.adapt_params)
    initial = dict(model.named_parameters())
    moved = [Parameter(n, tuple(p.shape), "adapted") for n, p in initial.items() if p.requires_grad and chosen(n)]
    some = next(iter(initial.values()))
    lr = rates(learner.lr, learner.per_step, steps, None, moved, list(initial), some.dtype, some.device)
    total = []
    for t in range(support.x.shape[0]):
        theta: dict[str, Tensor] = dict(initial)
        for k in range(steps):
            x, y, w = (s if s is None else s[t, k] if stepwise else s[t] for s in support)
            loss = _task_loss(model, theta, known, function, x, y, w)
            gradients = torch.autograd.grad(
                loss, [theta[p.name] for p in moved], create_graph=True, materialize_grads=True
            )
            for a, (parameter, gradient) in enumerate(zip(moved, gradients, strict=True)):
                constant = gradient.detach() if learner.first_order else gradient
                theta[parameter.name] = theta[parameter.name] - _rate(lr, k, a, parameter) * constant
        x, y, w = (q if q is None else q[t] for q in query)
        total.append(_task_loss(model, theta, known, function, x, y, w))
    return torch.stack(total).mean()


def _task_loss(
    model: nn.Module,
    theta: Mapping[str, Tensor],
    known: Loss | None,
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor | None,
    y: Tensor | None,
    w: Tensor | None,
) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    output: Tensor = functional_call(model, {**theta, **buffers}, (x,))
    assert y is not None
    if known is None:
        mean: Tensor = function(output, y)
        return mean
    each = losses.per_example(known, output, y)
    w = torch.ones_like(each) if w is None else w
    total = (w * each).sum()
    if known.reduction == "sum":
        return total
    return total / (len(each) if known.reduction == "mean" else w.sum())


def _rate(lr: Rates, step: int, number: int, parameter: Parameter) -> Tensor:
    of = dict(lr.elementwise).get(number)
    if of is None:
        return lr.table[step, number]
    return of[step] if of.ndim > len(parameter.shape) else of


def _errors(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    gradients = [b.flatten() for name, b in truth.items() if name != "loss"]
    scale = 1e-4 * float(torch.cat(gradients).norm())
    return {name: _error(found[name].double(), b, 0.0 if name == "loss" else scale) for name, b in truth.items()}


def _error(a: Tensor, b: Tensor, scale: float) -> float:
    return float((a - b).norm()) / (float(b.norm()) + scale or 1.0)


def _refuse_randomness(model: nn.Module, x: Tensor) -> None:
    outputs: Sequence[Tensor] = []
    with torch.no_grad():
        copied = copy.deepcopy(model)
        state = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
        outputs = [functional_call(copied, {n: t.clone() for n, t in state.items()}, (x,)) for _ in range(2)]
    if not torch.equal(*(o.nan_to_num() for o in outputs)):
        raise ValueError(
            "model gives two answers for one input (dropout in training mode?); verify needs one: call eval()"
        )
