"""What parametrizations compute of a module's own parameters: a weight of given norm (weight_norm)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from metafast.model.builder import Builder, Place
from metafast.model.layers.table import lowered, lowers


@lowers(torch._weight_norm)
def weight_norm(b: Builder, v: Any, g: Any, dim: int = 0) -> Place:
    """g v / |v|, the norm over all axes but ``dim``; -1 for over all of them."""
    do = partial(lowered, b)
    axes = [axis for axis in range(len(v.shape)) if axis != dim]
    length = do(torch.sqrt, do(torch.sum, do(torch.square, v), axes, True))
    made: Place = do(torch.mul, v, do(torch.div, g, length))
    return made
