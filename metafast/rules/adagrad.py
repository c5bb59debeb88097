"""Adagrad as torch.optim has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metafast.rules.rule import HyperValue, Link, Moving, Rule, number, sqrt_or_zero

_HYPERS = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")


def Adagrad(
    lr: HyperValue | None = None,
    lr_decay: HyperValue = 0.0,
    weight_decay: HyperValue = 0.0,
    initial_accumulator_value: HyperValue = 0.0,
    eps: HyperValue = 1e-10,
    *,
    per_step: bool = False,
    learn: Sequence[str] = (),
) -> Rule:
    """Adagrad (Duchi et al. 2011) as the inner loop's rule, with the settings of torch.optim.Adagrad.

    For step k and every element of an adapted parameter, with its gradient g_k::

        d_k         = g_k + w theta_k
        s_k         = s_{k-1} + d_k^2                       (s_{-1} = s)
        theta_{k+1} = theta_k - a / (1 + k b) * d_k / (sqrt(s_k) + eps)

    The slope of the square root at 0 is taken for 0: an element whose gradients were all exactly zero has finite
    derivatives. Where root and eps are both zero, the element stays where it is.

    Args:
        lr: the step size a; None means the learner's ``lr`` if that was given, else 0.01.
        lr_decay, weight_decay: b and w.
        initial_accumulator_value: s.
        eps: eps.
        per_step, learn, and what every setting may be: as for :func:`metafast.SGD`.
    """
    given = (lr, lr_decay, weight_decay, initial_accumulator_value, eps)
    hypers: dict[str, HyperValue | None] = {}
    for name, value in zip(_HYPERS, given, strict=True):
        least = -float("inf") if name == "lr" else 0.0
        hypers[name] = None if value is None and name == "lr" else number(name, value, least=least)
    learn = (learn,) if isinstance(learn, str) else tuple(learn)
    link = Link("adagrad", "Adagrad", {name: name for name in _HYPERS}, 1, map=_step)
    return Rule((link,), hypers, per_step, learn, default_lr=0.01)


def _step(m: Moving, h: Mapping[str, Tensor], k: int) -> None:
    d = m.g + h["weight_decay"] * m.theta
    total = (h["initial_accumulator_value"] if k == 0 else m.state[0]) + d * d
    below = sqrt_or_zero(total) + h["eps"]
    moves = below > 0
    quotient = torch.where(moves, d / torch.where(moves, below, 1), 0 * d)
    m.theta = m.theta - h["lr"] / (1 + k * h["lr_decay"]) * quotient
    m.state = [total]
