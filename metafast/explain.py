"""What the native engine would do with a model, layer by layer: the operation, its cost, or why it has none."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from metafast import losses, transforms
from metafast.arguments import AdaptParams, predicate
from metafast.engine import reference
from metafast.engine.reference import SWAPPING, describe
from metafast.model import cost, traced_loss
from metafast.model.builder import Batch, Builder, Place, Unsupported, batched, called
from metafast.model.cut import layer_of, static_values
from metafast.model.dispatch import evaluate
from metafast.model.inputs import Inputs
from metafast.model.lowering import check_output, interpret, lower
from metafast.model.program import ABSENT, Loss, Node, Program, Shape, shared_values
from metafast.model.several import Several
from metafast.model.tracing import trace
from metafast.planning import engines
from metafast.tracking.reads import Reads


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
    once: bool = False  # the inner loop does not move it: it runs once per task and set
    shared: bool = False  # made of parameters alone: one for all examples

    @property
    def native(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Explanation:
    """``rows`` in the order of execution; ``print`` shows them as a table.

    ``flops`` counts a multiplication and an addition as two, one forward pass, one task. ``meta_step_flops`` estimates
    the K inner steps and the query of all tasks with their reverse sweep: a gradient costs 3 forward passes and a
    Hessian-vector product by forward over reverse 6 more. Layers that run once cost 4 forward passes of each set, where
    that is less.
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
    cut: str | None = None  # the layer up to which the model runs once per task and set; None where it is not cut

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
        sets = 1 + self.queries / self.examples
        every, once = inner + 3 * (sets - 1), 4 * sets
        return int(self.tasks * sum(row.flops * (min(every, once) if row.once else every) for row in self.rows))

    def __str__(self) -> str:
        header = ("layer", "op", "output", "parameters", "FLOPs", "bytes", "native")
        lines = [header]
        for row in self.rows:
            shape = "?" if row.shape is None else str([*row.shape]) if row.shared else batched(row.shape)
            cost = (f"{row.parameters:,}", _si(row.flops), _si(row.bytes)) if row.native else ("", "", "")
            lines.append((row.layer or "(model)", row.op, shape, *cost, self._how(row)))
        widths = [max(len(line[column]) for line in lines) for column in range(6)]
        text = []
        for line in lines:
            cells = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=False))]
            text.append("  ".join([*cells, line[6]]))
        text.insert(1, "-" * max(map(len, text)))
        roles = ", ".join(f"{count:,} {role}" for role, count in self.parameters.items())
        given = f"T={self.tasks} tasks, N={self.examples} examples of shape {list(self.example)}"
        head = [f"{self.model}: {given}; loss {self.loss}", f"{self._verdict()}; parameters: {roles or 'none'}"]
        if self.cut is not None:
            head.append(
                f"cut behind {self.cut}: what stands before is not moved, and runs once per task and set"
                + (" where that is less work" if self.native else "")
            )
        meta_step = _si(self.meta_step_flops, "FLOP")
        foot = [
            f"one task's forward pass: {_si(self.flops, 'FLOP')}, activations {_si(self.bytes, 'B')}",
            f"one meta-step (K={self.steps}, {self.queries} queries, all tasks): about {meta_step}",
        ]
        return "\n".join([*head, "", *text, "", *(foot if all(row.native for row in self.rows) else [])]).rstrip()

    def _verdict(self) -> str:
        if self.native:
            return "runs natively"
        if self.cut is not None and all(row.native for row in self.rows if not row.once):
            return f"runs natively behind {self.cut}, and on torch before"
        return f"runs on torch: {self.reason}"

    def _how(self, row: Row) -> str:
        """A row's last cell."""
        if row.once and not self.native:
            return "once, by torch" + f": {row.reason}" * (not row.native)
        return "yes" + ", once" * row.once if row.native else f"no: {row.reason}"


