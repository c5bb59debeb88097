"""Proof on the user's own batch: the engine in use against the plainest loop that computes the same thing, in
float64 (:mod:`metafast.judge`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metafast import arguments, losses
from metafast.call import Batch, each_of, named, tensors_of
from metafast.engine.reference import call
from metafast.engine.swap import SWAPPING
from metafast.judge import Held, Loop, Tensors, parameter
from metafast.learner import MAML
from metafast.planning import shared
from metafast.planning.reading import kinds_of

#: Relative L2 error up to which float64 results are the same numbers, summed in another order.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Report:
    """Relative L2 errors ``|a - b| / (|b| + s)`` against the float64 loop, by quantity.

    s is 1e-4 of the norm of all gradients together, so that a gradient which is zero in exact arithmetic (a bias in
    front of a BatchNorm) is not judged by the rounding it consists of; s is 0 for the loss.

    Quantities are ``loss``, the meta-gradient of every parameter under its name (``loss weight`` for one of a loss that
    is a module), and the gradients of ``lr``, ``xs``, ``xq`` and of targets and weights where they are floating;
    ``xs[0]`` is the first of several inputs, ``ys['value']`` one of several targets.
    """

    engine: str  # "native", or "torch" and why, or both where torch runs the static prefix
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

    The model and the loss are the learner's own, which hold other parameters meanwhile and get back what they held.

    Args:
        maml: the learner; neither it nor its gradients are changed.
        support, query, steps, stepwise: as the learner takes them.

    Raises:
        ValueError: the model draws random numbers (dropout in training mode), so that no two runs agree; or the loss
            does, or tells the model's parameters from others of the same values.
    """
    count = maml.steps if steps is None else arguments.steps(steps)
    train, test = arguments.batch("support", support), arguments.batch("query", query)
    arguments.axes("support x", train.x, stepwise)
    case = _Case(maml, train, test, count, stepwise)
    engine = case.engine()
    with torch.inference_mode(False), torch.enable_grad(), SWAPPING:
        _refuse_randomness(case)
        _refuse_recognition(case)
        truth = case.by_loop(torch.float64)
        return Report(
            engine,
            _errors(case.by_engine(torch.float64), truth),
            _errors(case.by_engine(torch.float32), truth),
            _errors(case.by_loop(torch.float32), truth),
        )


class _Case:
    """The learner's settings and one batch, ready to be run in any dtype."""

    def __init__(self, maml: MAML, support: Batch, query: Batch, steps: int, stepwise: bool) -> None:
        self.maml, self.support, self.query = maml, support, query
        self.steps, self.stepwise = steps, stepwise
        self.held = Held(maml)

    def engine(self) -> str:
        """Which engine runs the learner as it is; raises what the learner raises for this batch."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.maml(_tuple(self.support), _tuple(self.query), self.steps, stepwise=self.stepwise)
            plans = self.maml._plans()
            targets = () if plans.loss else kinds_of(self.support, self.query, self.stepwise)
            plan = plans.plan("support x", self.support.x, self.stepwise, targets)
        return plan.words

    def by_engine(self, dtype: torch.dtype) -> Tensors:
        """The loss and its gradients, by name."""
        with self.in_dtype(dtype) as (learner, support, query, leaves, _), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the learner itself has said it once
            loss = learner(_tuple(support), _tuple(query), steps=self.steps, stepwise=self.stepwise).loss
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}

    def by_loop(self, dtype: torch.dtype) -> Tensors:
        """The same by the judge."""
        with self.in_dtype(dtype) as (learner, support, query, leaves, state):
            loop = Loop(learner, self.held, state, self.steps, self.stepwise)
            loss, gradients = loop.loss_and_gradients(support, query, leaves)
        return {"loss": loss, **gradients}

    @contextmanager
    def in_dtype(self, dtype: torch.dtype) -> Iterator[tuple[MAML, Batch, Batch, Tensors, Tensors]]:
        """A learner whose model holds parameters of ``dtype``, its data, all that it can be differentiated with respect
        to, and all that the modules hold."""
        parameters = {n: _of_dtype(p, dtype) for n, p in self.held.parameters.items()}
        parameters = {n: parameter(p, self.held.parameters[n]) for n, p in parameters.items()}
        buffers = {n: _of_dtype(b, dtype).clone() for n, b in self.held.buffers.items()}
        with self.held.restored(), shared.forgotten(self.maml.model):
            self.held.put(parameters | buffers)
            learner, lr = self._learner(dtype)
            support, query, data = self._data(dtype)
            named = {n: p for n, p in parameters.items() if p.requires_grad}
            yield learner, support, query, {**named, **lr, **data}, parameters | buffers

    def _learner(self, dtype: torch.dtype) -> tuple[MAML, Tensors]:
        """Another learner of the same model, and its hyper-parameters as leaves to differentiate: name -> tensor."""
        leaves: Tensors = {}

        def leaf(name: str) -> Any:
            given = self.maml.hyper(name)
            made = _leaves(given if isinstance(given, Mapping) else {"": given}, dtype)
            leaves.update({f"{name} {key}".strip(): value for key, value in made.items()})
            return made if isinstance(given, Mapping) else made[""]

        rule = self.maml.rule
        learner = MAML(
            self.maml.model,
            steps=self.maml.steps,
            loss=self.maml.loss,
            rule=replace(rule, hypers={name: leaf(name) for name in rule.hypers}, learn=()),
            adapt_params=self.maml.adapt_params,
            memory=self.maml.memory,
            backend=self.maml.backend,
            strict=self.maml.strict,
            estimator=self.maml.estimator,
            reduction=self.maml.reduction,
        )
        return learner, leaves

    def _data(self, dtype: torch.dtype) -> tuple[Batch, Batch, Tensors]:
        given = {
            f"{part}{kind}": t
            for kind, b in (("s", self.support), ("q", self.query))
            for part, t in zip("xyw", b, strict=True)
            if t is not None
        }
        leaves = _leaves({at: t for name, x in given.items() for at, t in named(name, x).items()}, dtype)

        def leaf(name: str) -> Any:
            names = iter(named(name, given.get(name)))
            return each_of(given.get(name), lambda _: leaves.get(next(names)))

        support, query = (Batch(*(leaf(f"{part}{kind}") for part in "xyw")) for kind in "sq")
        return support, query, {name: t for name, t in leaves.items() if t.requires_grad}


def _of_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()


def _leaves(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies to differentiate with respect to; integers stay what they are."""
    leaves = {}
    for name, value in values.items():
        tensor = torch.as_tensor(value if isinstance(value, Tensor) else float(value)).detach()
        leaves[name] = tensor.to(dtype, copy=True).requires_grad_() if tensor.is_floating_point() else tensor
    return leaves


