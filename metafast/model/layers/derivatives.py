"""Derivatives by the input inside a model or a loss, as physics-informed networks have them: ``torch.autograd.grad``.

The reverse sweep through the nodes made so far is written down as more nodes. It may be differentiated again, by the
input, and as all nodes are by the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from metafast.model.builder import Builder, Place, described
from metafast.model.constant import Constant
from metafast.model.layers.constants import zeros_like
from metafast.model.layers.pairs import pair
from metafast.model.layers.table import lowered, lowers
from metafast.model.program import Node, Shape, shared_values

#: The derivative of a function of one element: of ``do``, which calls a function of torch, of its input and output and
#: of its settings.
Slope = Callable[[Callable[..., Any], Any, Any, dict[str, float]], Any]


def _of_silu(do: Callable[..., Any], x: Any, y: Any, settings: dict[str, float]) -> Any:
    """s + y (1 - s), with s the sigmoid."""
    s = do(torch.sigmoid, x)
    return do(torch.add, s, do(torch.mul, y, do(torch.rsub, s, 1)))


def _of_softplus(do: Callable[..., Any], x: Any, y: Any, settings: dict[str, float]) -> Any:
    """The sigmoid of beta x. Above the threshold torch's function is a line: there the sigmoid of 40, which is 1."""
    turned = do(F.threshold, do(torch.mul, x, -settings["beta"]), -settings["threshold"], -40.0)
    return do(torch.sigmoid, do(torch.neg, turned))


