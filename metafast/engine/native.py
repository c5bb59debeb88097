"""The only Python file that knows addresses, workspaces and threads: tensors in, tensors out.

Everything that reaches this file has been checked; nothing here is differentiable. :mod:`metafast.engine.ops` puts
autograd around it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast import _native, transforms
from metafast.call import Batch, Call, Hyper, InnerLoop
from metafast.engine import device, signature
from metafast.engine.signature import Slot
from metafast.estimators import Checkpoint, Exact
from metafast.estimators.estimator import HESSIAN_VECTOR
from metafast.model.program import Program
from metafast.tracking.metadata import metadata

build_info = _native.build_info

MEMORY = {"auto": (0, 0), "keep": (1, 0), "recompute": (2, 0)}
CHECKPOINT = 3

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

    __slots__ = ("adapted", "learnt", "native", "ndims", "output", "program", "random", "sessions", "shapes", "unused")

    def __init__(self, program: Program) -> None:
        key = id(program)
        self.program = weakref.ref(program, lambda _: _handles.pop(key, None))
        self.native = {_native: device.describe(_native, program)}  # by module
        self.shapes = [p.shape for p in program.parameters]
        self.ndims = [len(shape) for shape in self.shapes]
        self.adapted, self.learnt = program.adapted, program.learnt
        self.random = program.random
        self.unused = program.unused
        self.output = program.output_shape
        self.sessions: dict[Hashable, Prepared] = {}


def handle(program: Program) -> Handle:
    """Made at first use and kept as long as ``program``. Keyed by identity: hashing a Program takes longer than a small
    meta-step."""
    found = _handles.get(id(program))
    if found is not None and found.program() is program:
        return found
    made = _handles[id(program)] = Handle(program)
    return made


@dataclass(slots=True)
class Cotangents:
    """Of the outputs; None where nothing came from outside."""

    loss: float = 0.0  # of every task's loss, unless task_loss says otherwise
    task_loss: Tensor | None = None  # [T]
    logits: Tensor | None = None
    adapted: Sequence[Tensor | None] | None = None


NOTHING = Cotangents()


def draw_seed(program: Program) -> Tensor | None:
    """One number from torch's own generator on the CPU, by which all random nodes of a call draw; None without such
    nodes, which leaves the generator as it is."""
    return torch.empty((), dtype=torch.int64).random_() if handle(program).random else None


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


class Run(NamedTuple):
    """What a call came to: the session that serves it, and the tensors it reads."""

    prepared: Prepared
    inputs: dict[Slot, Tensor]


@dataclass(slots=True)
class Result:
    run: Run
    loss: Tensor | None = None
    task_loss: Tensor | None = None
    logits: Tensor | None = None
    support_loss: Tensor | None = None
    adapted: list[Tensor] | None = None
    gradients: Call | None = None  # of the parameters in the order of Program.learnt, [T, *shape] where it was per task


#: A call's sweep wants gradients of the learnt parameters, and of whatever this says.
Wanted = Call
PARAMETERS_ONLY = Call((), (), None, None)


class Kind(NamedTuple):
    """What a call asks for, beside its tensors."""

    loop: InnerLoop | None
    own: tuple[bool, ...]  # of each parameter, whether every task has its own
    want_adapted: bool
    sweep: Wanted | None  # the gradients that are wanted besides those of the learnt parameters
    cotangents: Cotangents
    gradients_per_task: bool
    vectors: bool  # Hessian-vector products instead of a meta-gradient

    @property
    def sweeps(self) -> bool:
        return self.sweep is not None or self.vectors


def _key(call: Call, kind: Kind, data: Hashable) -> tuple[Any, ...]:
    """Calls with the same key are run by one session."""
    loop, sweep, cotangents = kind.loop, kind.sweep, kind.cotangents
    given = (cotangents.task_loss, cotangents.logits, *(cotangents.adapted or ()))
    return (
        threading.get_ident(),  # one thread at a time runs a session
        torch.get_num_threads(),
        None if loop is None else loop.key,
        packing,
        sharing,
        kind.want_adapted,
        kind.gradients_per_task,
        kind.vectors,
        call.support is None,
        kind.own,
        tuple([tuple([(a, t.shape) for a, t in hyper.elementwise]) for hyper in call.hypers]),
        data,
        cotangents.loss,
        tuple([t is None for t in given]),
        None if sweep is None else (tuple(sweep.hypers), sweep.support, sweep.query),
    )


class Prepared:
    """One kind of call: what it writes, and the native session, which allocates that and writes it."""

    __slots__ = ("bytes", "constants", "inputs", "outputs", "session", "tasks")

    def __init__(
        self,
        known: Handle,
        program: Program,
        on: device.Target | None,
        inputs: Sequence[Slot],
        call: Call,
        kind: Kind,
    ) -> None:
        x, loop = call.first.x, kind.loop
        steps, stepwise = (loop.steps, loop.stepwise) if loop is not None else (0, False)
        self.tasks = x.shape[0]
        like = Like(x)
        per_task = [kind.gradients_per_task or kind.own[i] for i in known.learnt] if kind.sweeps else []
        gradients = _like_gradients(known, call, kind, per_task, like)
        adapted = [like(self.tasks, *known.shapes[i]) for i in known.adapted] if kind.want_adapted else []
        outputs = _like_losses(known, call, kind, like)
        outputs |= signature.each("adapted", adapted) | signature.named(gradients, "gradient.")
        module = _native if on is None else device.module()
        if module not in known.native:
            known.native[module] = device.describe(module, program)
        self.session = module.Session(
            known.native[module],
            is_double=x.dtype == torch.float64,
            tasks=self.tasks,
            steps=steps,
            threads=torch.get_num_threads(),
            estimator=HESSIAN_VECTOR if kind.vectors else (loop.estimator if loop is not None else Exact()).spec,
            rule=loop.rule.spec if loop is not None and call.hypers else [],
            sweep=kind.sweeps,
            memory=_memory(loop),
            packing=PACKING[packing],
            sharing=CHOICE[sharing],
            loss_cotangent=kind.cotangents.loss,
            support=_counts(call.support, stepwise),
            query=_counts(call.query, False),
            parameters=kind.own,
            hypers=[_per_step(hyper, known) for hyper in call.hypers],
            gradients=per_task,
            inputs=inputs,
            outputs=[*outputs.items()],
            empty_like=torch.empty_like,
            zeros_like=torch.zeros_like,
            device=None if on is None else on[:5],
        )
        self.bytes = self.session.bytes
        self.constants: Tensor | None = None
        if on is not None:
            self.constants = device.allocate(self.session.constants_bytes, x)
            self.session.upload(self.constants.data_ptr(), on.stream)
        #: The order of what it reads and of what it writes.
        self.inputs, self.outputs = inputs, tuple(outputs)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the session writes for these ``inputs``, on the CPU."""
        workspace = Workspace.of_thread(self.bytes)  # alive until the call is over: the thread may not keep it
        written: list[Tensor] = self.session.run(tensors, workspace.address)
        return written


