"""A loss of the user's own, which may read more than the output and the target that it is given.

``lambda o, y: F.mse_loss(o, y) + 0.1 * sum(p.square().sum() for p in model.parameters())`` means the parameters that
the inner loop has reached. So such a loss runs where the model holds the parameters of its task, right after the
model's forward pass for that task, whose traces (``model.last_hidden``) it may read as well.
"""

from __future__ import annotations

import builtins
import dis
import functools
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from metafast.tracking.snapshot import HOOKS

#: Builtins by which a function reaches what its code does not name.
_REACHING = frozenset({"eval", "exec", "globals", "locals", "vars", "getattr", "compile", "__import__"})


def sees_only_arguments(loss: Any) -> bool:
    """Whether the loss can be proved to read nothing but its arguments, constants and torch.

    Then all tasks may run at once. In doubt False: one task after another is right for any loss.
    """
    return _is_closed(loss, set())


def _is_closed(thing: Any, seen: set[int]) -> bool:
    if id(thing) in seen:
        return True
    seen.add(id(thing))
    if isinstance(thing, functools.partial):
        given = (*thing.args, *thing.keywords.values())
        constants = [part is None or (isinstance(part, Tensor) and not part.requires_grad) for part in given]
        closed = [constant or _is_closed(part, seen) for part, constant in zip(given, constants, strict=True)]
        return _is_closed(thing.func, seen) and all(closed)
    if isinstance(thing, FunctionType):
        return _is_torchs(thing.__module__) or _is_closed_function(thing, seen)
    if isinstance(thing, BuiltinFunctionType):  # with the class or module that it belongs to; a method has its object
        return isinstance(thing.__self__, (type, ModuleType)) and thing.__name__ not in _REACHING
    if isinstance(thing, nn.Module):
        own = [*thing.children(), *thing.parameters(), *(hook for hooks in HOOKS for hook in getattr(thing, hooks))]
        return _is_torchs(type(thing).__module__) and "forward" not in vars(thing) and not own
    if isinstance(thing, ModuleType):
        return _is_torchs(thing.__name__) or thing.__name__ == "math"
    return isinstance(thing, (bool, int, float, str)) or (isinstance(thing, type) and _is_torchs(thing.__module__))


def _is_torchs(module: Any) -> bool:
    return str(module).partition(".")[0] == "torch"


def _is_closed_function(function: FunctionType, seen: set[int]) -> bool:
    try:
        held = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a variable without a value yet
        return False
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for instruction in _instructions(function.__code__):
        if instruction.opname == "IMPORT_NAME":
            return False
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            name = instruction.argval
            if name in function.__globals__:
                held.append(function.__globals__[name])
            elif name in _REACHING or not hasattr(builtins, name):
                return False
    return not vars(function) and all(_is_closed(thing, seen) for thing in held)


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def checked(loss: Any, value: Any) -> Tensor:
    """What a loss returned, if that is one number."""
    if not isinstance(value, Tensor) or value.ndim:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{_called(loss)} must return one number, the mean over a task's examples; it returned {got}")
    return value


def stand_in(value: Tensor, own: Tensor) -> Tensor:
    """``value`` as a tensor of its own that requires grad if the model's ``own`` parameter does, and has the attributes
    that the user gave to that."""
    if value is own or not isinstance(own, nn.Parameter):
        return value
    value = value.detach().requires_grad_() if own.requires_grad and not value.requires_grad else value.view_as(value)
    vars(value).update(vars(own))
    return value


def mark(stand_ins: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    """Make isinstance(p, nn.Parameter) true. Not while the model runs: an attribute that it assigns is no parameter."""
    for value, parameter in zip(stand_ins, own, strict=True):
        if value is not parameter and isinstance(parameter, nn.Parameter):
            vars(value)["_is_param"] = True


def refuse_captured(loss: Any, value: Tensor, output: Tensor, named: Sequence[tuple[str, Tensor, Tensor]]) -> None:
    """Raise ValueError if the loss reads a parameter of the model only as a tensor that it took from there earlier.

    Such a tensor keeps the initial value throughout the inner loop, where the loss would have no gradient of it. One
    that is read together with the parameter's current value is meant: a distance from the initial value.

    Args:
        named: a parameter's name, the model's own tensor, and the one that the model held when the loss ran.
    """
    own = {id(tensor): name for name, tensor, current in named if tensor is not current}
    ends = {output.grad_fn: ""} | {current.grad_fn or current: name for name, _, current in named}
    current, initial = set(), set()
    seen, pending = set(), [value.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of a leaf
        if node in ends:
            current.add(ends[node])
        elif variable is not None and variable in ends:
            current.add(ends[variable])
        elif variable is None:
            pending += [following for following, _ in node.next_functions]
        elif id(variable) in own:
            initial.add(own[id(variable)])
    if stale := sorted(initial - current):
        raise ValueError(
            f"{_called(loss)} reads {', '.join(map(repr, stale))} from tensors that were taken from the model before "
            "the loss was called. They keep their initial values while the inner loop moves the model's; read the "
            "parameters inside the loss, from the model: for p in model.parameters()"
        )


def _called(loss: Any) -> str:
    return f"loss {getattr(loss, '__name__', type(loss).__name__)}"
