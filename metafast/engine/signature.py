"""What the native engine calls the tensors of a call, so that nobody counts places in a list: a name, and where it
stands for several tensors, which of them (csrc/engine/call.cpp has the same names).

Only tensors that are there have a slot. Gradients are called "gradient." and what they belong to, cotangents of the
outputs "cotangent." and theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metafast.call import Batch, Call, Hyper

#: A name; which of the parameters or hyper-parameters; of a hyper-parameter's values per element, whose.
Slot = tuple[str, int, int]

SUPPORT = (("support.x", 0, 0), ("support.y", 0, 0), ("support.w", 0, 0))
QUERY = (("query.x", 0, 0), ("query.y", 0, 0), ("query.w", 0, 0))
SEED = ("seed", 0, 0)

#: The outputs, without the adapted parameters.
LOSSES = (("support_loss", 0, 0), ("task_loss", 0, 0), ("loss", 0, 0), ("logits", 0, 0))


def each(name: str, tensors: Sequence[Any]) -> dict[Slot, Any]:
    """Several tensors of one name."""
    return {(name, i, 0): tensor for i, tensor in enumerate(tensors) if tensor is not None}


def named(call: Call, prefix: str = "") -> dict[Slot, Any]:
    """The leaves of ``call`` that are there, in their order."""
    slots = each(prefix + "parameters", call.parameters)
    for h, hyper in enumerate(call.hypers):
        if hyper.table is not None:
            slots[prefix + "hyper", h, 0] = hyper.table
        for a, tensor in hyper.elementwise:
            if tensor is not None:
                slots[prefix + "elementwise", h, a] = tensor
    for batch, names in ((call.support, SUPPORT), (call.query, QUERY)):
        for (name, i, j), data in zip(names, batch or (), strict=False):
            if data is not None:
                slots[prefix + name, i, j] = data
    return slots


def gradients(found: Mapping[Slot, Tensor], count: int, call: Call) -> Call:
    """The gradients among ``found`` in the places of what they belong to, of ``count`` parameters; None where there is
    none."""
    missing: Any = found.get
    hypers = [
        Hyper(
            missing(("gradient.hyper", h, 0)),
            tuple([(a, missing(("gradient.elementwise", h, a))) for a, _ in hyper.elementwise]),
        )
        for h, hyper in enumerate(call.hypers)
    ]
    sets = [
        None if batch is None else Batch(*[missing(("gradient." + name, i, j)) for name, i, j in names])
        for batch, names in ((call.support, SUPPORT), (call.query, QUERY))
    ]
    return Call([found["gradient.parameters", i, 0] for i in range(count)], hypers, *sets)
