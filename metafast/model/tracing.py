"""A module's forward as a torch.fx graph, or the reason why a graph would not mean the same.

Tracing runs the model's Python code once; what it does must be what it will do every time. A decision taken from
data, a random number, a gradient mode switched inside forward, a custom autograd function or an attribute that
forward changes cannot be seen in the graph, so each is refused here.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from metafast import transforms
from metafast.model.builder import Unsupported
from metafast.model.layers import MODULES
from metafast.tracking import draws
from metafast.tracking.reads import Reads, Undone
from metafast.tracking.snapshot import GLOBAL_HOOKS, HOOKS, Snapshot

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
#: torch.fx patches nn.Module while it traces, so one trace at a time.
_LOCK = threading.RLock()


def is_leaf(module: nn.Module) -> bool:
    """torch's own layers, and subclasses of those with a native form, are not looked into."""
    return isinstance(module, tuple(MODULES)) or (
        type(module).__module__.startswith("torch.")
        and not isinstance(module, _CONTAINERS)
        and not transforms.is_compiled(module)
    )


def trace(model: nn.Module, reads: Reads | None = None) -> fx.Graph:
    """The graph of ``model(x)``. Nodes name modules, parameters and buffers as the model does ("" is the model), and
    ``node.meta["where"]`` names the module that the code of a node belongs to. ``reads`` notes what the code depends
    on. No random number is drawn: code that is about to draw one is refused. Raises :class:`Unsupported`."""
    reads = Reads(model) if reads is None else reads
    graph = _trace_once(model, reads)
    if reads.watch.changed():  # as a cache does that is filled at its first use
        reads.forget()
        graph = _trace_once(model, reads)
        if reads.watch.changed():
            raise Unsupported("", f"{type(model).__name__} changes global variables in forward")
    return graph


def _trace_once(model: nn.Module, reads: Reads) -> fx.Graph:
    _refuse_hooks(model)
    drawn: list[str] = []  # should the model's code catch what is raised

    def refuse(name: str) -> None:
        raise Unsupported("", f"{type(model).__name__} draws random numbers in forward ({name})")

    def about_to_draw(name: str) -> None:
        drawn.append(name)
        refuse(name)

    with _LOCK, torch.enable_grad(), _builtins_for_proxies(model):
        before, undone = Snapshot(model, ()), Undone(model)
        tracer = _Tracer(model)
        changed = False
        try:
            with draws.private(drawn.append), undone, reads.recording(about_to_draw):
                try:
                    graph = tracer.trace(_Root(model))
                finally:
                    changed = not before.is_unchanged()
        except Unsupported:
            raise
        except Exception as error:  # whatever the user's code raises when it meets a proxy
            raise tracer.unsupported(f"cannot be traced: {_in_words(error)}") from error
        if drawn:
            refuse(drawn[0])
        if changed or undone.changes:
            raise Unsupported("", f"{type(model).__name__} changes attributes of its modules in forward")
        return graph


def _in_words(error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, fx.proxy.TraceError):
        return (
            f"its code may take another way for other values of a tensor (if, while, for, assert); torch.fx: {reason}"
        )
    return f"{type(error).__name__} {reason}" if isinstance(error, KeyError) else reason or type(error).__name__


def _refuse_hooks(model: nn.Module) -> None:
    if any(GLOBAL_HOOKS):
        raise Unsupported("", "hooks are registered for all modules, and the native engine would not run them")
    for name, module in model.named_modules():
        for hooks in HOOKS:
            if getattr(module, hooks):
                kind = hooks.strip("_").replace("_", " ")
                raise Unsupported(name, f"{type(module).__name__} has {kind}, which the native engine would not run")
        if parametrize.is_parametrized(module):
            raise Unsupported(name, f"{type(module).__name__} has a parametrization, which has no native form")


