"""Where a model can be cut: a static prefix, which the inner loop does not move, and the rest.

A value is static if neither it nor anything it is computed from reads an adapted parameter or draws random numbers.
With a fixed support set it is the same at every inner step. A cut is one static value through which all goes: behind
it, nothing else of what stands before it is read. Cuts of a Program are found among its values (:func:`split`), those
of a model without native form among the nodes of its traced graph (:func:`candidates`, :class:`Part`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from metafast.model import cost
from metafast.model.builder import Batch, called
from metafast.model.program import ABSENT, RANDOM, Node, Parameter, Program, shared_values

# ---- Programs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """``rest(prefix(x))`` is the whole Program. ``prefix_at`` and ``rest_at`` are their parameters' places in it."""

    prefix: Program
    rest: Program
    prefix_at: tuple[int, ...]
    rest_at: tuple[int, ...]
    where: str  # in words, the layer whose output is the cut
    flops: int  # of the prefix, for one example


def split(program: Program) -> Split | None:
    """The whole as a prefix that the inner loop does not move and the rest, or None where no prefix has work to do."""
    found = static_values(program.nodes, program.parameters, program.output)
    if found is None:
        return None
    cut, before = found
    first = [node for node in program.nodes if node.output in before]
    last = [node for node in program.nodes if node.output not in before]
    flops = cost.total(first, program.values, program.parameters)
    if not flops:
        return None
    prefix, prefix_at = _part(program, first, 0, False)
    rest, rest_at = _part(program, last, cut, True)
    return Split(replace(prefix, loss=None, shape=None), rest, prefix_at, rest_at, layer_of(first[-1]), flops)


def layer_of(node: Node) -> str:
    """In words."""
    return called(node.where) if node.where else f"{node.op} in {called(node.where)}"


def static_values(
    nodes: Sequence[Node], parameters: Sequence[Parameter], output: int
) -> tuple[int, frozenset[int]] | None:
    """The last value at which a Program can be cut, and all that it is computed from, itself included.

    Cuts are nested, so the last one has the largest prefix.
    """
    live = _ancestors(nodes, output)
    nodes = [node for node in nodes if node.output in live]
    moving: set[int] = set()
    for node in nodes:
        reads = [parameters[i].role for i in node.parameters if i != ABSENT]
        if node.op in RANDOM or "adapted" in reads or not moving.isdisjoint(node.inputs):
            moving.add(node.output)
    for cut in reversed([node.output for node in nodes if node.output not in moving | shared_values(nodes) | {output}]):
        before = _ancestors(nodes, cut)
        inputs = {i for node in nodes if node.output not in before for i in node.inputs}
        if inputs.isdisjoint(before - {cut}):
            return cut, before
    return None


def _ancestors(nodes: Sequence[Node], value: int) -> frozenset[int]:
    """The values that ``value`` is computed from, and itself."""
    found = {value}
    for node in reversed(nodes):
        if node.output in found:
            found.update(node.inputs)
    return frozenset(found)


def _part(program: Program, nodes: Sequence[Node], source: int, adapts: bool) -> tuple[Program, tuple[int, ...]]:
    """A Program of these nodes whose input is the value ``source``, and the places of its parameters: those it reads
    and, if it ``adapts``, those that the inner loop moves without reading them."""
    used = {i for node in nodes for i in node.parameters if i != ABSENT}
    at = [i for i, p in enumerate(program.parameters) if i in used or (adapts and p.role == "adapted")]
    number = {old: new for new, old in enumerate([source, *(node.output for node in nodes)])}
    place = {old: new for new, old in enumerate(at)} | {ABSENT: ABSENT}
    moved = [
        replace(
            node,
            inputs=tuple(number[i] for i in node.inputs),
            output=number[node.output],
            parameters=tuple(place[i] for i in node.parameters),
        )
        for node in nodes
    ]
    values = tuple(program.values[i] for i in number)
    parameters = tuple(program.parameters[i] for i in at)
    return Program(values, parameters, tuple(moved), program.loss, program.shape), tuple(at)


