"""Calls on a CUDA device: memory from torch's allocator, torch's current stream, chunks of tasks if memory is short.

Tests run the same code on the CPU (:func:`emulated`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metafast import _native
from metafast.program import Program

STYLES = {"auto": 0, "persistent": 1, "batched": 2}

#: The module that stands in for a device, while tests ask for it.
_emulation: Any = None
_style = "auto"


class Handle:
    """A Program as a device's module knows it, and the constants it has uploaded."""

    __slots__ = ("constants", "native")

    def __init__(self, module: Any, program: Program) -> None:
        self.native = describe(module, program)
        self.constants: list[Tensor] = []


def describe(module: Any, program: Program) -> Any:
    """The Program as compiled code takes it."""
    loss = program.loss
    return module.Program(
        [list(shape) for shape in program.values],
        [(list(p.shape) or [1], p.role) for p in program.parameters],
        [(s.op, list(s.inputs), s.output, list(s.parameters), dict(s.attributes)) for s in program.steps],
        loss.kind if loss is not None else "",
        dict(loss.attributes) if loss is not None else {},
    )


@contextlib.contextmanager
def emulated(style: str = "auto") -> Iterator[None]:
    """Run native calls by the CUDA code, on the CPU: for tests, of small sizes."""
    global _emulation, _style
    from metafast import _emulated  # type: ignore[attr-defined]

    before = _emulation, _style
    _emulation, _style = _emulated, style
    try:
        yield
    finally:
        _emulation, _style = before


def takes(x: Tensor) -> bool:
    """Whether a call with these inputs runs here."""
    return x.is_cuda or _emulation is not None


def obstacle(program: Program) -> str:
    """Why the device cannot run ``program``, or ""."""
    module = _emulation or _native
    return str(module.device_obstacle(describe(module, program)))


def style() -> int:
    name = os.environ.get("METAFAST_CUDA_STYLE", _style)
    if name not in STYLES:
        raise ValueError(f"METAFAST_CUDA_STYLE={name} is not one of {', '.join(STYLES)}")
    return STYLES[name]


def allocate(count: int, x: Tensor) -> Tensor:
    if _emulation is not None:  # NaN, so that a kernel that reads what none has written is found out
        return torch.full((count,), 255, dtype=torch.uint8)
    return torch.empty(count, dtype=torch.uint8, device=x.device)


def call(known: Any, program: Program, x: Tensor, arguments: tuple[Any, ...]) -> None:
    """The call that :func:`metafast.native.run` has prepared, on the device of ``x``. ``known`` is its handle."""
    if _emulation is not None:
        return _call(known, _emulation, program, x, arguments, 0, 0)
    with torch.cuda.device(x.device):
        index = x.device.index if x.device.index is not None else torch.cuda.current_device()
        stream = torch.cuda.current_stream(index).cuda_stream
        return _call(known, _native, program, x, arguments, index, stream)


def _call(
    known: Any, module: Any, program: Program, x: Tensor, arguments: tuple[Any, ...], index: int, stream: int
) -> None:
    handle = known.device.get(module)
    if handle is None:
        handle = known.device[module] = Handle(module, program)
    tasks = arguments[1]
    chunk = int(os.environ.get("METAFAST_CUDA_TASKS", "0"))

    def attempt(constants: Tensor | None, workspace: Tensor | None) -> tuple[int, int]:
        held = (0, 0) if constants is None else (constants.data_ptr(), constants.numel())
        room = (0, 0) if workspace is None else (workspace.data_ptr(), workspace.numel())
        needs: tuple[int, int] = module.call(handle.native, *arguments, *room, (style(), index, stream, chunk, *held))
        return needs

    workspace = None
    needed, constant = attempt(None, None)
    if constant:
        handle.constants.append(allocate(constant, x))
        needed, _ = attempt(handle.constants[-1], None)
    while needed:
        try:
            workspace = allocate(needed, x)
        except torch.OutOfMemoryError as error:
            at_once = min(chunk or tasks, tasks)
            if at_once == 1:
                raise torch.OutOfMemoryError(
                    f"metafast: one task needs {needed / 2**20:.1f} MiB of workspace, which the device does not have; "
                    "use fewer steps, examples or memory='recompute'"
                ) from error
            chunk = (at_once + 1) // 2
            needed, constant = attempt(None, None)
            if constant:
                handle.constants.append(allocate(constant, x))
                needed, _ = attempt(handle.constants[-1], None)
            continue
        needed, _ = attempt(None, workspace)
