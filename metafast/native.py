"""The only Python file that knows addresses, workspaces and threads: tensors in, tensors out.

Everything that reaches this file has been checked; nothing here is differentiable. :mod:`metafast.ops` puts autograd
around it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast import _native, device, transforms
from metafast.batch import Batch, Rates
from metafast.facts import facts
from metafast.program import Program

build_info = _native.build_info

MEMORY = {"auto": 0, "keep": 1, "recompute": 2}

CHOICE = {"auto": 0, "never": 1, "always": 2}

PACKING = {"auto": 0, "never": 1, "whole": 2, "small": 3, "mixed": 4}

#: Whether small tasks run several at a time, one in each lane of a SIMD register, and how; not "auto" only in tests.
packing = "auto"

#: Whether threads that have no task help others with theirs; not "auto" only in tests.
sharing = "auto"

#: A workspace larger than this is given back after the call instead of being kept for the next one.
KEEP_WORKSPACE_BYTES = 1 << 30

#: Sessions kept per Program.
KEEP_SESSIONS = 64

_thread = threading.local()
_handles: dict[int, Handle] = {}


class Handle:
    """A native Program, the sessions prepared for it, and what a call needs to know of ``program`` without computing it
    anew."""

    __slots__ = ("adapted", "learnt", "native", "ndims", "output", "program", "sessions", "shapes", "unused")

    def __init__(self, program: Program) -> None:
        key = id(program)
        self.program = weakref.ref(program, lambda _: _handles.pop(key, None))
        self.native = {_native: device.describe(_native, program)}  # by module
        self.shapes = [p.shape for p in program.parameters]
        self.ndims = [len(shape) for shape in self.shapes]
        self.adapted, self.learnt = program.adapted, program.learnt
        self.unused = frozenset(self.learnt).difference(*(step.parameters for step in program.steps))
        self.output = program.values[program.output]
        self.sessions: dict[Hashable, Prepared] = {}


def handle(program: Program) -> Handle:
    """Made at first use and kept as long as ``program``. Keyed by identity: hashing a Program takes longer than a small
    meta-step."""
    found = _handles.get(id(program))
    if found is not None and found.program() is program:
        return found
    made = _handles[id(program)] = Handle(program)
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


NOTHING = Cotangents()


@dataclass(slots=True)
class Gradients:
    parameters: Sequence[Tensor]  # in the order of Program.learnt; [T, *shape] where the parameter was per task
    table: Tensor | None = None
    elementwise: list[Tensor] = field(default_factory=list)
    support: DataGradients = DataGradients()
    query: DataGradients = DataGradients()


class Workspace:
    """Memory for one call at a time; a thread keeps its latest, if that is not too large."""

    __slots__ = ("address", "bytes", "memory")

    def __init__(self, size: int) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8)
        self.address, self.bytes = self.memory.data_ptr(), size

    @staticmethod
    def of_thread(size: int) -> Workspace:
        kept: Workspace | None = getattr(_thread, "workspace", None)
        if kept is not None and kept.bytes >= size:
            return kept
        _thread.workspace = kept = None  # free the small one first
        made = Workspace(size)
        if size <= KEEP_WORKSPACE_BYTES:
            _thread.workspace = made
        return made


class Call(NamedTuple):
    """What a call came to: the session that serves it, and the tensors it reads, in the session's order."""

    prepared: Prepared
    inputs: list[Tensor | None]

    def run(self) -> list[Any]:
        """What the session writes, on the CPU."""
        workspace = Workspace.of_thread(self.prepared.bytes)
        written: list[Any] = self.prepared.session.run(self.inputs, workspace.address)
        return written


@dataclass(slots=True)
class Result:
    call: Call
    loss: Tensor | None = None
    task_loss: Tensor | None = None
    logits: Tensor | None = None
    support_loss: Tensor | None = None
    adapted: list[Tensor] | None = None
    gradients: Gradients | None = None