class _Root(nn.Module):
    """Calls the model as a user does, with defaults for its other arguments, and lets the model itself be a leaf."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Proxy(fx.Proxy):
    """torch.fx records ``x += y`` as ``x = x + y``, which other names of x would not see, accepts attributes, and says
    that it is no Tensor to code that may decide by it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise TypeError(f"assigns to the attribute {name} of a tensor")
        super().__setattr__(name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What isinstance() asks. Code that has an isinstance of ours (see below) asks only through functions of
        torch in C; torch.fx knows what it does; whoever else asks may be about to decide by the answer."""
        caller = sys._getframe(1)
        scope = caller.f_globals
        package = str(scope.get("__name__")).partition(".")[0]
        known = package in ("torch", "metafast") and caller.f_code is not torch.is_tensor.__code__
        if known or scope.get("isinstance") is _is_instance:
            return type(self)
        raise TypeError(f"{caller.f_code.co_name} asks for the type of a tensor")


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    setattr(_Proxy, f"__i{_name}__", _in_place(f"i{_name}"))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.tensors: dict[int, str] = {id(t): n for n, t in (*model.named_buffers(), *model.named_parameters())}
        self.thread = threading.get_ident()
        self.inside: list[nn.Module] = [model]
        self.modes = _modes()

    def unsupported(self, reason: str) -> Unsupported:
        module = self.inside[-1]
        return Unsupported(self.names.get(module, ""), f"{type(module).__name__} {reason}")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def path_of_module(self, mod: nn.Module) -> str:
        if mod not in self.names:
            raise self.unsupported(
                f"calls a {type(mod).__name__} that is not registered as a submodule; give it an attribute in __init__"
            )
        return self.names[mod]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:  # torch.fx has patched nn.Module for all threads
            return forward(*args, **kwargs)
        self.inside.append(m)
        if transforms.is_compiled(m):  # compiled code hides what it does: run what it was made from
            result = transforms.original(m)(*args, **kwargs)
        else:
            if m._compiled_call_impl is not None:
                forward = m._call_impl
            result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # an exception leaves it, to name the module
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self.thread or id(attr_val) not in self.tensors:
            return attr_val
        return self.create_proxy("get_attr", self.tensors[id(attr_val)], (), {})

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            if id(a) not in self.tensors:
                raise self.unsupported(
                    "uses a tensor that is not computed from the input, nor a parameter or buffer; register_buffer() "
                    "makes it one"
                )
            return self.create_node("get_attr", self.tensors[id(a)], (), {})
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, *rest: Any, **keywords: Any) -> fx.Node:
        if _modes() != self.modes:
            raise self.unsupported("runs under no_grad, autocast or a custom autograd function")
        node = super().create_node(kind, target, *rest, **keywords)
        module = self.inside[-1]
        node.meta["where"] = self.names[module]
        node.meta["type"] = type(module).__name__
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _modes() -> tuple[bool, ...]:
    """What changes the meaning of an operation without being part of it."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _length(thing: Any) -> Any:
    """len(x) must return an int, which a proxy cannot."""
    if isinstance(thing, fx.Proxy):
        return thing.tracer.create_proxy("call_function", len, (thing,), {})
    return len(thing)


def _is_instance(thing: Any, kind: Any) -> bool:
    if not isinstance(thing, fx.Proxy):
        return isinstance(thing, kind)
    if thing.node.target in _OF_SIZES:
        raise TypeError("asks for the type of a size")
    return isinstance(_A_TENSOR, kind)


#: What gives sizes, if it has a native form.
_OF_SIZES = (getattr, len, operator.getitem, "size", "dim", "ndimension")
_A_TENSOR = torch.empty(0)
_BUILTINS: dict[str, Any] = {"len": _length, "isinstance": _is_instance}


@contextmanager
def _builtins_for_proxies(model: nn.Module) -> Iterator[None]:
    """The code of forward sees functions of ours instead of builtins; so does torch.fx.wrap for the whole process."""
    patched: list[tuple[dict[str, Any], str]] = []
    for module in model.modules():
        scope = getattr(type(module).forward, "__globals__", {"__name__": "torch"})
        if str(scope.get("__name__")).partition(".")[0] != "torch":
            for name in _BUILTINS.keys() - scope.keys():
                scope[name] = _BUILTINS[name]
                patched.append((scope, name))
    try:
        yield
    finally:
        for scope, name in patched:
            del scope[name]
