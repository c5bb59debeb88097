"""From an nn.Module to a Program: trace it, interpret the trace with the table of native layers, drop what the output
does not need. Whatever has no native form raises :class:`Unsupported`, naming the layer and the reason."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from metafast import losses
from metafast.model.builder import Builder, Place, Unsupported, batched, described
from metafast.model.cut import GraphCut, pruned
from metafast.model.layers import FUNCTIONS, METHODS, MODULES
from metafast.model.program import Loss, Node, Program, Shape
from metafast.model.tracing import trace
from metafast.tracking.reads import Reads

__all__ = ["Unsupported", "check_output", "evaluate", "interpret", "lower", "lower_rest"]

Adapted = Callable[[str], bool]
#: What is called, resolved: a module, a function, or the name of a method. Returns what the call returns.
Evaluate = Callable[[Builder, Any, Sequence[Any], dict[str, Any]], Any]


def lower(
    model: nn.Module,
    example_shape: Sequence[int],
    *,
    adapted: Adapted = lambda name: True,
    loss: Loss | None = None,
    dtype: torch.dtype = torch.float32,
    reads: Reads | None = None,
) -> Program:
    """The Program of ``model`` on inputs [N, *example_shape], for every number N of examples.

    ``adapted(name)`` says which parameters the inner loop moves; one with ``requires_grad=False`` is a constant. All
    parameters must have the type ``dtype`` of the input, float32 or float64. A BatchNorm in training mode uses the
    statistics of its batch and leaves its buffers alone. ``reads`` notes what the model's code depends on. Nothing is
    computed. Raises :class:`Unsupported`.
    """
    builder = Builder(model, tuple(example_shape), adapted, dtype)
    return _program(builder, interpret(trace(model, reads), model, builder), loss)


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
    value = builder.read(output)
    if loss is not None:
        check_output(loss, builder.values[value])
    values, nodes = _live(builder, value)
    shape = output.shape if output.shape != builder.values[value] else None
    return Program(values, tuple(builder.parameters), nodes, loss, shape)


def check_output(loss: Loss, shape: Shape) -> None:
    """Raise Unsupported if the loss is not native for examples' outputs of this shape."""
    if losses.NAMED[loss.kind].vectors and len(shape) != 1:
        raise Unsupported("loss", f"{loss.kind} is native for outputs [N, C], not for {batched(shape)}")


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


#: How users write what torch.fx calls by the names of Python's module operator.
_OPERATORS: dict[Any, str] = {
    getattr(operator, prefix + name): symbol + "=" * bool(prefix)
    for name, symbol in {
        "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
        "and_": "&", "or_": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
    }.items()
    for prefix in ("", "i")
    if hasattr(operator, prefix + name)
} | {
    operator.neg: "-", operator.getitem: "[]", operator.eq: "==", operator.ne: "!=", operator.lt: "<",
    operator.le: "<=", operator.gt: ">", operator.ge: ">=",
}  # fmt: skip


def _written(target: Any) -> str:
    """A function or method as its user wrote it."""
    if not isinstance(target, str) and target in _OPERATORS:
        return f"the operator {_OPERATORS[target]}"
    return f"{target if isinstance(target, str) else getattr(target, '__name__', target)}()"


def evaluate(b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """Hand one call to its handler."""
    if isinstance(target, nn.Module):
        return _call_module(b, target, [*arguments, *keywords.values()])
    method = isinstance(target, str)
    handler = METHODS.get(target) if method else FUNCTIONS.get(target)
    b.subject = f"{_written(target)} in {b.subject}"
    if handler is None:
        b.refuse("has no native form")
    return b.apply(handler, arguments, keywords)


def _call_module(b: Builder, module: nn.Module, arguments: list[Any]) -> Any:
    if type(module) not in MODULES:
        base = next((t.__name__ for t in MODULES if isinstance(module, t)), None)
        b.refuse(
            "has no native form"
            if base is None
            else f"is a subclass of {base}, which may compute something else; native is {base} itself"
        )
    if len(arguments) != 1:
        b.refuse(f"is called with {len(arguments)} arguments; native is one, the input")
    b.read(arguments[0])
    return MODULES[type(module)](b, module, arguments[0])


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
            if not isinstance(arguments[0], Place):
                b.refuse(f"returns {described(arguments[0])}, not one tensor computed from the input")
            return b.output(arguments[0])
        else:
            target = modules[node.target] if node.op == "call_module" else node.target
            results[node] = evaluate(b, target, arguments, keywords)
    raise AssertionError("a graph ends with its output")