class Prepared:
    """One kind of call: what it writes, and the native session, which allocates that and writes it."""

    __slots__ = ("adapted", "bytes", "constants", "gradients", "rates", "session", "tasks")

    def __init__(
        self,
        known: Handle,
        program: Program,
        on: device.Target | None,
        inputs: Sequence[Tensor | None],
        own: Sequence[bool],
        rates: Rates | None,
        support: Batch | None,
        query: Batch | None,
        steps: int,
        first_order: bool,
        memory: str,
        stepwise: bool,
        want_adapted: bool,
        sweep: Wanted | None,
        cotangents: Cotangents,
        gradients_per_task: bool,
        vectors: bool,
    ) -> None:
        first = support if support is not None else query
        assert first is not None
        self.tasks = tasks = first.x.shape[0]
        one = torch.empty((), dtype=first.x.dtype, device=first.x.device)

        def like(*shape: int) -> Tensor:
            """The shape of a tensor without its memory; of one element with it, or strides would be zero in copies."""
            return one.expand(shape) if math.prod(shape) != 1 else one.reshape(shape)

        def set_counts(batch: Batch | None, stepwise: bool) -> tuple[int, bool, bool] | None:
            if batch is None:
                return None
            y = batch.y
            return batch.x.shape[2 if stepwise else 1], y is not None and not y.is_floating_point(), stepwise

        def data(batch: Batch | None, wanted: Sequence[bool]) -> list[Tensor | None]:
            pairs = zip(batch or (), wanted, strict=False)
            return [like(*t.shape) if t is not None and want else None for t, want in pairs]

        wanted = sweep if sweep is not None else Wanted()
        sweeps = sweep is not None or vectors
        has_loss = query is not None and query.y is not None
        adapted = [like(tasks, *known.shapes[i]) for i in known.adapted] if want_adapted else []
        per_task = [gradients_per_task or own[i] for i in known.learnt] if sweeps else []
        gradients = [
            like(tasks, *known.shapes[i]) if each else like(*known.shapes[i])
            for i, each in zip(known.learnt, per_task, strict=sweeps)
        ]
        elementwise = dict(rates.elementwise) if rates is not None else {}
        # In the order of the parameters that move, None for those with a rate of the table; nothing if that is all.
        rate_of = [elementwise.get(a) for a in range(len(known.adapted))] if elementwise else []
        rate_gradients = [None if t is None else like(*t.shape) for t in rate_of] if wanted.elementwise else []
        outputs = [
            like(tasks, steps) if support is not None and steps and not vectors else None,
            like(tasks) if has_loss else None,
            like() if has_loss else None,
            None if query is None else like(tasks, query.x.shape[1], *known.output),
            *adapted,
            *gradients,
            *([] if rates is None else [like(*rates.table.shape) if wanted.table else None]),
            *rate_gradients,
            *data(support, wanted.support),
            *data(query, wanted.query),
        ]
        module = _native if on is None else device.module()
        if module not in known.native:
            known.native[module] = device.describe(module, program)
        self.session = module.Session(
            known.native[module],
            is_double=first.x.dtype == torch.float64,
            tasks=tasks,
            steps=steps,
            threads=torch.get_num_threads(),
            estimator=("hessian_vector" if vectors else "first_order" if first_order else "exact", 0),
            rule=[] if rates is None else [("descent", 0)],
            sweep=sweeps,
            memory=(MEMORY[memory], 0),
            packing=PACKING[packing],
            sharing=CHOICE[sharing],
            loss_cotangent=cotangents.loss,
            support=set_counts(support, stepwise),
            query=set_counts(query, False),
            parameters=own,
            vectors=len(known.learnt) if vectors else 0,
            hypers=[]
            if rates is None
            else [
                (
                    [t is not None and t.dim() > known.ndims[i] for i, t in zip(known.adapted, rate_of, strict=False)],
                    len(rate_gradients),
                )
            ],
            adapted_cotangent=len(cotangents.adapted or ()),
            adapted=len(adapted),
            gradients=per_task,
            inputs=[t is not None for t in inputs],
            outputs=outputs,
            empty_like=torch.empty_like,
            zeros_like=torch.zeros_like,
            device=None if on is None else on[:5],
        )
        self.bytes = self.session.bytes
        self.constants: Tensor | None = None
        if on is not None:
            self.constants = device.allocate(self.session.constants_bytes, first.x)
            self.session.upload(self.constants.data_ptr(), on.stream)
        # Where the outputs of each sort end.
        self.adapted = 4 + len(adapted)
        self.gradients = self.adapted + len(gradients)
        self.rates = self.gradients + (rates is not None) + len(rate_gradients)