def explain(
    model: nn.Module,
    shape: Sequence[int] | Tensor | tuple[Sequence[int] | Tensor, ...],
    loss: Any = None,
    adapt_params: AdaptParams = None,
    *,
    steps: int = 1,
    queries: int | None = None,
) -> Explanation:
    """Each layer of ``model``: native, or why not; FLOPs and bytes; and where it is cut, if the inner loop does not
    move all of it. Nothing is computed, unless a part that is not moved has no native form: it runs once, on zeros.

    Args:
        shape: that of the support inputs xs, [T, N, *example]; or xs itself, which also says whether it is integers;
            or a tuple of either, for several inputs.
        loss: as for :class:`metafast.MAML`; None looks at the model only. One of your own is tried with targets like
            the outputs, and with their classes.
        adapt_params: as for :class:`metafast.MAML`; counts the parameters by their role.
        steps, queries: of the meta-step whose cost is estimated (default: one step, as many queries as examples).

    Raises ValueError if ``shape`` has no axes T and N.
    """
    several = isinstance(shape, tuple) and any(isinstance(each, (tuple, list, Tensor)) for each in shape)
    given = [_given(each) for each in (shape if several else (shape,))]
    tasks, examples, *example = given[0][0]
    model = transforms.original(model)
    transforms.refuse_scripted(model)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    held = given[0][1]
    inputs = None
    if several:
        inputs = Inputs(tuple((tuple(sizes[2:]), kind or dtype) for sizes, kind in given))
        example, held = [sum(inputs.sizes)], None
    known = None if loss is None else losses.resolve(loss)[0]
    walk = _Walk(examples, dtype)
    cut = out = None
    counts: dict[str, int] = {}
    try:
        with SWAPPING:
            build = functools.partial(Builder, model, tuple(example), predicate(adapt_params), dtype, held)
            builder = build()
            for parameter in builder.parameters:
                counts[parameter.role] = counts.get(parameter.role, 0) + parameter.numel
            output = interpret(trace(model, build, inputs=inputs).graph, model, builder, walk)
        if known is not None:
            check_output(known, output.shape, builder.outputs)
        if all(row.native for row in walk.rows):
            cut = walk.mark(builder, builder.read(output))
            out = builder.outputs or Several(None, Inputs(((output.shape, dtype),)))
    except Unsupported as unsupported:
        if all(row.native for row in walk.rows):
            walk.rows.append(Row(unsupported.where, "?", None, 0, 0, 0, unsupported.reason))
    foreign_loss = "" if loss is None or known else losses.why_not_native(loss)
    if foreign_loss and out is not None:
        own = inputs or Inputs(((tuple(example), held or dtype),))
        foreign_loss = _why_not_traced(model, losses.resolve(loss)[1], own, out)
    if not foreign_loss and not all(row.native for row in walk.rows) and len(counts) > 1:
        x = torch.zeros(max(examples, 2), *example, dtype=held or dtype)
        cut = walk.mark_by_torch(model, adapt_params, known or Loss("mse"), x, inputs)
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
        cut=cut,
    )


def _why_not_traced(model: nn.Module, function: losses.LossFunction, own: Inputs, outputs: Several) -> str:
    """Why a loss of the user's own has no native form for these outputs of an example; empty if it has one for targets
    that are each like an output, or its class."""

    def reason(kinds: tuple[tuple[Shape, torch.dtype], ...]) -> str:
        inputs = Inputs((*own.parts, *kinds))
        head = traced_loss.Head(function, Several(outputs.form, Inputs(kinds)))
        try:
            lower(
                model, (sum(inputs.sizes),), loss=traced_loss.LAST, dtype=parts[0][1], inputs=inputs, head=head,
                reads=Reads(model),
            )  # fmt: skip
        except Unsupported as unsupported:
            return str(unsupported)
        return ""

    parts = outputs.rows.parts
    choices = [((shape, dtype), (shape[1:], torch.int64)) for shape, dtype in parts]
    tried = [*itertools.product(*choices)] if len(parts) <= 4 else [*zip(*choices, strict=True)]
    why = reason(tried[0])
    return why and why * all(map(reason, tried[1:]))


def _given(shape: Any) -> tuple[tuple[int, ...], torch.dtype | None]:
    """The shape of one of the inputs, and its type, if that is known."""
    sizes = tuple(shape.shape if isinstance(shape, Tensor) else shape)
    if len(sizes) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"shape is {list(sizes)}; expected that of the support inputs, [T, N, *example], all positive")
    return sizes, shape.dtype if isinstance(shape, Tensor) else None


