"""Activations that take a parameter, or half of their input for a gate."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place, batched, described
from metafast.model.layers.pairs import pair
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers, lowers_module


@lowers(F.glu)
def glu(b: Builder, input: Any, dim: int = -1) -> Place:
    """One half times the sigmoid of the other."""
    halves = rearranged(b, torch.chunk, [b.place(input), 2, dim], {}, True, "chunk")
    if len(halves) != 2 or halves[0].shape != halves[1].shape:
        b.refuse(f"halves an odd axis of {batched(input.shape)}, which torch refuses")
    return pair(b, "multiply", halves[0], b.elementwise("sigmoid", halves[1]))


lowers_module(nn.GLU)(lambda b, m, x: glu(b, x, m.dim))


@lowers(F.prelu, torch.prelu, "prelu")
def prelu(b: Builder, input: Any, weight: Any) -> Place:
    """max(x, 0) + weight min(x, 0), with the weight's slope at 0 as in torch; one weight, or one for each channel."""
    place, slope = b.place(input), b.place(weight)
    if not slope.shared or len(slope.shape) > 1:
        b.refuse(f"takes {described(weight)} for slopes; native is a vector of parameters")
    channels = place.shape[0] if place.shape else 1
    if slope.shape not in ((), (1,), (channels,)):
        b.refuse(f"takes slopes of shape {list(slope.shape)} for {batched(place.shape)}, which torch refuses")
    if slope.shape == (channels,) and len(place.shape) > 1:
        slope = rearranged(b, torch.reshape, [slope, (channels, *(1,) * (len(place.shape) - 1))], {}, True, "reshape")
    below = b.elementwise("clamp", place, {"high": 0})
    return pair(b, "add", b.elementwise("relu", place), pair(b, "multiply", below, slope))


lowers_module(nn.PReLU)(lambda b, m, x: prelu(b, x, m.weight))