def _int64(batch: Batch) -> Batch:
    x, y, w = batch
    return batch if y is None or y.dtype == torch.int64 or y.is_floating_point() else Batch(x, y.long(), w)


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
    cotangents: Cotangents = NOTHING,
    gradients_per_task: bool = False,
    vectors: Sequence[Tensor] | None = None,
) -> Result:
    """Unroll, query and, if ``sweep`` is given, the reverse sweep; or with ``vectors`` Hessian-vector products on the
    support set. Arguments are those of :func:`metafast.ops.unroll`."""
    transforms.refuse_natively()
    known = handle(program)
    first = support if support is not None else query
    assert first is not None
    if not steps:
        rates = None
    inputs: list[Tensor | None] = [*parameters]  # in the order of Session's tensors
    if vectors is not None:
        inputs += vectors
    elementwise: Sequence[tuple[int, Tensor]] = ()
    if rates is not None:
        inputs.append(rates.table)
        elementwise = rates.elementwise
        if elementwise:
            by_parameter = dict(elementwise)
            inputs += [by_parameter.get(a) for a in range(len(known.adapted))]
    data: list[Tensor | None] = []
    if support is not None:
        data += _int64(support)
    if query is not None:
        data += _int64(query)
    inputs += data
    seeds = (cotangents.task_loss, cotangents.logits, *(cotangents.adapted or ()))
    inputs += seeds

    own = tuple([t.dim() != n for t, n in zip(parameters, known.ndims, strict=True)])
    key = (
        threading.get_ident(),  # one thread at a time runs a session
        torch.get_num_threads(),
        steps,
        first_order,
        memory,
        packing,
        sharing,
        stepwise,
        want_adapted,
        gradients_per_task,
        vectors is None,
        support is None,
        own,
        tuple([(a, rate.shape) for a, rate in elementwise]) if elementwise else (),
        facts(tuple(data)),
        cotangents.loss,
        tuple([t is None for t in seeds]),
        sweep and (sweep.table, sweep.elementwise, sweep.support, sweep.query),
    )

    def prepared(on: device.Target | None) -> Prepared:
        found = known.sessions.get((key, on))
        if found is None:
            if len(known.sessions) >= KEEP_SESSIONS:
                known.sessions.clear()
            found = known.sessions[key, on] = Prepared(
                known,
                program,
                on,
                inputs,
                own,
                rates,
                support,
                query,
                steps,
                first_order,
                memory,
                stepwise,
                want_adapted,
                sweep,
                cotangents,
                gradients_per_task,
                vectors is not None,
            )
        return found

    if device.takes(first.x):
        with device.guard(first.x):
            p, out = _on_device(prepared, inputs, first.x)
    else:
        p = prepared(None)
        out = Call(p, inputs).run()

    support_loss, task_loss, loss, logits = out[:4]
    if support_loss is None:
        support_loss = first.x.new_empty((p.tasks, 0))
    result = Result(
        Call(p, inputs), loss, task_loss, logits, support_loss, out[4 : p.adapted] if want_adapted else None
    )
    if sweep is not None or vectors is not None:
        result.gradients = made = Gradients(out[p.adapted : p.gradients], None if rates is None else out[p.gradients])
        if len(out) > p.gradients:
            made.elementwise = [t for t in out[p.gradients + 1 : p.rates] if t is not None] if rates is not None else []
            sets = out[p.rates :]
            if support is not None:
                made.support = DataGradients(*sets[:3])
            if query is not None:
                made.query = DataGradients(*sets[-3:])
    return result


def _on_device(
    prepared: Callable[[device.Target], Prepared], inputs: list[Tensor | None], x: Tensor
) -> tuple[Prepared, list[Any]]:
    """The call on the device of ``x``, in chunks of tasks where memory is short."""
    on = device.target(x)
    while True:
        p = prepared(on)
        workspace, on = device.workspace(p.bytes, x, on, p.tasks)
        if workspace is not None:
            return p, p.session.run(inputs, workspace.data_ptr(), on.stream)
