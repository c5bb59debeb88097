"""Links that go in front of an optimiser: clipping of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metafast.rules.rule import HyperValue, Link, Moving, Rule, number, sqrt_or_zero


def clip_norm(max_norm: HyperValue) -> Rule:
    """Scale a task's gradient to norm at most c, as torch.nn.utils.clip_grad_norm_ does::

        g' = g min(1, c / (|g| + 1e-6)),     |g| over all parameters that the inner loop moves

    Differentiable through the norm, whose slope at 0 is taken for 0. ``max_norm`` is a number, or a tensor [] or
    [steps].
    """
    if isinstance(max_norm, Mapping):
        raise TypeError("max_norm bounds the gradient of all parameters together; it cannot be a dict")
    link = Link("clip_norm", "clip_norm", {"max_norm": "clip_norm"}, scale=_factor, place=-1)
    return Rule((link,), {"clip_norm": number("max_norm", max_norm)})


def _factor(squares: Tensor, h: Mapping[str, Tensor]) -> Tensor:
    ratio = h["max_norm"] / (sqrt_or_zero(squares) + 1e-6)
    return torch.where(ratio > 1, 1, ratio)  # the ratio where it is NaN, as torch has it


def clip_value(limit: HyperValue) -> Rule:
    """Clip every element of the gradient to [-c, c], as torch.nn.utils.clip_grad_value_ does."""
    link = Link("clip_value", "clip_value", {"limit": "clip_value"}, map=_clip, place=-1)
    return Rule((link,), {"clip_value": number("limit", limit)})


def _clip(m: Moving, h: Mapping[str, Tensor], k: int) -> None:
    limit = h["limit"]
    m.g = torch.where(m.g > limit, limit, torch.where(m.g < -limit, -limit, m.g))