def pruned(program: Program) -> Program:
    """``program`` without the parameters that it neither reads nor adapts."""
    return _part(program, program.nodes, 0, True)[0]


# ---- traced graphs ---------------------------------------------------------------------------------------------------


def candidates(graph: fx.Graph, model: nn.Module, adapted: Callable[[str], bool]) -> Iterator[fx.Node]:
    """The nodes after which the graph may be cut, the last first: no node up to one of them is moved.

    What runs before a cut is a beginning of the graph as it stands, so that code which writes in place is run in the
    order of its author. There is none where torch differentiates, for a cut would end the graph that it goes back by.
    """
    if any(node.target is torch.autograd.grad for node in graph.nodes):
        return
    modules = dict(model.named_modules())
    moved = {n for n, p in model.named_parameters() if p.requires_grad and adapted(n)}
    ids = {id(p) for n, p in model.named_parameters() if n in moved}

    def moves(node: fx.Node) -> bool:
        if node.op == "call_module" and any(id(p) in ids for p in modules[str(node.target)].parameters()):
            return True
        return any(given.op == "get_attr" and given.target in moved for given in node.all_input_nodes)

    static: list[fx.Node] = []
    for node in graph.nodes:
        if moves(node):
            break
        static.append(node)
    yield from (node for node in reversed(static) if node.op.startswith("call_"))


def reads_parameters(nodes: Sequence[fx.Node], model: nn.Module) -> bool:
    """Whether these nodes have work to do that is worth a cut."""
    modules = dict(model.named_modules())
    return any(
        node.op == "get_attr"
        or (node.op == "call_module" and any(True for _ in modules[str(node.target)].parameters()))
        for node in nodes
    )


