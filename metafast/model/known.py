"""What the nodes of a graph come to while it is traced: shapes that forward may decide by."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from metafast.model.builder import Batch, Builder, Unsupported
from metafast.model.dispatch import evaluate
from metafast.model.proxies import UNKNOWN
from metafast.tracking.reads import unwatched

_SIZES = ("size", "dim", "ndimension", "numel", "nelement", len)
_ARITHMETIC = ("_operator", "math")


class Known:
    """The handlers of layers say what a node comes to, as they do when the graph is lowered: they have the shapes of
    torch for every number of examples. Behind what has no native form nothing is known."""

    def __init__(self, model: nn.Module, builder: Builder | None) -> None:
        self.builder = builder
        self.values: dict[fx.Node, Any] = {}
        self.unsupported: Unsupported | None = None  # the first that was met
        self.evaluating = False
        self._lost = False
        self._counts: dict[fx.Node, bool] = {}  # whether it depends on the number of examples
        self._modules = dict(model.named_modules())
        self._tensors = dict((*model.named_buffers(), *model.named_parameters()))

    def note(self, node: fx.Node) -> None:
        value = self._value(node)
        if value is not UNKNOWN:
            self.values[node] = value
        elif _may_reshape(self._target(node)):
            self.values.clear()
            self._lost = True
        if isinstance(value, Batch):
            self._counts[node] = True
        elif value is UNKNOWN and (found := self._count(node)) is not None:
            self._counts[node] = found

    def is_count(self, node: fx.Node) -> bool:
        return node in self._counts

    def depends_on_batch(self, node: fx.Node) -> bool:
        return self._counts[node]

    def drop_unused_sizes(self, graph: fx.Graph) -> None:
        """The nodes that only told what was known."""
        for node in reversed(graph.nodes):
            if not node.users and is_size(self.values.get(node, UNKNOWN)):
                graph.erase_node(node)

    def _target(self, node: fx.Node) -> Any:
        return self._modules[str(node.target)] if node.op == "call_module" else node.target

    def _value(self, node: fx.Node) -> Any:
        b = self.builder
        if b is None or self._lost or any(given not in self.values for given in node.all_input_nodes):
            return UNKNOWN
        if node.op == "placeholder":
            return b.input
        if node.op == "get_attr":
            return self._tensors[str(node.target)]
        if node.op == "output":
            return UNKNOWN
        b.where, b.subject = node.meta["where"], node.meta["type"]
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        self.evaluating = True
        try:
            with unwatched():
                return evaluate(b, self._target(node), arguments, keywords)
        except Unsupported as unsupported:
            self.unsupported = self.unsupported or unsupported
            return UNKNOWN
        finally:
            self.evaluating = False

    def _count(self, node: fx.Node) -> bool | None:
        """Whether what is not known is a size, and if so whether it depends on the number of examples."""
        given = [self._counts.get(each) for each in node.all_input_nodes]
        if given and None not in given:
            module = getattr(node.target, "__module__", None)
            return any(given) if module in _ARITHMETIC else None
        asks = node.target in _SIZES or (node.target is getattr and node.args[1] in ("shape", "ndim"))
        return all(each in self.values for each in node.all_input_nodes) if asks else None


def is_size(value: Any) -> bool:
    return isinstance(value, Batch) or (isinstance(value, tuple) and all(isinstance(v, (Batch, int)) for v in value))


def _may_reshape(target: Any) -> bool:
    """Whether a call without native form might change the shape of what it is given."""
    if isinstance(target, str):
        return target.endswith("_")
    if isinstance(target, nn.Module):
        return not type(target).__module__.startswith("torch.")
    if target in (operator.getitem, operator.setitem, len, getattr):
        return False
    module = str(getattr(target, "__module__", None) or "torch")
    return getattr(target, "__name__", "_").endswith("_") or module.partition(".")[0] not in (
        "torch",
        "_operator",
        "math",
    )