def _of_gelu_tanh(do: Callable[..., Any], x: Any, y: Any, settings: dict[str, float]) -> Any:
    """(1 + t) / 2 + x (1 - t^2) g' / 2 with t = tanh(g) and g = k (x + c x^3)."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = do(torch.square, x)
    t = do(torch.tanh, do(torch.mul, x, do(torch.add, do(torch.mul, square, k * c), k)))
    inner = do(torch.mul, x, do(torch.add, do(torch.mul, square, 1.5 * k * c), 0.5 * k))
    bent = do(torch.mul, do(torch.rsub, do(torch.square, t), 1), inner)
    return do(torch.add, do(torch.add, do(torch.mul, t, 0.5), 0.5), bent)


SLOPES: dict[str, Slope] = {
    "cos": lambda do, x, y, _: do(torch.neg, do(torch.sin, x)),
    "exp": lambda do, x, y, _: y,
    "expm1": lambda do, x, y, _: do(torch.add, y, 1),
    "gelu_tanh": _of_gelu_tanh,
    "log": lambda do, x, y, _: do(torch.reciprocal, x),
    "log1p": lambda do, x, y, _: do(torch.reciprocal, do(torch.add, x, 1)),
    "log_sigmoid": lambda do, x, y, _: do(torch.sigmoid, do(torch.neg, x)),
    "pow": lambda do, x, y, s: do(torch.mul, do(torch.pow, x, s["exponent"] - 1), s["exponent"]),
    "reciprocal": lambda do, x, y, _: do(torch.neg, do(torch.square, y)),
    "rsqrt": lambda do, x, y, _: do(torch.mul, do(torch.mul, y, do(torch.square, y)), -0.5),
    "sigmoid": lambda do, x, y, _: do(torch.mul, y, do(torch.rsub, y, 1)),
    "silu": _of_silu,
    "sin": lambda do, x, y, _: do(torch.cos, x),
    "softplus": _of_softplus,
    "sqrt": lambda do, x, y, _: do(torch.mul, do(torch.reciprocal, y), 0.5),
    "square": lambda do, x, y, _: do(torch.mul, x, 2),
    "tanh": lambda do, x, y, _: do(torch.rsub, do(torch.square, y), 1),
}


@lowers(torch.autograd.grad)
def grad(
    b: Builder,
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: Any = None,
    create_graph: bool = False,
    allow_unused: Any = None,
    *,
    only_inputs: bool = True,
) -> tuple[Place, ...]:
    """Of one output, or of its sum over the examples, by values of which its examples depend on their own alone."""
    if not create_graph:
        b.refuse("is native with create_graph=True, without which no gradient reaches the parameters")
    if len(_listed(outputs)) != 1 or len(_listed(grad_outputs)) != 1:
        b.refuse("differentiates several outputs at once; native is one")
    (y,), (seed,), wanted = _listed(outputs), _listed(grad_outputs), _listed(inputs)
    if not isinstance(y, Place) or not all(isinstance(x, Place) and not x.shared for x in wanted):
        b.refuse(f"differentiates {described(y)}; native is a tensor computed from the input, by such tensors")
    if seed is None and y.reduction != "sum" and y.shape:
        b.refuse("differentiates a tensor of several elements without grad_outputs; native is a sum, or with them")
    if y.reduction == "mean":
        b.refuse("differentiates a mean over the examples; native is a sum over them")
    value = b.read(Place(y.value, y.shape) if y.reduction else y)
    cotangents = {value: _one(b, b.values[value]) if seed is None else _as_form(b, b.place(seed), b.values[value])}
    if not all(value in _behind(b.nodes, [b.read(x)]) for x in wanted):
        b.refuse("differentiates what does not depend on the input that it names, which torch refuses")
    _sweep(b, [b.read(x) for x in wanted], cotangents)
    return tuple(_result(b, x, cotangents.get(b.read(x))) for x in wanted)


def _listed(thing: Any) -> Sequence[Any]:
    return thing if isinstance(thing, (tuple, list)) else (thing,)


def _one(b: Builder, form: Shape) -> Place:
    return b.place(Constant(torch.ones(form, dtype=b.dtype)))


def _as_form(b: Builder, place: Place, form: Shape) -> Place:
    """``place`` as a tensor of the shape of a value of the Program, which has the same elements in the same order."""
    return Place(b.in_form(place, form).value, form, [], place.shared)


def _result(b: Builder, x: Place, cotangent: Place | None) -> Place:
    if cotangent is None:
        return zeros_like(b, x)
    made = Place(cotangent.value, x.shape, [], cotangent.shared)
    return lowered(b, torch.add, zeros_like(b, x), made) if made.shared else made


def _behind(nodes: Sequence[Node], values: Sequence[int]) -> set[int]:
    """These values, and those computed from them."""
    found = set(values)
    for node in nodes:
        if found.intersection(node.inputs):
            found.add(node.output)
    return found


def _sweep(b: Builder, wanted: Sequence[int], cotangents: dict[int, Place]) -> None:
    """Add the cotangents of the ``wanted`` values, and of those between them and the one that has one."""
    nodes = tuple(b.nodes)
    depends = _behind(nodes, wanted)
    for node in reversed(nodes):
        if node.output not in cotangents or not depends.intersection(node.inputs):
            continue
        rule = RULES.get(node.op) or (_pointwise if node.op in SLOPES else None)
        if rule is None:
            b.refuse(f"differentiates through {node.op}, which has no native form")
        for i, value in enumerate(node.inputs):
            if value in depends:
                term = rule(b, node, cotangents[node.output], i)
                if term is None:
                    continue
                known = cotangents.get(value)
                cotangents[value] = term if known is None else lowered(b, torch.add, known, term)


# ---- The cotangent of input i of a node, from that of its output; both in the forms of their values ------------------


def _at(b: Builder, value: int) -> Place:
    return Place(value, b.values[value], [], value in shared_values(b.nodes))


def _pointwise(b: Builder, node: Node, dy: Place, i: int) -> Place:
    x, y = _at(b, node.inputs[0]), _at(b, node.output)
    slope = SLOPES[node.op](partial(lowered, b), x, y, dict(node.attributes))
    return lowered(b, torch.mul, slope, dy)  # type: ignore[no-any-return]


def _affine(b: Builder, node: Node, dy: Place, i: int) -> Place:
    return b.elementwise("affine", dy, {"scale": dict(node.attributes)["scale"], "shift": 0})


def _relu(b: Builder, node: Node, dy: Place, i: int) -> Place:
    """Where the output is not 0."""
    return pair(b, "keep", dy, _at(b, node.output))


def _linear(b: Builder, node: Node, dy: Place, i: int) -> Place:
    return lowered(b, torch.matmul, dy, b.tensors[node.parameters[0]])  # type: ignore[no-any-return]


def _product(b: Builder, node: Node, dy: Place, i: int) -> Place:
    """Of the left factor: dy times the right one transposed."""
    if i == 1:
        b.refuse("differentiates by the right factor of a product, which has no native form")
    settings = dict(node.attributes)
    settings["transposed_b"] = 1 - settings["transposed_b"]
    return b.emit("matmul", (dy, _at(b, node.inputs[1])), b.values[node.inputs[0]], (), settings)


def _moved(b: Builder, node: Node, dy: Place, i: int) -> Place | None:
    """The adjoint of a sparse map: each element of an input collects what the outputs took of it."""
    sizes = [math.prod(b.values[value]) for value in node.inputs]
    begin, form = sum(sizes[:i]), b.values[node.inputs[i]]
    terms = len(node.table) // math.prod(b.values[node.output])
    factors = node.factors or (1.0,) * len(node.table)
    taken: list[list[tuple[int, float]]] = [[] for _ in range(sizes[i])]
    for at, (source, factor) in enumerate(zip(node.table, factors, strict=True)):
        if begin <= source < begin + sizes[i]:
            taken[source - begin].append((at // terms, factor))
    most = max(map(len, taken))
    if not most:
        return None
    padded = [pairs + [(-1, 1.0)] * (most - len(pairs)) for pairs in taken]
    table = [at for pairs in padded for at, _ in pairs]
    scales = [factor for pairs in padded for _, factor in pairs] if node.factors else []
    return b.emit("sparse_map", (dy,), form, shape=form, table=table, factors=scales, says=f"adjoint of {node.says}")


def _reshaped(b: Builder, node: Node, dy: Place, i: int) -> Place:
    return _as_form(b, dy, b.values[node.inputs[0]])


def _summed(b: Builder, node: Node, dy: Place, i: int) -> Place:
    return _like_operand(b, node, dy if node.op == "add" or i == 0 else lowered(b, torch.neg, dy), i)


def _multiplied(b: Builder, node: Node, dy: Place, i: int) -> Place:
    return _like_operand(b, node, lowered(b, torch.mul, dy, _at(b, node.inputs[1 - i])), i)


def _divided(b: Builder, node: Node, dy: Place, i: int) -> Place:
    """1 / b, and -(a / b) / b."""
    each = lowered(b, torch.div, dy, _at(b, node.inputs[1]))
    if i == 1:
        each = lowered(b, torch.neg, lowered(b, torch.mul, each, _at(b, node.output)))
    return _like_operand(b, node, each, i)


def _like_operand(b: Builder, node: Node, each: Place, i: int) -> Place:
    """Summed over what was broadcast."""
    form, whole = b.values[node.inputs[i]], b.values[node.output]
    if len(whole) == 3:
        b.refuse(f"differentiates through {node.op} of images, which has no native form")
    if form[-1] != whole[-1]:
        each = lowered(b, torch.sum, each, -1, True)
    if math.prod(form[:-1]) != math.prod(whole[:-1]):
        each = lowered(b, torch.sum, each, -2, True)
    return _as_form(b, each, form)


def _kept(b: Builder, node: Node, dy: Place, i: int) -> Place | None:
    """What is kept, where it is; nothing by the mask."""
    if i == 1:
        return None
    return _like_operand(b, node, pair(b, "keep", dy, _at(b, node.inputs[1])), 0)


#: None is a cotangent of zeros.
RULES: dict[str, Callable[[Builder, Node, Place, int], Place | None]] = {
    "add": _summed,
    "affine": _affine,
    "divide": _divided,
    "flatten": _reshaped,
    "keep": _kept,
    "linear": _linear,
    "matmul": _product,
    "multiply": _multiplied,
    "relu": _relu,
    "sparse_map": _moved,
    "subtract": _summed,
}