def _counts(batch: Batch | None, stepwise: bool) -> tuple[int, bool, bool] | None:
    if batch is None:
        return None
    y = batch.y
    return batch.x.shape[2 if stepwise else 1], y is not None and not y.is_floating_point(), stepwise


def _memory(loop: InnerLoop | None) -> tuple[int, int]:
    """How the session chooses what it keeps, and the steps between checkpoints."""
    if loop is None:
        return MEMORY["auto"]
    return (CHECKPOINT, loop.memory.every or 0) if isinstance(loop.memory, Checkpoint) else MEMORY[loop.memory]


class Like:
    """Shapes of tensors, in dtype and on device of ``x``, without their memory."""

    def __init__(self, x: Tensor) -> None:
        self.one = torch.empty((), dtype=x.dtype, device=x.device)

    def __call__(self, *shape: int) -> Tensor:
        # One element has its memory, or strides would be zero in copies.
        return self.one.expand(shape) if math.prod(shape) != 1 else self.one.reshape(shape)


def _like_gradients(known: Handle, call: Call, kind: Kind, per_task: Sequence[bool], like: Like) -> Call:
    """Every gradient that is wanted, in the place of what it belongs to."""
    tasks, sweep = call.first.x.shape[0], kind.sweep
    parameters = [
        like(tasks, *known.shapes[i]) if each else like(*known.shapes[i])
        for i, each in zip(known.learnt, per_task, strict=kind.sweeps)
    ]
    pairs = zip(call.hypers, sweep.hypers if sweep else (), strict=False)
    hypers = [_like_hyper(hyper, wanted, like) for hyper, wanted in pairs]
    return Call(
        parameters,
        hypers or [Hyper(None) for _ in call.hypers],  # type: ignore[arg-type]
        _like_batch(call.support, sweep and sweep.support, like),
        _like_batch(call.query, sweep and sweep.query, like),
    )


def _like_losses(known: Handle, call: Call, kind: Kind, like: Like) -> dict[Slot, Tensor]:
    query, tasks = call.query, call.first.x.shape[0]
    steps = 0 if kind.loop is None else kind.loop.steps
    has_loss = query is not None and query.y is not None
    made = (
        like(tasks, steps) if call.support is not None and steps and not kind.vectors else None,
        like(tasks) if has_loss else None,
        like() if has_loss else None,
        None if query is None else like(tasks, query.x.shape[1], *known.output),
    )
    return {slot: tensor for slot, tensor in zip(signature.LOSSES, made, strict=True) if tensor is not None}


