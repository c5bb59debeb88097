"""What torch's transforms of functions may do with a learner, and with a model that they have been through already.

Every way into an engine is an :func:`entry`. ``torch.compile`` breaks its graph there and runs the call as it stands;
``torch.func.grad`` and ``vjp`` differentiate the torch engine; what cannot be right is refused in words: the other
transforms of :mod:`torch.func`, ``torch.jit`` and ``torch.export``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import nn

from metafast.tracking.snapshot import HOOKS

P = ParamSpec("P")
R = TypeVar("R")

is_compiling = torch.compiler.is_compiling
#: Whether a transform of torch.func is being applied, in this thread.
active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_traced: Callable[[], bool] = torch._C._is_tracing

_WITHOUT = {
    "Vmap": (
        "torch.func.vmap (nor jacfwd or hessian, which use it)",
        "it has a task axis of its own: pass all tasks at once, inputs [T, N, *example]",
    ),
    "Jvp": (
        "torch.func.jvp (nor jacfwd or hessian, which use it)",
        "it has no forward-mode derivative: use torch.autograd.grad, or metafast.hvp for Hessian-vector products",
    ),
    "Functionalize": ("torch.func.functionalize", "call it outside"),
}


def entry(name: str, differentiable: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function that runs an engine and that errors call ``name``.

    If its result carries no graph, ``differentiable`` says whose does.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def entered(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_compiling():  # true for the compiler, which reads this line instead of running it
                return _outside(name, function, args, kwargs)
            if active() or _is_traced():
                _check(name, differentiable)
            return function(*args, **kwargs)

        return entered

    return decorate


def backward(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates the backward of an engine, which autograd calls where the compiler may still be looking."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_compiling():
            return _outside("metafast's backward", function, args, kwargs)
        return function(*args, **kwargs)

    return called


def _outside(name: str, function: Callable[..., R], args: tuple[Any, ...], keywords: dict[str, Any]) -> R:
    """The call, before and after which the compiler's graph ends."""
    # The compiler takes seconds to import, and is there by now: it imports while it traces.
    from metafast.transforms import graph_break

    result: R = graph_break.call(name, function, args, keywords)
    return result


def _check(name: str, differentiable: str) -> None:
    """Raise RuntimeError, which names the transform, where a call would not mean what it says."""
    if _is_traced():
        refuse(name, "torch.jit.trace", "a trace would keep the results of this call; trace the model instead")
    kinds = {level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()}
    for kind, (transform, remedy) in _WITHOUT.items():
        if kind in kinds:
            refuse(name, transform, remedy)
    if differentiable:
        refuse(name, "torch.func.grad", f"its result is not differentiable, {differentiable}")


def refuse(name: str, transform: str, remedy: str) -> NoReturn:
    raise RuntimeError(f"{name} cannot run under {transform}: {remedy}")


def refuse_natively() -> None:
    """What the native engine says to a transform that :func:`entry` lets through."""
    if active():
        refuse(
            "metafast's native engine",
            "torch.func.grad, vjp or jacrev",
            'use torch.autograd.grad or backward(), or make the learner with backend="torch"',
        )


def leaves() -> AbstractContextManager[None]:
    """Where a tensor may be made to require a gradient although torch.func.grad is being applied: inner gradients are
    taken within one call, and torch.func forbids only what would be seen outside."""
    if not active():
        return nullcontext()
    from torch._functorch.eager_transforms import enable_inplace_requires_grad

    allowed: AbstractContextManager[None] = enable_inplace_requires_grad(True)
    return allowed


# ---- Models that have been through a transform -----------------------------------------------------------------------
def original(model: Any) -> Any:
    """The module that ``torch.compile(module)`` stands for, any other thing itself, hooks of its own included."""
    while is_compiled(model) and not any(getattr(model, hooks) for hooks in HOOKS):
        model = model._orig_mod
    return model


def is_compiled(module: Any) -> bool:
    """Is this what torch.compile returns for a module? Where the compiler is not imported, nothing is."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


@contextmanager
def as_written(module: nn.Module) -> Iterator[None]:
    """Where the module runs as it is written, be it compiled or in part: what torch.compile makes has no second
    derivative."""
    if "torch._dynamo.eval_frame" not in sys.modules or not any(map(_has_compiled_code, module.modules())):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _has_compiled_code(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or is_compiled(module)


def refuse_scripted(model: nn.Module) -> None:
    """Raise TypeError if the model or a part of it is TorchScript, in which no tensor can be replaced by a task's."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model{'.' + name if name else ''} is made by torch.jit ({type(module).__name__}), whose parameters "
                "cannot be replaced by those of a task; pass the nn.Module that it was made from"
            )
