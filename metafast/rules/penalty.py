"""Links that hold parameters near the initial weights, or near zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metafast.rules.rule import HyperValue, Link, Moving, Rule, number


def proximal(strength: HyperValue) -> Rule:
    """Add s (theta_k - theta_0) to the gradient: that of s/2 |theta - theta_0|^2 (Rajeswaran et al. 2019, eq. 4).

    The meta-gradient is exact for theta_0 in both of its parts.
    """
    link = Link("proximal", "proximal", {"strength": "proximal"}, map=_pull, place=-1)
    return Rule((link,), {"proximal": number("strength", strength)})


def _pull(m: Moving, h: Mapping[str, Tensor], k: int) -> None:
    m.g = m.g + h["strength"] * (m.theta - m.start)


def soft_threshold(strength: HyperValue) -> Rule:
    """After the step, move every element towards zero by s, and no further: the proximal step of s |theta|_1 (Beck and
    Teboulle 2009). For a penalty p |theta|_1 under gradient descent, s = lr p.
    """
    link = Link("soft_threshold", "soft_threshold", {"strength": "soft_threshold"}, map=_shrink, place=1)
    return Rule((link,), {"soft_threshold": number("strength", strength)})


def _shrink(m: Moving, h: Mapping[str, Tensor], k: int) -> None:
    s = h["strength"]
    m.theta = torch.where(m.theta > s, m.theta - s, torch.where(m.theta < -s, m.theta + s, 0 * m.theta))
