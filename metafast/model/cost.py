"""How many operations a node of a Program takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from metafast.model.layers import POINTWISE
from metafast.model.layers.pairs import PAIRS
from metafast.model.program import ABSENT, RANDOM, Node, Parameter, Shape


def flops(node: Node, values: Sequence[Shape], parameters: Sequence[Parameter]) -> int:
    """Of one example's forward pass. A multiplication and an addition count as two, a function of one element as one.
    ``values`` and ``parameters`` are those of the Program."""
    if node.op == "conv_transpose2d":  # the whole weight at each position of the input
        weight, bias = node.parameters
        products = math.prod(values[node.inputs[0]][1:]) * parameters[weight].numel
        return 2 * products + (bias != ABSENT) * math.prod(values[node.output])
    return math.prod(values[node.output]) * _per_element(node, values, parameters)


def total(nodes: Iterable[Node], values: Sequence[Shape], parameters: Sequence[Parameter]) -> int:
    return sum(flops(node, values, parameters) for node in nodes)


def _per_element(node: Node, values: Sequence[Shape], parameters: Sequence[Parameter]) -> int:
    if node.op in ("linear", "conv2d"):
        weight, bias = node.parameters
        return 2 * math.prod(parameters[weight].shape[1:]) + (bias != ABSENT)
    settings = dict(node.attributes)
    if node.op == "batch_norm":
        return 8 if settings["training"] else 4
    if node.op == "normalise":
        return 8 if settings["centred"] else 6
    if node.op in ("softmax", "log_softmax"):
        return 4
    if node.op in ("max_pool2d", "avg_pool2d"):
        return int(settings["kernel_h"] * settings["kernel_w"])
    if node.op == "adaptive_avg_pool2d":
        return -(-math.prod(values[node.inputs[0]]) // math.prod(values[node.output]))
    if node.op == "matmul":
        return 2 * values[node.inputs[0]][-1] - 1
    if node.op in ("flatten", "parameter", "embedding"):
        return 0
    if node.op == "sparse_map":
        each = len(node.table) // math.prod(values[node.output])
        return 2 * each - 1 if node.factors else each - 1
    if node.op in RANDOM or node.op in POINTWISE | PAIRS:
        return 1
    raise NotImplementedError(f"the cost of {node.op!r} is not known; add it to metafast.model.cost")
