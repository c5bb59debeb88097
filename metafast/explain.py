"""What the native engine would do with a model, layer by layer: the operation, its cost, or why it has none."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from metafast import losses, transforms
from metafast.arguments import AdaptParams, predicate
from metafast.engine.reference import SWAPPING
from metafast.model.builder import BATCH, Builder, Place, Unsupported, batched, called
from metafast.model.layers import POINTWISE
from metafast.model.lowering import check_output, evaluate, interpret
from metafast.model.program import ABSENT, Shape, Step
from metafast.model.tracing import trace


@dataclass(frozen=True)
class Row:
    """One layer. ``flops`` and ``bytes`` are those of one forward pass over the N examples of one task."""

    layer: str  # qualified name; "" is the model itself
    op: str
    shape: Shape | None  # of one example's output; None: not known
    parameters: int
    flops: int
    bytes: int  # of its output
    reason: str  # why it has no native form; empty if it has one

    @property
    def native(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Explanation:
    """``rows`` in the order of execution; ``print`` shows them as a table.

    ``flops`` counts a multiplication and an addition as two, one forward pass, one task. ``meta_step_flops`` estimates
    the K inner steps and the query of all tasks with their reverse sweep: a gradient costs 3 forward passes and a
    Hessian-vector product by forward over reverse 6 more.
    """

    rows: tuple[Row, ...]
    model: str
    tasks: int
    examples: int
    queries: int
    steps: int
    example: Shape
    parameters: dict[str, int]  # role (adapted, meta, constant) -> number of scalars
    loss: str
    reason: str  # why the model as a whole cannot run natively; empty if it can

    @property
    def native(self) -> bool:
        return not self.reason

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def meta_step_flops(self) -> int:
        inner = self.steps * (3 + 9)  # g_k on the way down; g_k and H_k v on the way up
        return int(self.tasks * self.flops * (inner + 3 * self.queries / self.examples))

    def __str__(self) -> str:
        header = ("layer", "op", "output", "parameters", "FLOPs", "bytes", "native")
        lines = [header]
        for row in self.rows:
            shape = "?" if row.shape is None else batched(row.shape)
            cost = (f"{row.parameters:,}", _si(row.flops), _si(row.bytes)) if row.native else ("", "", "")
            lines.append((row.layer or "(model)", row.op, shape, *cost, "yes" if row.native else f"no: {row.reason}"))
        widths = [max(len(line[column]) for line in lines) for column in range(6)]
        text = []
        for line in lines:
            cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=False))]
            text.append("  ".join([*cells, line[6]]))
        text.insert(1, "-" * max(map(len, text)))
        roles = ", ".join(f"{count:,} {role}" for role, count in self.parameters.items())
        given = f"T={self.tasks} tasks, N={self.examples} examples of shape {list(self.example)}"
        verdict = "runs natively" if self.native else f"runs on torch: {self.reason}"
        head = [f"{self.model}: {given}; loss {self.loss}", f"{verdict}; parameters: {roles or 'none'}"]
        foot = [
            f"one task's forward pass: {_si(self.flops)}FLOP, activations {_si(self.bytes)}B",
            f"one meta-step (K={self.steps}, {self.queries} queries, all tasks): about {_si(self.meta_step_flops)}FLOP",
        ]
        return "\n".join([*head, "", *text, "", *(foot if all(row.native for row in self.rows) else [])]).rstrip()


def explain(
    model: nn.Module,
    shape: Sequence[int] | Tensor,
    loss: Any = None,
    adapt_params: AdaptParams = None,
    *,
    steps: int = 1,
    queries: int | None = None,
) -> Explanation:
    """Each layer of ``model``: native, or why not; FLOPs and bytes. Nothing is computed.

    Args:
        shape: that of the support inputs xs, [T, N, *example]; or xs itself.
        loss: as for :class:`metafast.MAML`; None looks at the model only.
        adapt_params: as for :class:`metafast.MAML`; counts the parameters by their role.
        steps, queries: of the meta-step whose cost is estimated (default: one step, as many queries as examples).

    Raises ValueError if ``shape`` has no axes T and N.
    """
    sizes = tuple(shape.shape if isinstance(shape, Tensor) else shape)
    if len(sizes) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"shape is {list(sizes)}; expected that of the support inputs, [T, N, *example], all positive")
    tasks, examples, *example = sizes
    model = transforms.original(model)
    transforms.refuse_scripted(model)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    known = None if loss is None else losses.resolve(loss)[0]
    foreign_loss = "" if loss is None or known else losses.why_not_native(loss)
    walk = _Walk(examples, dtype)
    counts: dict[str, int] = {}
    try:
        with SWAPPING:
            builder = Builder(model, tuple(example), predicate(adapt_params), dtype)
            for parameter in builder.parameters:
                counts[parameter.role] = counts.get(parameter.role, 0) + parameter.numel
            output = interpret(trace(model), model, builder, walk)
        if known is not None:
            check_output(known, builder.values[output])
    except Unsupported as unsupported:
        if all(row.native for row in walk.rows):
            walk.rows.append(Row(unsupported.where, "?", None, 0, 0, 0, unsupported.reason))
    reasons = [f"{called(row.layer)}: {row.reason}" for row in walk.rows if not row.native]
    return Explanation(
        rows=tuple(walk.rows),
        model=type(model).__name__,
        tasks=tasks,
        examples=examples,
        queries=examples if queries is None else queries,
        steps=steps,
        example=tuple(example),
        parameters=counts,
        loss="not given" if loss is None else str(known.kind if known else loss),
        reason="; ".join([*reasons, foreign_loss] if foreign_loss else reasons),
    )


class _Unknown:
    """The result of a call without native form whose shape torch could not tell either."""


class _Walk:
    """Evaluates calls as lowering does, and notes a row for each; goes on where lowering stops."""

    def __init__(self, examples: int, dtype: torch.dtype) -> None:
        self.rows: list[Row] = []
        self.examples = examples
        self.itemsize = dtype.itemsize

    def __call__(self, b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        first = len(b.steps)
        name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
        if any(isinstance(a, _Unknown) for a in arguments):
            self.rows.append(Row(b.where, name, None, 0, 0, 0, f"{name} follows a layer whose output is not known"))
            return _Unknown()
        try:
            result = evaluate(b, target, arguments, keywords)
        except Unsupported as unsupported:
            result = _torchs(b, target, arguments, keywords)
            shape = result.shape if isinstance(result, Place) else None
            self.rows.append(Row(b.where, name, shape, 0, 0, 0, unsupported.reason))
            return result
        self.rows += [self._row(step, b) for step in b.steps[first:]]
        if len(b.steps) == first and isinstance(target, nn.Module):
            self.rows.append(Row(b.where, "(nothing)", result.shape, 0, 0, 0, ""))
        return result

    def _row(self, step: Step, b: Builder) -> Row:
        shape = b.values[step.output]
        elements = math.prod(shape)
        weights = sum(b.parameters[i].numel for i in step.parameters[:2] if i != ABSENT)
        flops = self.examples * _flops(step, b) * elements
        size = 0 if step.op == "flatten" else self.examples * elements * self.itemsize
        return Row(step.where, step.op, shape, weights, flops, size, "")


def _flops(step: Step, b: Builder) -> int:
    """Per element of the output. A function of one element counts as one."""
    if step.op in ("linear", "conv2d"):
        weight, bias = step.parameters
        return 2 * math.prod(b.parameters[weight].shape[1:]) + (bias != ABSENT)
    settings = dict(step.attributes)
    if step.op == "batch_norm":
        return 8 if settings["training"] else 4
    if step.op in ("max_pool2d", "avg_pool2d"):
        return int(settings["kernel_h"] * settings["kernel_w"])
    if step.op == "adaptive_avg_pool2d":
        return -(-math.prod(b.values[step.inputs[0]]) // math.prod(b.values[step.output]))
    if step.op == "flatten":
        return 0
    if step.op in POINTWISE or step.op == "add":
        return 1
    raise NotImplementedError(f"explain does not know the cost of {step.op!r}; add it to _flops")


def _torchs(b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """What torch makes of a call on meta tensors: only its shape."""

    def on_meta(argument: Any) -> Any:
        if isinstance(argument, Place):
            return argument.meta()
        return argument.to("meta") if isinstance(argument, Tensor) else 2 if argument is BATCH else argument

    given = fx.node.map_aggregate(tuple(arguments), on_meta)
    try:
        if isinstance(target, nn.Module):
            target = copy.deepcopy(target).to("meta")
        elif isinstance(target, str):
            target = getattr(type(given[0]), target)
        with torch.no_grad():
            result = target(*given, **keywords)
    except Exception:  # any: the layer is foreign, and its row already says so
        return _Unknown()
    if not isinstance(result, Tensor) or result.ndim == 0 or result.shape[0] != 2:
        return _Unknown()
    b.values.append(tuple(result.shape[1:]))
    return Place(len(b.values) - 1, b.values[-1])


def _si(number: float) -> str:
    power = 0 if number < 1000 else min(int(math.log10(number)) // 3, 5)
    return f"{number / 1000**power:.3g} {' kMGTP'[power]}".rstrip()