class Part(nn.Module):
    """Nodes of a traced graph, run by torch as a module from ``source`` to ``result``, which is a node or several
    in tuples, lists and dicts, with whatever parameters the model holds at the time.

    Args:
        known: the values of nodes before ``source``, sizes for instance; Batch stands for the number of examples.
        copies: ``source`` is a value that others read again, and these nodes may write into it.
    """

    def __init__(
        self,
        model: nn.Module | None,
        nodes: Sequence[fx.Node],
        source: fx.Node,
        result: Any,
        known: Mapping[fx.Node, Any],
        copies: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.nodes, self.source, self.result = model, tuple(nodes), source, result
        self.known, self.copies = dict(known), copies
        self.training = model is not None and model.training  # of this module alone: its model keeps its modes

    def of(self, model: nn.Module | None) -> Part:
        """The same nodes of another model of this structure; of None, which keeps no model alive, nothing can run."""
        return Part(model, self.nodes, self.source, self.result, self.known, self.copies)

    def forward(self, x: Tensor) -> Any:
        return fx.node.map_arg(self.result, self._run(x, lambda node: None, self._last_read).__getitem__)

    def values(self, x: Tensor, note: Callable[[fx.Node], Any] = lambda node: None) -> dict[fx.Node, Any]:
        """What every node comes to; ``note(node)`` hears when it has."""
        return self._run(x, note, {})

    @functools.cached_property
    def _last_read(self) -> dict[fx.Node, list[fx.Node]]:
        """The values that are not read again behind a node. Let go, their memory serves the next: a network of many
        layers takes twice as long where every value needs fresh pages."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            last.update(dict.fromkeys((node, *node.all_input_nodes), node))
        fx.node.map_arg(self.result, lambda node: last.pop(node, None))
        freed: dict[fx.Node, list[fx.Node]] = {}
        for value, node in last.items():
            freed.setdefault(node, []).append(value)
        return freed

    def _run(
        self, x: Tensor, note: Callable[[fx.Node], Any], freed: Mapping[fx.Node, Sequence[fx.Node]]
    ) -> dict[fx.Node, Any]:
        found: dict[fx.Node, Any] = {node: _numbers(value, len(x)) for node, value in self.known.items()}
        found[self.source] = x.clone() if self.copies else x
        for node in self.nodes:
            if node in found:
                continue
            if node.op == "get_attr":
                found[node] = functools.reduce(getattr, str(node.target).split("."), self.model)
                continue
            arguments, keywords = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            found[node] = _called(self.model, node)(*arguments, **keywords)
            note(node)
            for value in freed.get(node, ()):
                found.pop(value, None)
        return found


def _called(model: nn.Module | None, node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_module":
        assert model is not None
        return model.get_submodule(str(node.target))
    if node.op == "call_function":
        return node.target  # type: ignore[return-value]
    return lambda self, *arguments, **keywords: getattr(self, str(node.target))(*arguments, **keywords)


def source_of(graph: fx.Graph) -> fx.Node:
    """The node of the model's input."""
    found: fx.Node = next(node for node in graph.nodes if node.op == "placeholder")
    return found


@dataclass(frozen=True)
class GraphCut:
    """A graph cut behind ``at``."""

    graph: fx.Graph
    at: fx.Node
    known: Mapping[fx.Node, Any]  # of the nodes before, what the rest reads besides the cut: sizes, with Batch for N

    @property
    def source(self) -> fx.Node:
        return source_of(self.graph)

    @property
    def where(self) -> str:
        """In words, the layer whose output is the cut."""
        if self.at.op == "call_module":
            return called(str(self.at.target))
        name = self.at.target if isinstance(self.at.target, str) else getattr(self.at.target, "__name__", "a function")
        return f"{name} in {called(self.at.meta['where'])}"

    @property
    def before(self) -> list[fx.Node]:
        nodes = [*self.graph.nodes]
        return nodes[: nodes.index(self.at) + 1]

    @property
    def behind(self) -> list[fx.Node]:
        """The nodes of the rest, but for the graph's output; with the parameters that nodes before name for it."""
        nodes = [*self.graph.nodes]
        place = nodes.index(self.at)
        return [node for node in nodes[:place] if node.op == "get_attr"] + nodes[place + 1 : -1]

    @property
    def result(self) -> Any:
        """What the model returns: a node, or several in tuples, lists and dicts."""
        (output,) = [node for node in self.graph.nodes if node.op == "output"]
        result: Any = output.args[0]
        return result

    def parts(self, model: nn.Module) -> tuple[Part, Part]:
        """The static prefix and the rest, as modules."""
        prefix = Part(model, self.before, self.source, self.at, {})
        return prefix, Part(model, self.behind, self.at, self.result, self.known, copies=True)


class _Crosses(Exception):
    """More than sizes goes past a cut."""


def graph_cut(graph: fx.Graph, at: fx.Node, few: Mapping[fx.Node, Any], more: Mapping[fx.Node, Any]) -> GraphCut | None:
    """The cut behind ``at``, or None where it is none.

    ``few`` and ``more`` are the values of the nodes up to there for N and for N + 1 examples. The cut must be a tensor
    of N examples, and nothing else but numbers may go past it.
    """
    cut = GraphCut(graph, at, {})
    before = cut.before
    n, value, other = len(few[cut.source]), few[at], more[at]
    if not (isinstance(value, Tensor) and isinstance(other, Tensor)):
        return None
    if value.ndim < 2 or value.shape[1:] != other.shape[1:] or (len(value), len(other)) != (n, n + 1):
        return None
    inside = set(before)
    known = {}
    for node in before:
        if node is at or node.op == "get_attr" or inside.issuperset(node.users):
            continue
        try:
            known[node] = _symbols(few[node], more[node], n)
        except _Crosses:
            return None
    return GraphCut(graph, at, known)


def _symbols(few: Any, more: Any, n: int) -> Any:
    """A value that is no tensor, with Batch for the number of examples."""
    if isinstance(few, (tuple, list)) and isinstance(more, (tuple, list)) and len(few) == len(more):
        return tuple(_symbols(a, b, n) for a, b in zip(few, more, strict=True))
    if type(few) is int and type(more) is int and more > few and (few * (n + 1), few % n) == (more * n, 0):
        return Batch(few // n)
    if (few is None or isinstance(few, (bool, int, float, str, torch.dtype, torch.device))) and few == more:
        return few
    raise _Crosses


def _numbers(value: Any, n: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_numbers(each, n) for each in value)
    return n * value.times if isinstance(value, Batch) else value
