"""The tensors of a call, named once for both engines: those that go into an unrolled inner loop, and what comes out.

The same record holds tensors, whether each requires a gradient, or the gradients themselves; its leaves have one order,
and nobody else counts places in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from metafast.estimators import Checkpoint
    from metafast.estimators.estimator import Estimator
    from metafast.rules.rule import Rule


class Batch(NamedTuple):
    """Examples of T tasks. A support set may hold another minibatch for each of K steps: then every tensor has a
    second axis K after T."""

    x: Tensor  # [T, N, *example]; as the user gives it, perhaps a tuple of several
    y: Tensor | None  # [T, N] classes, or [T, N, *output] real targets; as the user gives it, perhaps several
    w: Tensor | None  # [T, N] per-example weights


def tensors_of(x: Any) -> tuple[Tensor, ...]:
    """One tensor, or several in tuples, lists and dicts."""
    if not isinstance(x, (tuple, list, dict)):
        return (x,)
    return tuple([tensor for part in (x.values() if isinstance(x, dict) else x) for tensor in tensors_of(part)])


def named(name: str, x: Any) -> dict[str, Tensor]:
    """The tensors in x under what messages call them, if x is called ``name``."""
    if not isinstance(x, (tuple, list, dict)):
        return {name: x}
    parts = x.items() if isinstance(x, dict) else enumerate(x)
    return {at: tensor for key, part in parts for at, tensor in named(f"{name}[{key!r}]", part).items()}


def each_of(x: Any, function: Callable[[Tensor], Any]) -> Any:
    """``function`` of one tensor, or of each of several."""
    if isinstance(x, dict):
        return {key: each_of(part, function) for key, part in x.items()}
    if not isinstance(x, (tuple, list)):
        return function(x)
    made = [each_of(part, function) for part in x]
    return type(x)._make(made) if hasattr(x, "_make") else made if isinstance(x, list) else tuple(made)


class Hyper(NamedTuple):
    """``table[k, a]`` is the value at step k for the a-th adapted parameter, unless ``elementwise`` holds ``(a,
    tensor)`` with a tensor of the parameter's shape, or of that shape behind a leading axis K."""

    table: Tensor  # [K, A]
    elementwise: tuple[tuple[int, Tensor], ...] = ()

    def at(self, k: int, a: int, dims: int) -> Tensor:
        """The value at step k for the a-th adapted parameter, which has ``dims`` dimensions: [] or [*shape]."""
        for number, tensor in self.elementwise:
            if number == a:
                return tensor[k] if tensor.ndim > dims else tensor
        return self.table[k, a]


class Structure(NamedTuple):
    """Which leaves a :class:`Call` has: how many parameters; of each hyper-parameter the adapted parameters with values
    per element; which sets are there."""

    parameters: int
    hypers: tuple[tuple[int, ...], ...]
    support: bool
    query: bool

    @property
    def leaves(self) -> int:
        """How many there are."""
        hypers = sum([1 + len(each) for each in self.hypers])
        return self.parameters + hypers + 3 * (self.support + self.query)

    def call(self, leaves: Sequence[Any]) -> Call:
        """``leaves`` in their places."""
        rest = iter(leaves)
        parameters = [next(rest) for _ in range(self.parameters)]
        hypers = [Hyper(next(rest), tuple([(a, next(rest)) for a in each])) for each in self.hypers]
        return Call(parameters, hypers, _batch(rest) if self.support else None, _batch(rest) if self.query else None)


def _batch(rest: Iterator[Any]) -> Batch:
    return Batch(next(rest), next(rest), next(rest))


class Call(NamedTuple):
    parameters: Sequence[Any]  # of the program in order, each [*shape] (shared by all tasks) or [T, *shape]
    hypers: Sequence[Hyper]  # of the rule, in its order; none where there are no steps
    support: Batch | None
    query: Batch | None

    @property
    def first(self) -> Batch:
        """A set that is there."""
        found = self.support if self.support is not None else self.query
        assert found is not None
        return found

    def leaves(self) -> list[Any]:
        made = [*self.parameters]
        for hyper in self.hypers:
            made.append(hyper.table)
            made += [tensor for _, tensor in hyper.elementwise]
        for batch in (self.support, self.query):
            made += batch or ()
        return made

    def structure(self) -> Structure:
        elementwise = tuple([tuple([a for a, _ in hyper.elementwise]) for hyper in self.hypers])
        return Structure(len(self.parameters), elementwise, self.support is not None, self.query is not None)


@dataclass(frozen=True)
class InnerLoop:
    """How the inner loop runs: everything about it that is no tensor."""

    steps: int
    rule: Rule
    estimator: Estimator
    memory: str | Checkpoint
    stepwise: bool = False  # the support set holds another minibatch for each step

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides about the native engine's work."""
        return self.steps, self.rule.spec, self.estimator, self.memory, self.stepwise


class Unrolled(NamedTuple):
    loss: Tensor | None  # [] mean of task_loss
    task_loss: Tensor | None  # [T]
    logits: Tensor | None  # [T, Nq, *output]
    support_loss: Tensor  # [T, K] before each step; not differentiable
    adapted: tuple[Tensor, ...] | None  # each [T, *shape], in the order of Program.adapted
    again: Any = None  # what metafast.planning.repeat wants to know of the native engine's call