def _tuple(batch: Batch) -> tuple[Tensor, ...]:
    return tuple(t for t in batch if t is not None)


def _errors(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    gradients = [b.flatten() for name, b in truth.items() if name != "loss"]
    scale = 1e-4 * float(torch.cat(gradients).norm())
    return {name: _error(found[name].double(), b, 0.0 if name == "loss" else scale) for name, b in truth.items()}


def _error(a: Tensor, b: Tensor, scale: float) -> float:
    return float((a - b).norm()) / (float(b.norm()) + scale or 1.0)


def _refuse_randomness(case: _Case) -> None:
    x = arguments.first_of(case.support.x, case.stepwise)
    outputs = []
    with case.held.restored():  # and with gradients: some models differentiate in forward
        for _ in range(2):
            case.held.put_copies(case.held.parameters | case.held.buffers)
            outputs.append(torch.cat([t.flatten().nan_to_num() for t in tensors_of(call(case.maml.model, x))]))
    if not torch.equal(*outputs):
        raise ValueError(
            "model gives two answers for one input (dropout in training mode?); verify needs one: call eval()"
        )


def _refuse_recognition(case: _Case) -> None:
    """A loss that picks parameters by id() picks none of those that an inner loop makes, whoever runs that loop. And a
    loss must run in both precisions, as the model does."""
    named, function = losses.resolve(case.maml.loss)
    if named is not None:
        return

    def loss_with(state: Tensors, batch: Batch) -> Tensor:
        x, y = (arguments.first_of(t, case.stepwise) for t in batch[:2])
        with case.held.restored():
            case.held.put_copies(state)
            return function(call(case.maml.model, x), y).detach()

    held = case.held
    own, other = (loss_with(state, case.support) for state in (held.buffers, held.parameters | held.buffers))
    if not torch.allclose(own, other, rtol=1e-5, equal_nan=True):
        raise ValueError(
            f"loss is {own.item():g} with the model's own parameters and {other.item():g} with others of the same "
            "values: either it draws random numbers, or it tells parameters by identity (id(p), p in a dict), and an "
            "inner loop's are other tensors. Choose them by name: model.named_parameters()"
        )
    for dtype in (torch.float64, torch.float32):
        with case.in_dtype(dtype) as (_, support, _, _, state):
            try:
                loss_with(state, support)
            except RuntimeError as error:
                raise ValueError(
                    f"loss cannot run in {dtype}, and verify runs the learner in float64 and float32: {error}. Tensors "
                    "of the loss's own can follow: tensor.to(output.dtype)"
                ) from error
