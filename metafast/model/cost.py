"""How many operations a step of a Program takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from metafast.model.layers import POINTWISE
from metafast.model.program import ABSENT, Parameter, Shape, Step


def flops(step: Step, values: Sequence[Shape], parameters: Sequence[Parameter]) -> int:
    """Of one example's forward pass. A multiplication and an addition count as two, a function of one element as one.
    ``values`` and ``parameters`` are those of the Program."""
    return math.prod(values[step.output]) * _per_element(step, values, parameters)


def total(steps: Iterable[Step], values: Sequence[Shape], parameters: Sequence[Parameter]) -> int:
    return sum(flops(step, values, parameters) for step in steps)


def _per_element(step: Step, values: Sequence[Shape], parameters: Sequence[Parameter]) -> int:
    if step.op in ("linear", "conv2d"):
        weight, bias = step.parameters
        return 2 * math.prod(parameters[weight].shape[1:]) + (bias != ABSENT)
    settings = dict(step.attributes)
    if step.op == "batch_norm":
        return 8 if settings["training"] else 4
    if step.op in ("max_pool2d", "avg_pool2d"):
        return int(settings["kernel_h"] * settings["kernel_w"])
    if step.op == "adaptive_avg_pool2d":
        return -(-math.prod(values[step.inputs[0]]) // math.prod(values[step.output]))
    if step.op == "flatten":
        return 0
    if step.op in POINTWISE or step.op == "add":
        return 1
    raise NotImplementedError(f"the cost of {step.op!r} is not known; add it to metafast.model.cost")
