"""Which engine, or composition of engines, runs a model that has been described."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from metafast.engine import reference, static
from metafast.engine.static import Composed
from metafast.model import lowering
from metafast.model.builder import Builder
from metafast.model.cut import split
from metafast.model.program import Program
from metafast.model.tracing import trace
from metafast.tracking.reads import Reads, Undone

Adapted = Callable[[str], bool]


def native(program: Program, x: Tensor, unrolls: bool) -> Any:
    """The native engine for ``program`` on the device of x; cut where it ``unrolls`` an inner loop that does not move
    all of it. Raises Unsupported."""
    ops = _ops()
    _check_device(x, program)
    parts = split(program) if unrolls else None
    if parts is None:
        return ops
    try:
        _check_device(x, parts.prefix)
        _check_device(x, parts.rest)
    except lowering.Unsupported:
        return ops
    return static.composed(ops, parts)


def composed(
    model: nn.Module, whole: reference.Model, adapted: Adapted, x: Tensor, dtype: torch.dtype, on_torch: bool
) -> tuple[Composed, Reads] | None:
    """What runs the static prefix of ``whole`` once, and what that depends on; None where there is no such prefix.

    The rest is native where it can be, unless ``on_torch``. ``x`` holds one task's examples. The model is left as it
    was.
    """
    if whole.reading or whole.differentiates:
        return None
    reads = Reads(model)
    try:
        graph = trace(model, lambda: _builder(model, x, dtype), reads, whole.inputs).graph
    except lowering.Unsupported:
        return None
    with Undone(model):
        observed = static.observe(model, whole, graph, x, adapted)
    if observed is None:
        return None
    made = None if on_torch else _before_native(model, whole, observed, adapted, x, dtype)
    made = made or static.cut(model, whole, observed, adapted, dtype)
    return None if made is None else (made, reads)


def _builder(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Builder | None:
    try:
        return Builder(model, tuple(x.shape[1:]), lambda name: True, dtype, x.dtype)
    except lowering.Unsupported:
        return None


def _before_native(
    model: nn.Module,
    whole: reference.Model,
    observed: static.Observed,
    adapted: Adapted,
    x: Tensor,
    dtype: torch.dtype,
) -> Composed | None:
    try:
        check_kind(x.device)
        made = static.cut(model, whole, observed, adapted, dtype, _ops())
        if made is not None:
            _check_device(x, made.rest.program)
    except lowering.Unsupported:
        return None
    return made


def check_kind(device: torch.device) -> None:
    """Raise Unsupported for a kind of device that the native engine does not know."""
    if device.type not in ("cpu", "cuda"):
        raise lowering.Unsupported("", f"it is on {device}; the native engine runs on CPUs and CUDA devices")


def _ops() -> ModuleType:
    """The native engine; raises Unsupported where it is not installed."""
    try:
        from metafast.engine import ops
    except ImportError as error:
        raise lowering.Unsupported("metafast", f"was installed without its native engine ({error})") from error
    return ops


def _check_device(x: Tensor, program: Program) -> None:
    from metafast.engine import device as devices

    if devices.takes(x) and (why := devices.obstacle(program)):
        raise lowering.Unsupported("", f"it is on {x.device}, but {why}")
