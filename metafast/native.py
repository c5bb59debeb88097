"""The only Python file that knows addresses, workspaces and threads: tensors in, tensors out.

Everything that reaches this file has been checked; nothing here is differentiable. :mod:`metafast.ops` puts autograd
around it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast import _native, device
from metafast.batch import Batch, Rates
from metafast.program import Program

build_info = _native.build_info

MEMORY = {"auto": 0, "keep": 1, "recompute": 2}

#: A workspace larger than this is given back after the call instead of being kept for the next one.
KEEP_WORKSPACE_BYTES = 1 << 30

_thread = threading.local()
_handles: dict[int, Handle] = {}


class Handle:
    """A native Program, and what a call needs to know of ``program`` without computing it anew."""

    __slots__ = ("adapted", "device", "learnt", "learnt_like", "native", "ndims", "output", "program", "shapes")

    def __init__(self, program: Program, native: Any) -> None:
        key = id(program)
        self.program = weakref.ref(program, lambda _: _handles.pop(key, None))
        self.native = native
        self.device: dict[Any, device.Handle] = {}
        self.shapes = [p.shape for p in program.parameters]
        self.ndims = [len(shape) for shape in self.shapes]
        self.adapted, self.learnt = program.adapted, program.learnt
        self.output = program.values[program.output]
        # Shapes to cut a flat gradient into; they hold no memory.
        self.learnt_like = [torch.empty(self.shapes[i], device="meta") for i in self.learnt]


def handle(program: Program) -> Handle:
    """Made at first use and kept as long as ``program``. Keyed by identity: hashing a Program takes longer than a small
    meta-step."""
    found = _handles.get(id(program))
    if found is not None and found.program() is program:
        return found
    made = _handles[id(program)] = Handle(program, device.describe(_native, program))
    return made


class DataGradients(NamedTuple):
    """Gradients of a batch's tensors; None where unwanted."""

    x: Tensor | None = None
    y: Tensor | None = None
    w: Tensor | None = None


@dataclass(slots=True)
class Wanted:
    """Which gradients a sweep computes besides those of the learnt parameters."""

    table: bool = False
    elementwise: bool = False
    support: tuple[bool, bool, bool] = (False, False, False)
    query: tuple[bool, bool, bool] = (False, False, False)


@dataclass(slots=True)
class Cotangents:
    """Of the outputs; None where nothing came from outside."""

    loss: float = 0.0  # of every task's loss, unless task_loss says otherwise
    task_loss: Tensor | None = None  # [T]
    logits: Tensor | None = None
    adapted: Sequence[Tensor | None] | None = None


@dataclass(slots=True)
class Gradients:
    parameters: Sequence[Tensor]  # in the order of Program.learnt; [T, *shape] where the parameter was per task
    table: Tensor | None = None
    elementwise: list[Tensor] = field(default_factory=list)
    support: DataGradients = DataGradients()
    query: DataGradients = DataGradients()


@dataclass(slots=True)
class Result:
    loss: Tensor | None = None
    task_loss: Tensor | None = None
    logits: Tensor | None = None
    support_loss: Tensor | None = None
    adapted: list[Tensor] | None = None
    gradients: Gradients | None = None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _contiguous(batch: Batch) -> Batch:
    x, y, w = batch
    if y is not None:
        if not (y.is_floating_point() or y.dtype == torch.int64):
            y = y.long()
        y = y.contiguous()
    return Batch(x.contiguous(), y, None if w is None else w.contiguous())


def _zeros(batch: Batch, wanted: tuple[bool, bool, bool]) -> DataGradients:
    if not any(wanted):
        return DataGradients()
    tensors = (torch.zeros_like(t) if t is not None and want else None for t, want in zip(batch, wanted, strict=True))
    return DataGradients(*tensors)


def _set(batch: Batch, gradients: DataGradients, stepwise: bool) -> tuple[Any, ...]:
    x, y, w = batch
    dx, dy, dw = gradients
    return (
        x.data_ptr(),
        _address(y),
        _address(w),
        _address(dx),
        _address(dy),
        _address(dw),
        x.shape[2 if stepwise else 1],
        y is not None and not y.is_floating_point(),
        stepwise,
    )


