"""Calls on a CUDA device: memory from torch's allocator, torch's current stream, chunks of tasks if memory is short.

Tests run the same code on the CPU (:func:`emulated`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast import _native
from metafast.model.program import Program

STYLES = {"auto": 0, "persistent": 1, "batched": 2}

#: The module that stands in for a device, while tests ask for it.
_emulation: Any = None
_style = "auto"
_emulated_tf32 = False


class Target(NamedTuple):
    """Where and how a call runs."""

    style: int
    ordinal: int
    chunk: int  # tasks at a time; 0: all
    linear_tf32: bool
    conv_tf32: bool
    stream: int


def describe(module: Any, program: Program) -> Any:
    """The Program as compiled code takes it."""
    loss = program.loss
    return module.Program(
        [list(shape) for shape in program.values],
        [(list(p.shape) or [1], p.role) for p in program.parameters],
        [
            (n.op, list(n.inputs), n.output, list(n.parameters), dict(n.attributes), list(n.table), list(n.factors))
            for n in program.nodes
        ],
        loss.kind if loss is not None else "",
        dict(loss.attributes) if loss is not None else {},
        loss.reduction if loss is not None else "weighted_mean",
        loss is not None and loss.elements == "sum",
        list(loss.class_weights) if loss is not None else [],
    )


@contextlib.contextmanager
def emulated(style: str = "auto", tf32: bool = False) -> Iterator[None]:
    """Run native calls by the CUDA code, on the CPU: for tests, of small sizes.

    ``tf32``: heed torch's flags of TF32, as on a GPU; else there is none.
    """
    global _emulation, _style, _emulated_tf32
    from metafast import _emulated  # type: ignore[attr-defined]

    before = _emulation, _style, _emulated_tf32
    _emulation, _style, _emulated_tf32 = _emulated, style, tf32
    try:
        yield
    finally:
        _emulation, _style, _emulated_tf32 = before


def takes(x: Tensor) -> bool:
    """Whether a call with these inputs runs here."""
    return x.is_cuda or _emulation is not None


def obstacle(program: Program) -> str:
    """Why the device cannot run ``program``, or ""."""
    return str(module().device_obstacle(describe(module(), program)))


def style() -> int:
    name = os.environ.get("METAFAST_CUDA_STYLE", _style)
    if name not in STYLES:
        raise ValueError(f"METAFAST_CUDA_STYLE={name} is not one of {', '.join(STYLES)}")
    return STYLES[name]


def module() -> Any:
    """The compiled code that runs calls on a device."""
    return _emulation or _native


def tf32() -> tuple[bool, bool]:
    """Whether torch's flags allow TF32 in products of matrices, and in convolutions."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    if hasattr(cuda.matmul, "fp32_precision"):  # since torch 2.9, where the old names raise if the new ones were set
        return cuda.matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"
    return cuda.matmul.allow_tf32, cudnn.allow_tf32


def target(x: Tensor) -> Target:
    """That of the current stream, of torch's flags, and of METAFAST_CUDA_STYLE and METAFAST_CUDA_TASKS."""
    chunk = int(os.environ.get("METAFAST_CUDA_TASKS", "0"))
    if _emulation is not None:
        return Target(style(), 0, chunk, *(tf32() if _emulated_tf32 else (False, False)), 0)
    index = x.device.index if x.device.index is not None else torch.cuda.current_device()
    allowed = tf32() if torch.cuda.get_device_capability(index) >= (8, 0) else (False, False)
    return Target(style(), index, chunk, *allowed, torch.cuda.current_stream(index).cuda_stream)


def guard(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Makes the device of ``x`` the current one."""
    return contextlib.nullcontext() if _emulation is not None else torch.cuda.device(x.device)


def allocate(count: int, x: Tensor) -> Tensor:
    if _emulation is not None:  # NaN, so that a kernel that reads what none has written is found out
        return torch.full((count,), 255, dtype=torch.uint8)
    return torch.empty(count, dtype=torch.uint8, device=x.device)


def workspace(count: int, x: Tensor, on: Target, tasks: int) -> tuple[Tensor | None, Target]:
    """``count`` bytes; or, where the device does not have them, nothing, and a target that does fewer tasks at a time.

    Raises:
        torch.OutOfMemoryError: even one task is too much.
    """
    try:
        return allocate(count, x), on
    except torch.OutOfMemoryError as error:
        at_once = min(on.chunk or tasks, tasks)
        if at_once == 1:
            raise torch.OutOfMemoryError(
                f"metafast: one task needs {count / 2**20:.1f} MiB of workspace, which the device does not have; "
                "use fewer steps, examples or memory='recompute'"
            ) from error
        return None, on._replace(chunk=(at_once + 1) // 2)
