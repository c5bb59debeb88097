"""Gradient descent, plain and as torch.optim.SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from metafast.rules.rule import HyperValue, Link, Moving, Rule, learnt_names, number


def SGD(
    lr: HyperValue | None = None,
    momentum: HyperValue = 0.0,
    dampening: HyperValue = 0.0,
    nesterov: bool = False,
    weight_decay: HyperValue = 0.0,
    *,
    per_step: bool = False,
    learn: Sequence[str] = (),
) -> Rule:
    """Gradient descent, the rule of MAML (Finn et al. 2017, eq. 1), with the settings of torch.optim.SGD.

    For step k and every element of an adapted parameter, with its gradient g_k::

        d_k         = g_k + w theta_k
        b_k         = mu b_{k-1} + (1 - tau) d_k            (b_0 = d_0)
        theta_{k+1} = theta_k - a_k b_k                     (nesterov: theta_k - a_k (d_k + mu b_k))

    Every setting is a float or tensor [], the same for every step and parameter; a tensor [steps], one per step (a call
    with more steps repeats the last, one with fewer drops the rest); or a dict from parameter name to a float, a tensor
    [] or a tensor of the parameter's shape (Meta-SGD, Li et al. 2017), which names every parameter that the inner loop
    moves. All may require gradients.

    Args:
        lr: the step size a; None means the learner's ``lr``.
        momentum: mu.
        dampening: tau; without momentum it means nothing, as in torch.
        nesterov: look ahead (Nesterov 1983; torch's form); needs momentum, and no dampening.
        weight_decay: w.
        per_step: every tensor in a dict has a leading axis of ``steps`` (MAML++, Antoniou et al. 2019).
        learn: names of the settings that the learner holds as parameters to optimise, such as ("lr", "momentum").
    """
    lr = lr if lr is None else number("lr", lr, least=-math.inf)
    momentum, dampening = number("momentum", momentum), number("dampening", dampening)
    weight_decay, learn = number("weight_decay", weight_decay), learnt_names(learn)
    if nesterov and (_is_zero(momentum) or not _is_zero(dampening)):
        raise ValueError("nesterov=True needs momentum, and dampening = 0")
    if _is_zero(momentum) and _is_zero(weight_decay) and set(learn) <= {"lr"}:
        return Rule((DESCENT,), {"lr": lr}, per_step, learn)
    if _is_zero(momentum) and "momentum" not in learn:
        dampening = 0.0
    hypers = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    return Rule((_momentum(bool(nesterov)),), hypers, per_step, learn)


def _is_zero(value: HyperValue) -> bool:
    return isinstance(value, float) and value == 0


def _descend(m: Moving, h: Mapping[str, Tensor], k: int) -> None:
    m.theta = m.theta - h["lr"] * m.g


DESCENT = Link("descent", "SGD", {"lr": "lr"}, map=_descend)


def _momentum(nesterov: bool) -> Link:
    names = ("lr", "momentum", "dampening", "weight_decay")
    return Link(
        "momentum",
        "SGD",
        {name: name for name in names},
        1,
        int(nesterov),
        partial(_gather, nesterov=nesterov),
        switches=("nesterov",) if nesterov else (),
    )


def _gather(m: Moving, h: Mapping[str, Tensor], k: int, nesterov: bool) -> None:
    d = m.g + h["weight_decay"] * m.theta
    b = d if k == 0 else h["momentum"] * m.state[0] + (1 - h["dampening"]) * d
    m.state = [b]
    m.theta = m.theta - h["lr"] * (d + h["momentum"] * b if nesterov else b)
