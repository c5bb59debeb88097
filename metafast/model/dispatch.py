"""A call of a traced graph, handed to the handler that stands for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from metafast.model.builder import Batch, Builder, Place, form_of
from metafast.model.constant import Constant, any_of, folded
from metafast.model.layers import FUNCTIONS, METHODS, MODULES, POINTWISE
from metafast.model.layers.indexing import Examples
from metafast.model.layers.norms import OF_ROWS
from metafast.model.layers.pairs import PAIRS
from metafast.model.layers.sequences import Packed
from metafast.model.layers.table import KNOW_CONSTANTS, KNOW_MERGED
from metafast.model.program import shared_values

#: What is called, resolved: a module, a function, or the name of a method. Returns what the call returns.
Evaluate = Callable[[Builder, Any, Sequence[Any], dict[str, Any]], Any]

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
    merged = [each for each in (*arguments, *keywords.values()) if isinstance(each, Place) and each.merged]
    if merged and target not in KNOW_MERGED:
        return _by_rows(b, merged, target, arguments, keywords)
    return _evaluate(b, target, arguments, keywords)


def _by_rows(b: Builder, merged: list[Place], target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """A function of tensors [N * rows, *rest], as that of tensors [N, rows, *rest], which is the same to what works on
    each element or row alone."""
    first, shape = len(b.nodes), merged[0].shape
    try:
        for place in merged:
            place.merged = False
        result = _evaluate(b, target, arguments, keywords)
    finally:
        for place in merged:
            place.merged = True
    others = [each for each in (*arguments, *keywords.values()) if isinstance(each, (Place, Tensor))]
    fit = all(each.shape == shape if each in merged else len(each.shape) < len(shape) for each in others)
    rank = len(shape) + any(node.op == "embedding" for node in b.nodes[first:])
    right = isinstance(result, Place) and len(result.shape) == rank and result.shape[0] == shape[0]
    common = shared_values(b.nodes)
    for node in b.nodes[first:]:
        of_rows = node.op in OF_ROWS and b.values[node.output] == form_of(shape)
        of_rows |= node.op == "matmul" and (node.inputs[0] in common, node.inputs[1] in common) == (False, True)
        right &= node.op in (*POINTWISE, *PAIRS, "linear", "parameter", "embedding") or of_rows
        right &= (fit or node.op not in PAIRS) and (len(shape) > 1 or node.op not in ("linear", *OF_ROWS))
    if not right:
        b.refuse(f"works on {Batch(shape[0])} rows, which is native for layers that work on each row alone")
    result.merged = True
    return result


def _evaluate(b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    if isinstance(target, nn.Module):
        return _call_module(b, target, [*arguments], keywords)
    if isinstance(target, type) and hasattr(target, "_make"):  # a named tuple, among what is returned
        return target(*arguments, **keywords)
    method = isinstance(target, str)
    handler = METHODS.get(target) if method else FUNCTIONS.get(target)
    b.subject = f"{_written(target)} in {b.subject}"
    if handler is None:
        b.refuse("has no native form")
    given = (*arguments, *keywords.values())
    if any_of(Constant, given):
        if not any_of((Place, Tensor, Batch, Examples), given):
            return _fold(b, target, arguments, keywords)
        if target not in KNOW_CONSTANTS:
            arguments = [b.place(each) if isinstance(each, Constant) else each for each in arguments]
    return b.apply(handler, arguments, keywords)


def _fold(b: Builder, target: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """A function of constants alone, which torch computes."""
    function = getattr(Tensor, target) if isinstance(target, str) else target
    name = getattr(function, "__name__", "")
    writes = name.endswith("_") or (_OPERATORS.get(target, "").endswith("=") and name not in _TESTS)
    if writes or "dropout" in name:
        b.refuse("changes a constant in place, or draws, which has no native form")
    try:
        return folded(function, arguments, keywords)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        b.refuse(f"fails in torch: {(str(error).splitlines() or [type(error).__name__])[0]}")


#: Operators that are written with "=" and write nothing.
_TESTS = ("eq", "ne", "le", "ge")


def _call_module(b: Builder, module: nn.Module, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    if type(module) not in MODULES:
        base = next((t.__name__ for t in MODULES if isinstance(module, t)), None)
        b.refuse(
            "has no native form"
            if base is None
            else f"is a subclass of {base}, which may compute something else; native is {base} itself"
        )
    if not arguments and keywords:  # the first is the input, whatever its name
        first, *others = keywords.items()
        arguments, keywords = [first[1]], dict(others)
    if not arguments:
        b.refuse("is called without an input")
    input = b.place(arguments[0]) if isinstance(arguments[0], Tensor) else arguments[0]
    known = isinstance(input, Packed) and isinstance(module, nn.RNNBase)
    if not known and not (isinstance(input, Constant) and isinstance(module, nn.Embedding)):
        b.read(b.first(input) if isinstance(input, Place) else input)
    return b.apply(MODULES[type(module)], [module, input, *arguments[1:]], keywords)
