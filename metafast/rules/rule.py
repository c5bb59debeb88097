"""What a rule is: how one inner step moves the adapted parameters, as a chain of links.

A link maps every element (docs/maths.md, section 2; csrc/rules/rule.h says the same)::

    (theta, g, state) -> (theta', g', state')

Here it is written in plain torch, on tensors of any shape, for the torch engine and for the tests of the native one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """``kind`` is the native engine's name for it, ``called`` the user's; ``hypers`` maps its own names, in the native
    order, to those that the user knows them by."""

    kind: str
    called: str
    hypers: Mapping[str, str]
    states: int = 0
    flags: int = 0
    map: Map | None = None
    scale: Scale | None = None  # instead of a map
    place: int = (
        0  # in a chain: 0 the optimiser, -1 in front of it (changes gradients), 1 behind it (changes parameters)
    )
    switches: tuple[str, ...] = ()  # those of its yes-or-no settings that are on


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

    def __post_init__(self) -> None:
        unknown = [name for name in self.learn if name not in self.hypers]
        if unknown:
            raise ValueError(f"learn names {unknown[0]!r}; {self.links[0].called} has {', '.join(self.hypers)}")

    @property
    def lr(self) -> HyperValue | None:
        return self.hypers.get("lr")

    @property
    def optimises(self) -> bool:
        """Whether it moves parameters by their gradients, and is not only part of a chain."""
        return any(link.place == 0 for link in self.links)

    @property
    def spec(self) -> tuple[tuple[str, int], ...]:
        """What the native engine is told of the rule besides the values: kind and flags of each link."""
        return tuple((link.kind, link.flags) for link in self.links)

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the hyper-parameters in the order in which the native engine takes their values."""
        return tuple(name for link in self.links for name in link.hypers.values())

    def __repr__(self) -> str:
        shown = [f"{link.called}({', '.join(self._settings(link))})" for link in self.links]
        return shown[0] if len(shown) == 1 else f"chain({', '.join(shown)})"

    def _settings(self, link: Link) -> list[str]:
        values = {own: self.hypers[name] for own, name in link.hypers.items()}
        shown = [
            f"{own}={value if isinstance(value, float) else type(value).__name__}"
            for own, value in values.items()
            if value is not None
        ]
        shown += [f"{switch}=True" for switch in link.switches]
        if "lr" in link.hypers:
            shown += ["per_step=True"] if self.per_step else []
            shown += [f"learn={self.learn}"] if self.learn else []
        return shown

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


def number(name: str, value: Any, least: float = 0.0, below: float = math.inf) -> HyperValue:
    """A setting whose values are in range; a plain number as a float. Whether tensors and dicts fit the model is seen
    later."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            number(f"{name}[{key!r}]", one, least, below)
        return value
    wanted = f"{name} must be >= {least:g}" + (f" and < {below:g}" if below < math.inf else "")
    if isinstance(value, Tensor):
        values = value.detach()
        if bool(((values < least) | (values >= below) & (values < math.inf)).any()):
            raise ValueError(f"{wanted}; its values are from {values.min():g} to {values.max():g}")
        return value
    kinds = f"{name} must be a float, a tensor, or a dict from parameter name to one; it is {value!r}"
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(kinds)
    try:
        plain = float(value)
    except (TypeError, ValueError) as error:  # an array of several
        raise TypeError(kinds) from error
    if not math.isfinite(plain):
        raise ValueError(f"{name} must be finite; it is {plain}")
    if not least <= plain < below:
        raise ValueError(f"{wanted}; it is {plain:g}")
    return plain


def learnt_names(learn: Any) -> tuple[str, ...]:
    """``learn`` as names of settings."""
    names = (learn,) if isinstance(learn, str) else tuple(learn) if isinstance(learn, Iterable) else (learn,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f'learn must be names of settings, such as ("lr", "momentum"); it is {learn!r}')
    return names
