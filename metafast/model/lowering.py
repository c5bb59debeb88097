"""From an nn.Module to a Program: trace it, interpret the trace with the table of native layers, drop what the output
does not need. Whatever has no native form raises :class:`Unsupported`, naming the layer and the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from metafast import losses
from metafast.model.builder import Builder, Place, Unsupported, batched
from metafast.model.cut import GraphCut, pruned
from metafast.model.dispatch import Evaluate, evaluate
from metafast.model.inputs import Inputs
from metafast.model.program import Loss, Node, Program, Shape
from metafast.model.several import Several, in_one
from metafast.model.tracing import Head, trace
from metafast.tracking.reads import Reads

__all__ = ["Unsupported", "check_output", "interpret", "lower", "lower_rest"]

Adapted = Callable[[str], bool]


def lower(
    model: nn.Module,
    example_shape: Sequence[int],
    *,
    adapted: Adapted = lambda name: True,
    loss: Loss | None = None,
    dtype: torch.dtype = torch.float32,
    given: torch.dtype | None = None,
    inputs: Inputs | None = None,
    head: Head | None = None,
    reads: Reads | None = None,
) -> Program:
    """The Program of ``model`` on inputs [N, *example_shape], for every number N of examples.

    ``adapted(name)`` says which parameters the inner loop moves; one with ``requires_grad=False`` is a constant. All
    parameters must have the type ``dtype``, float32 or float64, and so has the input, unless it is ``given`` as
    integers; ``inputs`` says how it holds several tensors, and ``head`` what is
    made of the outputs and the last of these. A BatchNorm in training mode uses the
    statistics of its batch and leaves its buffers alone. ``reads`` notes what the model's code depends on. Nothing is
    computed. Raises :class:`Unsupported`.
    """
    graph, builder, values = trace(
        model, partial(Builder, model, tuple(example_shape), adapted, dtype, given), reads, inputs, head
    )
    assert builder is not None
    return _program(builder, interpret(graph, model, builder, known=values), loss)


def lower_rest(
    cut: GraphCut,
    model: nn.Module,
    example_shape: Sequence[int],
    *,
    adapted: Adapted,
    loss: Loss,
    dtype: torch.dtype,
) -> Program:
    """The Program of what stands behind a cut, on the cut's values [N, *example_shape], with the parameters that it
    reads or adapts. Raises :class:`Unsupported`."""
    builder = Builder(model, tuple(example_shape), adapted, dtype)
    before: dict[fx.Node, Any] = {node: None for node in cut.before if node.op != "get_attr"}
    output = interpret(cut.graph, model, builder, known=before | {**cut.known, cut.at: builder.input})
    return pruned(_program(builder, output, loss))


def _program(builder: Builder, output: Place, loss: Loss | None) -> Program:
    if loss is not None:
        check_output(loss, output.shape, None if builder.in_loss else builder.outputs)
        if builder.in_loss and builder.reduction == "sum":
            loss = replace(loss, reduction="sum")
        if losses.NAMED[loss.kind].classes and len(output.shape) > 1:  # each position is a row of channels
            builder.where, builder.subject = "loss", loss.kind
            output = builder.image(output, (output.shape[0], math.prod(output.shape[1:-1]), output.shape[-1]))
    value = builder.read(output)
    values, nodes = _live(builder, value)
    shape = output.shape if output.shape != builder.values[value] else None
    return Program(values, tuple(builder.parameters), nodes, loss, shape, builder.outputs)


def check_output(loss: Loss, shape: Shape, outputs: Several | None = None) -> None:
    """Raise Unsupported if the loss is not native for examples' outputs of this shape, or of several tensors."""
    known = losses.NAMED[loss.kind]
    if outputs is not None:
        raise Unsupported("loss", f"{loss.kind} takes one output, and the model returns {outputs}")
    if known.vectors and len(shape) != 1:
        raise Unsupported("loss", f"{loss.kind} is native for outputs [N, C], not for {batched(shape)}")
    if loss.class_weights and (not shape or len(loss.class_weights) != shape[0]):
        raise Unsupported(
            "loss", f"{loss.kind} has {len(loss.class_weights)} weights of classes for outputs {batched(shape)}"
        )


def _live(builder: Builder, output: int) -> tuple[tuple[Shape, ...], tuple[Node, ...]]:
    """The nodes that the output needs, and the values numbered anew. The output is then the last."""
    needed = {output}
    for node in reversed(builder.nodes):
        if node.output in needed:
            needed.update(node.inputs)
    number = {old: new for new, old in enumerate(sorted(needed | {0}))}
    nodes = tuple(
        replace(node, inputs=tuple(number[i] for i in node.inputs), output=number[node.output])
        for node in builder.nodes
        if node.output in needed
    )
    return tuple(builder.values[old] for old in number), nodes


def interpret(
    graph: fx.Graph,
    model: nn.Module,
    b: Builder,
    evaluate: Evaluate = evaluate,
    known: Mapping[fx.Node, Any] = MappingProxyType({}),
) -> Place:
    """Run the graph on Places, but for nodes that are ``known``; returns the output's."""
    modules = dict(model.named_modules())
    tensors = dict((*model.named_buffers(), *model.named_parameters()))
    results: dict[fx.Node, Any] = {**known}
    for node in graph.nodes:
        if node in known:
            continue
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), results.__getitem__)
        b.where, b.subject = node.meta["where"], node.meta["type"]
        if node.op == "placeholder":
            results[node] = b.input
        elif node.op == "get_attr":
            results[node] = tensors[node.target]
        elif node.op == "output":
            return b.output(arguments[0]) if isinstance(arguments[0], Place) else in_one(b, arguments[0])
        else:
            target = modules[node.target] if node.op == "call_module" else node.target
            results[node] = evaluate(b, target, arguments, keywords)
    raise AssertionError("a graph ends with its output")
