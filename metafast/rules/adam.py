"""Adam and AdamW as torch.optim has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from metafast.rules.rule import HyperValue, Link, Moving, Rule, learnt_names, number, sqrt_or_zero

_DECOUPLED, _DETACHED = 1, 2  # flags of csrc/rules/adam.h


def Adam(
    lr: HyperValue | None = None,
    betas: tuple[HyperValue, HyperValue] = (0.9, 0.999),
    eps: HyperValue = 1e-8,
    weight_decay: HyperValue = 0.0,
    amsgrad: bool = False,
    *,
    detach_denominator: bool = False,
    per_step: bool = False,
    learn: Sequence[str] = (),
) -> Rule:
    """Adam (Kingma and Ba 2015, algorithm 1) as the inner loop's rule, with the settings of torch.optim.Adam.

    For step k and every element of an adapted parameter, with its gradient g_k::

        d   = g_k + w theta_k
        m_k = b1 m_{k-1} + (1 - b1) d,      v_k = b2 v_{k-1} + (1 - b2) d^2,      m_{-1} = v_{-1} = 0
        theta_{k+1} = theta_k - a / (1 - b1^{k+1}) * m_k / (sqrt(v_k / (1 - b2^{k+1})) + eps)

    The slope of the square root at 0 is taken for 0: an element whose gradients were all exactly zero has finite
    derivatives. Where root and eps are both zero, the element stays where it is.

    Args:
        lr: the step size a; None means the learner's ``lr`` if that was given, else 0.001.
        betas: b1 and b2, each >= 0 and < 1.
        eps, weight_decay: eps and w.
        amsgrad: the largest v so far in the place of v_k (Reddi et al. 2018).
        detach_denominator: the meta-gradient takes the denominator for a constant.
        per_step, learn, and what every setting may be: as for :func:`metafast.SGD`. ``learn`` may name ``"betas"``.
    """
    return _adam("Adam", lr, betas, eps, weight_decay, amsgrad, detach_denominator, per_step, learn)


def AdamW(
    lr: HyperValue | None = None,
    betas: tuple[HyperValue, HyperValue] = (0.9, 0.999),
    eps: HyperValue = 1e-8,
    weight_decay: HyperValue = 0.01,
    amsgrad: bool = False,
    *,
    detach_denominator: bool = False,
    per_step: bool = False,
    learn: Sequence[str] = (),
) -> Rule:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), with the settings of torch.optim.AdamW.

    As :func:`metafast.Adam` with d = g_k, after theta_k is multiplied by (1 - a w).
    """
    return _adam("AdamW", lr, betas, eps, weight_decay, amsgrad, detach_denominator, per_step, learn)


def _adam(
    name: str,
    lr: HyperValue | None,
    betas: tuple[HyperValue, HyperValue],
    eps: HyperValue,
    weight_decay: HyperValue,
    amsgrad: bool,
    detach_denominator: bool,
    per_step: bool,
    learn: Sequence[str],
) -> Rule:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be a pair (b1, b2); it is {betas!r}")
    hypers = {
        "lr": lr if lr is None else number("lr", lr, least=-math.inf),
        "beta1": number("betas[0]", betas[0], below=1.0),
        "beta2": number("betas[1]", betas[1], below=1.0),
        "eps": number("eps", eps),
        "weight_decay": number("weight_decay", weight_decay),
    }
    learn = tuple(n for one in learnt_names(learn) for n in (("beta1", "beta2") if one == "betas" else (one,)))
    decoupled = name == "AdamW"
    switches = {"amsgrad": bool(amsgrad), "detach_denominator": bool(detach_denominator)}
    link = Link(
        "amsgrad" if amsgrad else "adam",
        name,
        {own: own for own in hypers},
        3 if amsgrad else 2,
        decoupled * _DECOUPLED + switches["detach_denominator"] * _DETACHED,
        partial(_step, decoupled=decoupled, amsgrad=switches["amsgrad"], detached=switches["detach_denominator"]),
        switches=tuple(switch for switch, on in switches.items() if on),
    )
    return Rule((link,), hypers, per_step, learn, default_lr=0.001)


def _step(m: Moving, h: Mapping[str, Tensor], k: int, decoupled: bool, amsgrad: bool, detached: bool) -> None:
    lr, b1, b2 = h["lr"], h["beta1"], h["beta2"]
    d = m.g if decoupled else m.g + h["weight_decay"] * m.theta
    if decoupled:
        m.theta = m.theta - lr * h["weight_decay"] * m.theta
    first = b1 * m.state[0] + (1 - b1) * d
    second = b2 * m.state[1] + (1 - b2) * d * d
    largest = torch.where(second > m.state[2], second, m.state[2]) if amsgrad else second
    below = sqrt_or_zero(largest / (1 - b2 ** (k + 1))) + h["eps"]
    if detached:
        below = below.detach()
    moves = below > 0
    quotient = torch.where(moves, first / torch.where(moves, below, 1), 0 * first)
    m.theta = m.theta - lr / (1 - b1 ** (k + 1)) * quotient
    m.state = [first, second, largest] if amsgrad else [first, second]