def _like_batch(batch: Batch | None, wanted: Batch | None, like: Callable[..., Tensor]) -> Batch | None:
    if batch is None:
        return None
    pairs = zip(batch, wanted or (False, False, False), strict=True)
    return Batch(*[like(*t.shape) if t is not None and want else None for t, want in pairs])  # type: ignore[arg-type]


def _like_hyper(hyper: Hyper, wanted: Hyper, like: Callable[..., Tensor]) -> Hyper:
    """Gradients of values per element are made for all parameters that have them, or for none."""
    table = like(*hyper.table.shape) if wanted.table else None
    each = [(a, like(*t.shape)) for a, t in hyper.elementwise] if any(w for _, w in wanted.elementwise) else []
    return Hyper(table, tuple(each))  # type: ignore[arg-type]


def _per_step(hyper: Hyper, known: Handle) -> list[bool]:
    """Whether values per element differ from step to step, for every adapted parameter; nothing if none has such
    values."""
    by_number = dict(hyper.elementwise)
    pairs = enumerate(known.adapted)
    return [a in by_number and by_number[a].dim() > known.ndims[i] for a, i in pairs] if by_number else []


def _int64(batch: Batch | None) -> Batch | None:
    if batch is None:
        return None
    x, y, w = batch
    return batch if y is None or y.dtype == torch.int64 or y.is_floating_point() else Batch(x, y.long(), w)


def _inputs(
    call: Call, vectors: Sequence[Tensor] | None, cotangents: Cotangents, seed: Tensor | None
) -> dict[Slot, Tensor]:
    """All that a call reads: its own leaves, then what else there is."""
    inputs = signature.named(call)
    if vectors is not None:
        inputs |= signature.each("vectors", vectors)
    if cotangents.task_loss is not None:
        inputs["cotangent.task_loss", 0, 0] = cotangents.task_loss
    if cotangents.logits is not None:
        inputs["cotangent.logits", 0, 0] = cotangents.logits
    inputs |= signature.each("cotangent.adapted", cotangents.adapted or ())
    if seed is not None:
        inputs[signature.SEED] = seed
    return inputs


def run(
    program: Program,
    call: Call,
    loop: InnerLoop | None = None,
    *,
    want_adapted: bool = False,
    sweep: Wanted | None = None,
    cotangents: Cotangents = NOTHING,
    gradients_per_task: bool = False,
    vectors: Sequence[Tensor] | None = None,
    seed: Tensor | None = None,
) -> Result:
    """Unroll, query and, if ``sweep`` is given, the reverse sweep; or with ``vectors`` Hessian-vector products on the
    support set. Without a ``loop`` there are no inner steps. ``sweep`` says which gradients are wanted besides those of
    the learnt parameters. ``seed`` is what random nodes draw by, where it is not to be another one."""
    transforms.refuse_natively()
    known = handle(program)
    call = call._replace(support=_int64(call.support), query=_int64(call.query))
    inputs = _inputs(call, vectors, cotangents, draw_seed(program) if seed is None else seed)
    own = tuple([t.dim() != n for t, n in zip(call.parameters, known.ndims, strict=True)])
    kind = Kind(loop, own, want_adapted, sweep, cotangents, gradients_per_task, vectors is not None)
    key = _key(call, kind, metadata((*(call.support or ()), *(call.query or ()))))

    def prepared(on: device.Target | None) -> Prepared:
        found = known.sessions.get((key, on))
        if found is None:
            if len(known.sessions) >= KEEP_SESSIONS:
                known.sessions.clear()
            found = known.sessions[key, on] = Prepared(known, program, on, tuple(inputs), call, kind)
        return found

    x, tensors = call.first.x, [*inputs.values()]
    if device.takes(x):
        with device.guard(x):
            p, written = _on_device(prepared, tensors, x)
    else:
        p = prepared(None)
        written = p.run(tensors)

    out = dict(zip(p.outputs, written, strict=True))
    support_loss, task_loss, loss, logits = [out.get(slot) for slot in signature.LOSSES]
    if support_loss is None:
        support_loss = x.new_empty((p.tasks, 0))
    adapted = [out["adapted", a, 0] for a in range(len(known.adapted))] if want_adapted else None
    gradients = signature.gradients(out, len(known.learnt), call) if kind.sweeps else None
    return Result(Run(p, inputs), loss, task_loss, logits, support_loss, adapted, gradients)


def _on_device(
    prepared: Callable[[device.Target], Prepared], tensors: Sequence[Tensor], x: Tensor
) -> tuple[Prepared, list[Any]]:
    """The call on the device of ``x``, in chunks of tasks where memory is short."""
    on = device.target(x)
    while True:
        p = prepared(on)
        workspace, on = device.workspace(p.bytes, x, on, p.tasks)
        if workspace is not None:
            return p, p.session.run(tensors, workspace.data_ptr(), on.stream)