class _Unknown:
    """The result of a call without native form whose shape torch could not tell either."""


class _Walk:
    """Evaluates calls as lowering does, and notes a row for each; goes on where lowering stops."""

    def __init__(self, examples: int, dtype: torch.dtype) -> None:
        self.rows: list[Row] = []
        self.made: list[tuple[int, int]] = []  # by row: the value, and the number of the call
        self.calls = 0
        self.examples = examples
        self.dtype = dtype

    def __call__(self, b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        self.calls += 1
        first, known = len(b.nodes), len(self.rows)
        result = self._call(b, target, arguments, keywords, first)
        new = len(self.rows) - known
        values = [node.output for node in b.nodes[first:]] if new == len(b.nodes) - first else []
        last = getattr(result, "value", None)
        self.made += [(value, self.calls) for value in values or [-1 if last is None else last] * new]
        return result

    def mark(self, b: Builder, output: int) -> str | None:
        """Mark what runs once of a model that is native; the layer up to which that is, or None."""
        found = static_values(b.nodes, b.parameters, output)
        if found is None:
            return None
        nodes = [node for node in b.nodes if node.output in found[1]]
        if not cost.total(nodes, b.values, b.parameters):
            return None
        self._mark([value in found[1] for value, _ in self.made])
        return layer_of(nodes[-1])

    def mark_by_torch(
        self, model: nn.Module, adapt_params: AdaptParams, loss: Loss, x: Tensor, inputs: Inputs | None
    ) -> str | None:
        """Mark what torch runs once, before an inner loop that is native or not; the layer up to which that is, or
        None."""
        adapted = predicate(adapt_params)
        try:
            whole = describe(model, loss, adapted, x, inputs=inputs)
            found = engines.composed(model, whole, adapted, x, self.dtype, False)
        except (RuntimeError, ValueError, TypeError):
            return None
        if found is None or not (found[0].by_torch or found[0].whole is reference):
            return None
        calls = sum(node.op.startswith("call_") for node in found[0].prefix.program.module.nodes)
        self._mark([number <= calls for _, number in self.made])
        if not found[0].by_torch:  # torch runs the rest as well
            return found[0].where
        rest = found[0].rest.program
        self.rows = [row for row in self.rows if row.once] + [self._row(node, rest) for node in rest.nodes]
        return found[0].where

    def _mark(self, once: Sequence[bool]) -> None:
        self.rows = [replace(row, once=each) for row, each in zip(self.rows, once, strict=True)]

    def _call(self, b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any], first: int) -> Any:
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
        self.rows += [self._row(node, b) for node in b.nodes[first:]]
        if len(b.nodes) == first and isinstance(target, nn.Module):
            self.rows.append(Row(b.where, "(nothing)", result.shape, 0, 0, 0, ""))
        return result

    def _row(self, node: Node, b: Builder | Program) -> Row:
        shape = b.values[node.output]
        elements = math.prod(shape)
        weights = sum(b.parameters[i].numel for i in node.parameters[:2] if i != ABSENT)
        shared = node.output in shared_values(b.nodes)
        examples = 1 if shared else self.examples
        flops = examples * cost.flops(node, b.values, b.parameters)
        size = 0 if node.op == "flatten" else examples * elements * self.dtype.itemsize
        return Row(node.where, node.says or node.op, shape, weights, flops, size, "", shared=shared)


def _torchs(b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """What torch makes of a call on meta tensors: only its shape."""

    def on_meta(argument: Any) -> Any:
        if isinstance(argument, Place):
            return argument.meta()
        if isinstance(argument, Batch):
            return 2 * argument.times
        return argument.to("meta") if isinstance(argument, Tensor) else argument

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


def _si(number: float, unit: str = "") -> str:
    power = 0 if number < 1000 else min(int(math.log10(number)) // 3, 5)
    return f"{number / 1000**power:.3g} {('', *'kMGTP')[power]}{unit}".rstrip()