def run(
    program: Program,
    parameters: Sequence[Tensor],
    rates: Rates | None,
    support: Batch | None,
    query: Batch | None,
    *,
    steps: int,
    first_order: bool = False,
    memory: str = "auto",
    stepwise: bool = False,
    want_adapted: bool = False,
    sweep: Wanted | None = None,
    cotangents: Cotangents | None = None,
    gradients_per_task: bool = False,
    vectors: Sequence[Tensor] | None = None,
) -> Result:
    """Unroll, query and, if ``sweep`` is given, the reverse sweep; or with ``vectors`` Hessian-vector products on the
    support set. Arguments are those of :func:`metafast.ops.unroll`."""
    known = handle(program)
    first = support if support is not None else query
    assert first is not None
    x = first.x
    tasks, dtype = x.shape[0], x.dtype
    keep_alive: list[Tensor] = []  # contiguous copies, until the call is over

    def located(tensor: Tensor, shared_ndim: int) -> tuple[int, int]:
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            keep_alive.append(tensor)
        return tensor.data_ptr(), tensor.numel() // tasks if tensor.dim() > shared_ndim else 0

    result = Result()
    support_gradients = query_gradients = DataGradients()
    support_set = query_set = None
    wanted = sweep if sweep is not None else Wanted()
    if support is not None:
        support = _contiguous(support)
        support_gradients = _zeros(support, wanted.support)
        support_set = _set(support, support_gradients, stepwise)
        if steps and vectors is None:
            result.support_loss = x.new_empty((tasks, steps))
    if result.support_loss is None:
        result.support_loss = x.new_empty((tasks, 0))
    if query is not None:
        query = _contiguous(query)
        query_gradients = _zeros(query, wanted.query)
        query_set = _set(query, query_gradients, False)
        result.logits = x.new_empty((tasks, query.x.shape[1], *known.output))
        if query.y is not None:
            result.task_loss = x.new_empty((tasks,))
            result.loss = x.new_empty(())

    located_parameters = [located(t, n) for t, n in zip(parameters, known.ndims, strict=True)]
    if want_adapted:
        result.adapted = [x.new_empty((tasks, *known.shapes[i])) for i in known.adapted]

    table_address = 0
    elementwise: list[tuple[int, int]] = []
    elementwise_addresses: list[int] = []
    if rates is not None and steps:
        table_address = located(rates.table, 2)[0]
        if rates.elementwise:
            elementwise = [(0, 0)] * len(known.adapted)
            for a, rate in rates.elementwise:
                per_step = rate.ndim > known.ndims[known.adapted[a]]
                elementwise[a] = (located(rate, 0)[0], rate.numel() // steps if per_step else 0)

    gradients: list[tuple[int, bool]] = []
    table_gradient = None
    if sweep is not None or vectors is not None:
        per_task = [gradients_per_task or located_parameters[i][1] != 0 for i in known.learnt]
        if not any(per_task):  # the common case, with one allocation
            flat = x.new_empty(sum([like.numel() for like in known.learnt_like]))
            made = torch._C._nn.unflatten_dense_tensors(flat, known.learnt_like)
        else:
            made = [
                x.new_empty((tasks, *known.shapes[i]) if own else known.shapes[i])
                for i, own in zip(known.learnt, per_task, strict=True)
            ]
        gradients = [(t.data_ptr(), own) for t, own in zip(made, per_task, strict=True)]
        result.gradients = Gradients(made, support=support_gradients, query=query_gradients)
        if rates is not None and steps:
            if wanted.table:
                result.gradients.table = table_gradient = x.new_empty(rates.table.shape)
            if wanted.elementwise and rates.elementwise:
                elementwise_addresses = [0] * len(known.adapted)
                for a, rate in rates.elementwise:
                    made_rate = x.new_empty(rate.shape)
                    result.gradients.elementwise.append(made_rate)
                    elementwise_addresses[a] = made_rate.data_ptr()

    given = cotangents if cotangents is not None else Cotangents()
    seeds = [None if t is None else t.contiguous() for t in (given.task_loss, given.logits)]
    adapted_seeds = [None if t is None else t.contiguous() for t in given.adapted or ()]

    workspace = getattr(_thread, "workspace", None)
    arguments = (
        known.native,
        dtype == torch.float64,
        tasks,
        steps,
        torch.get_num_threads(),
        first_order,
        sweep is not None or vectors is not None,
        MEMORY[memory],
        vectors is not None,
        support_set,
        query_set,
        located_parameters,
        [located(v, v.ndim - 1) for v in vectors] if vectors is not None else [],
        table_address,
        elementwise,
        _address(table_gradient),
        elementwise_addresses,
        given.loss,
        _address(seeds[0]),
        _address(seeds[1]),
        [_address(t) for t in adapted_seeds],
        _address(result.support_loss) if steps else 0,
        _address(result.task_loss),
        _address(result.loss),
        _address(result.logits),
        [t.data_ptr() for t in result.adapted or ()],
        gradients,
    )
    if device.takes(x):
        device.call(known, program, x, arguments[1:])
        return result
    needed = _native.call(*arguments, _address(workspace), 0 if workspace is None else workspace.numel())
    if needed:
        _thread.workspace = workspace = None  # free the small one first
        workspace = torch.empty(needed, dtype=torch.uint8)
        _native.call(*arguments, workspace.data_ptr(), needed)
        if needed <= KEEP_WORKSPACE_BYTES:
            _thread.workspace = workspace
    return result
