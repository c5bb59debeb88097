"""What a rule is: how one inner step moves the adapted parameters, as a chain of links.

A link maps every element (docs/maths.md, section 2; csrc/rules/rule.h says the same)::

    (theta, g, state) -> (theta', g', state')

Here it is written in plain torch, on tensors of any shape, for the torch engine and for the tests of the native one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: A hyper-parameter: the same everywhere; [steps]; or per parameter, in forms that :mod:`metafast.rules.hypers` lists.
HyperValue = float | Tensor | Mapping[str, float | Tensor]


@dataclass
class Moving:
    """One parameter of all tasks as a link finds and leaves it: theta [T, *shape], its gradient, theta at step 0, and
    the link's state, one tensor each."""

    theta: Tensor
    g: Tensor
    start: Tensor
    state: list[Tensor]


#: ``map(moving, hypers, k)`` changes what it is given; hypers by name, each [] or [*shape].
Map = Callable[[Moving, Mapping[str, Tensor], int], None]
#: ``scale(squares, hypers)``: the number [T] by which a task's gradient is multiplied, from its squared norm [T].
Scale = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Link:
    """``kind`` is the native engine's name for it; ``hypers`` maps its own names, in the native order, to those that
    the user knows them by."""

    kind: str
    hypers: Mapping[str, str]
    states: int = 0
    flags: int = 0
    map: Map | None = None
    scale: Scale | None = None  # instead of a map


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule in use. Made by :class:`metafast.SGD` and its like, and by :func:`metafast.chain`.

    Attributes:
        links: what is done with a gradient, in this order.
        hypers: hyper-parameters by name; the learning rate may be None, which means the learner's.
        per_step: every tensor in a dict of values has a leading axis of steps.
        learn: names of the hyper-parameters that the learner holds as parameters.
        default_lr: the learning rate where neither the rule nor the learner was given one.
    """

    links: tuple[Link, ...]
    hypers: Mapping[str, HyperValue | None]
    per_step: bool = False
    learn: tuple[str, ...] = ()
    default_lr: float | None = None
    name: str = field(default="chain", repr=False)

    def __post_init__(self) -> None:
        unknown = [name for name in self.learn if name not in self.hypers]
        if unknown:
            raise ValueError(f"learn names {unknown[0]!r}; {self.name} has {', '.join(self.hypers)}")

    @property
    def lr(self) -> HyperValue | None:
        return self.hypers.get("lr")

    @property
    def spec(self) -> tuple[tuple[str, int], ...]:
        """What the native engine is told of the rule besides the values: kind and flags of each link."""
        return tuple((link.kind, link.flags) for link in self.links)

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the hyper-parameters in the order in which the native engine takes their values."""
        return tuple(name for link in self.links for name in link.hypers.values())

    def __repr__(self) -> str:
        shown = {
            n: v if isinstance(v, (int, float)) else type(v).__name__ for n, v in self.hypers.items() if v is not None
        }
        return f"{self.name}({', '.join(f'{n}={v}' for n, v in shown.items())})"

    def begin(self, theta: Sequence[Tensor]) -> list[list[list[Tensor]]]:
        """States at step 0, for every link and parameter: zeros."""
        return [[[torch.zeros_like(t) for _ in range(link.states)] for t in theta] for link in self.links]

    def step(
        self,
        k: int,
        theta: Sequence[Tensor],
        gradients: Sequence[Tensor],
        start: Sequence[Tensor],
        states: list[list[list[Tensor]]],
        hyper: Callable[[str, int], Tensor],
    ) -> tuple[list[Tensor], list[list[list[Tensor]]]]:
        """Step k of all adapted parameters, each [T, *shape]: the next theta and states.

        ``hyper(name, a)`` is the value of a hyper-parameter at this step for the a-th adapted parameter: [] or
        [*shape].
        """
        moving = [Moving(*each, []) for each in zip(theta, gradients, start, strict=True)]
        after: list[list[list[Tensor]]] = []
        for link, found in zip(self.links, states, strict=True):
            if link.scale is not None:
                _scale(link, moving, hyper)
            after.append([])
            for a, m in enumerate(moving):
                m.state = list(found[a])
                if link.map is not None:
                    link.map(m, {own: hyper(name, a) for own, name in link.hypers.items()}, k)
                after[-1].append(m.state)
        return [m.theta for m in moving], after


def _scale(link: Link, moving: Sequence[Moving], hyper: Callable[[str, int], Tensor]) -> None:
    assert link.scale is not None
    squares = torch.stack([m.g.square().flatten(1).sum(1) for m in moving]).sum(0)
    factor = link.scale(squares, {own: hyper(name, 0) for own, name in link.hypers.items()})
    for m in moving:
        m.g = factor.reshape(-1, *[1] * (m.g.ndim - 1)) * m.g


def sqrt_or_zero(x: Tensor) -> Tensor:
    """The square root, its slope at 0 taken for 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0 * x)


def number(name: str, value: Any, least: float = 0.0, below: float = float("inf")) -> None:
    """Check a setting that is a plain number; tensors and dicts are checked against the model later."""
    if isinstance(value, bool) or (
        not isinstance(value, (int, float, Tensor, Mapping)) and not hasattr(value, "__float__")
    ):
        raise TypeError(f"{name} must be a float, a tensor, or a dict from parameter name to one; it is {value!r}")
    if isinstance(value, (int, float)) and not least <= value < below:
        limit = f" and < {below:g}" if below != float("inf") else ""
        raise ValueError(f"{name} must be >= {least:g}{limit}; it is {value:g}")
