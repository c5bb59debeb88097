"""A module's forward as a torch.fx graph, or the reason why a graph would not mean the same.

Tracing runs the model's Python code once; what it does must be what it will do every time for inputs of this shape,
whatever their number. A decision taken from data or from the number of examples, a random number, a gradient mode
switched inside forward, a custom autograd function or an attribute that forward changes cannot be seen in the graph,
so each is refused here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, rnn

from metafast import transforms
from metafast.model.builder import Builder, Place, Unsupported
from metafast.model.constant import Constant
from metafast.model.inputs import Inputs
from metafast.model.known import Known, is_size
from metafast.model.layers import MODULES
from metafast.model.proxies import (
    BUILTINS,
    NEEDS_A_NUMBER,
    UNKNOWN,
    Count,
    Sizes,
    TensorProxy,
    is_plain,
    makes_constants,
    sizes,
    takes_proxies,
    takes_sizes,
)
from metafast.model.several import strange
from metafast.tracking import draws
from metafast.tracking.reads import Reads, Undone
from metafast.tracking.snapshot import GLOBAL_HOOKS, HOOKS, Snapshot
from metafast.tracking.watch import is_fixed

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
#: torch.fx patches nn.Module while it traces, so one trace at a time.
_LOCK = threading.RLock()


def is_leaf(module: nn.Module) -> bool:
    """torch's own layers, and subclasses of those with a native form, are not looked into; those with parameters that
    are computed from others are."""
    if parametrize.is_parametrized(module) or type(module).__module__.startswith("torch.nn.utils.parametri"):
        return False
    return isinstance(module, tuple(MODULES)) or (
        type(module).__module__.startswith("torch.")
        and not isinstance(module, _CONTAINERS)
        and not transforms.is_compiled(module)
    )


class Head(Protocol):
    """What is made of a model's outputs and the last of its inputs, which it does not see itself: the targets."""

    @property
    def takes(self) -> int: ...

    def __call__(self, outputs: Any, targets: Sequence[Any]) -> Any: ...


class Trace(NamedTuple):
    graph: fx.Graph
    builder: Builder | None
    values: Mapping[fx.Node, Any]  # what nodes come to by this builder; not those that have no native form


def trace(
    model: nn.Module,
    build: Callable[[], Builder | None],
    reads: Reads | None = None,
    inputs: Inputs | None = None,
    head: Head | None = None,
) -> Trace:
    """The graph of ``model(x)``, or of ``model(*x)`` for several ``inputs`` in one tensor, for any number N of
    examples, of the shape that a new builder has for its input; with none, forward cannot decide by shapes. Nodes name
    modules, parameters and buffers as the model does ("" is the model), and ``node.meta["where"]`` names the module
    that the code of a node belongs to. ``reads`` notes what the code depends on. No random number is drawn: code that
    is about to draw one is refused. Raises :class:`Unsupported`."""
    reads = Reads(model) if reads is None else reads
    traced = _trace_once(model, build(), reads, inputs, head)
    if reads.watch.changed():  # as a cache does that is filled at its first use
        reads.forget()
        traced = _trace_once(model, build(), reads, inputs, head)
        if reads.watch.changed():
            raise Unsupported("", f"{type(model).__name__} changes global variables in forward")
    return traced


def _trace_once(
    model: nn.Module, builder: Builder | None, reads: Reads, inputs: Inputs | None, head: Head | None
) -> Trace:
    _refuse_hooks(model)
    drawn: list[str] = []  # should the model's code catch what is raised

    def refuse(name: str) -> None:
        raise Unsupported("", f"{type(model).__name__} draws random numbers in forward ({name})")

    def about_to_draw(name: str) -> None:
        drawn.append(name)
        refuse(name)

    known = Known(model, builder)
    with torch.enable_grad():  # as the code is run that it traces
        tracer = _Tracer(model, known)
    with _LOCK, torch.enable_grad(), _for_proxies(tracer if builder else None) as enters:
        before, undone = Snapshot(model, ()), Undone(model)
        changed = False
        try:
            with draws.private(drawn.append), undone, reads.recording(about_to_draw, enters):
                try:
                    with _parameters_as_proxies(tracer):
                        graph = tracer.trace(_Root(model, inputs, head))
                finally:
                    changed = not before.is_unchanged()
        except Unsupported:
            raise
        except Exception as error:  # whatever the user's code raises when it meets a proxy
            raise tracer.refusal or tracer.unsupported(_in_words(error)) from error
        if drawn:
            refuse(drawn[0])
        if tracer.refusal or tracer.asked_for_index:
            raise tracer.refusal or tracer.unsupported(NEEDS_A_NUMBER)
        if changed or undone.changes:
            raise Unsupported("", f"{type(model).__name__} changes attributes of its modules in forward")
        known.drop_unused_sizes(graph)
        return Trace(graph, builder, known.values)


def _in_words(error: Exception) -> str:
    if error.args == (NEEDS_A_NUMBER,):
        return NEEDS_A_NUMBER
    reason = (str(error).splitlines() or [""])[0]
    name = type(error).__name__
    return f"cannot be traced: {f'{name} {reason}' if isinstance(error, KeyError) else reason or name}"


def _refuse_hooks(model: nn.Module) -> None:
    if any(GLOBAL_HOOKS):
        raise Unsupported("", "hooks are registered for all modules, and the native engine would not run them")
    for name, module in model.named_modules():
        for hooks in HOOKS:
            if getattr(module, hooks):
                kind = hooks.strip("_").replace("_", " ")
                raise Unsupported(name, f"{type(module).__name__} has {kind}, which the native engine would not run")


class _Root(nn.Module):
    """Calls the model as a user does, with defaults for its other arguments, and lets the model itself be a leaf."""

    def __init__(self, model: nn.Module, inputs: Inputs | None, head: Head | None) -> None:
        super().__init__()
        self.model, self.inputs, self.head = model, inputs, head

    def forward(self, x: Any) -> Any:
        given = [x] if self.inputs is None else [*self.inputs.unpack(x)]
        own = len(given) - (0 if self.head is None else self.head.takes)
        outputs = self.model(*given[:own])
        if kind := strange(outputs):
            x.tracer.refuse(f"returns {kind}; native are tensors, and tuples, lists and dicts of such")
        return outputs if self.head is None else self.head(outputs, given[own:])


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module, known: Known) -> None:
        super().__init__()
        self.model = model
        self.refusal: Unsupported | None = None  # should the model's code catch it
        self.asked_for_index: set[fx.Node] = set()  # not by torch
        self._known = known
        self.names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.tensors: dict[int, str] = {id(t): n for n, t in (*model.named_buffers(), *model.named_parameters())}
        self.thread = threading.get_ident()
        self.inside: list[nn.Module] = [model]
        self.modes = _modes()
        self.in_head = False  # code that is not the model's own: it may hold parameters that follow nothing

    def unsupported(self, reason: str) -> Unsupported:
        where, kind = self.written_in()
        return Unsupported(where, f"{kind} {reason}")

    def written_in(self) -> tuple[str, str]:
        """Whose code is being traced: the name and type of a module, or the loss."""
        module = self.inside[-1]
        if self.in_head and module is self.model:
            return "loss", "the function"
        return self.names.get(module, ""), type(module).__name__

    def enter_head(self) -> None:
        """What follows is a loss, whose code is not the model's own."""
        self.in_head = True
        if self._known.builder is not None:
            self._known.builder.in_loss = True

    # ---- what proxies ask ----------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> NoReturn:
        self.refusal = self.refusal or self.unsupported(reason)
        raise self.refusal

    def refuse_unknown(self, reason: str) -> NoReturn:
        """Where only an operation without native form keeps something from being known, that is the reason."""
        self.refusal = self.refusal or self._known.unsupported
        self.refuse(reason)

    def known(self, node: fx.Node) -> Any:
        """A Place, a parameter or buffer, BATCH, a tuple of such things, or UNKNOWN."""
        return self._known.values.get(node, UNKNOWN)

    def depends_on_batch(self, node: fx.Node) -> bool:
        return self._known.depends_on_batch(node)

    def to_bool(self, obj: fx.Proxy) -> NoReturn:
        self.refuse("cannot be traced: its code may take another way for other values of a tensor (if, while, assert)")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """``for row in x``, which torch takes for ``x.unbind()``; a row may be an example."""
        value = self.known(obj.node)
        if isinstance(value, (Tensor, Constant)) or (isinstance(value, Place) and (value.shared or value.axis)):
            rows = self.create_proxy("call_function", torch.unbind, (obj,), {})
            if isinstance(rows, tuple):
                return iter(rows)
        return self.refuse("cannot be traced: it iterates over a tensor")

    # ---- what torch.fx asks --------------------------------------------------------------------------------------

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
        if self.is_not_forward():
            return forward(*args, **kwargs)
        if m not in self.names and self._owns_nothing(m):  # Sequential(*self.layers), ReLU()
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

    def _owns_nothing(self, module: nn.Module) -> bool:
        own = (tensors for m in module.modules() for tensors in (m._parameters, m._buffers))  # not as proxies
        return all(t is None or id(t) in self.tensors for tensors in own for t in tensors.values())

    def is_not_forward(self) -> bool:
        """torch.fx has patched nn.Module for all threads, and for the handlers of layers."""
        return threading.get_ident() != self.thread or self._known.evaluating

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if self.is_not_forward() or id(attr_val) not in self.tensors:
            return attr_val
        return self.create_proxy("get_attr", self.tensors[id(attr_val)], (), {})

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if type(a) is Sizes:
            return super().create_arg(tuple(a))
        if isinstance(a, Tensor):
            if id(a) not in self.tensors:
                raise self.unsupported(
                    "uses a tensor that is not computed from the input, nor a parameter or buffer; register_buffer() "
                    "makes it one"
                )
            if self.in_head:
                raise self.unsupported(f"reads {self.tensors[id(a)]!r} from a tensor that was taken from it beforehand")
            return self.create_node("get_attr", self.tensors[id(a)], (), {})
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, *rest: Any, **keywords: Any) -> fx.Node:
        if _modes() != self.modes:
            raise self.unsupported("runs under no_grad, autocast or a custom autograd function")
        node = super().create_node(kind, target, *rest, **keywords)
        self.asked_for_index.difference_update(node.all_input_nodes)
        node.meta["where"], node.meta["type"] = self.written_in()
        self._known.note(node)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Count(node, self) if self._known.is_count(node) else TensorProxy(node, self)

    def create_proxy(self, kind: str, *rest: Any, **keywords: Any) -> Any:
        """Numbers that are the same for every N are no proxies, nor are shapes and tuples of tensors."""
        proxy: Any = super().create_proxy(kind, *rest, **keywords)
        value = self.known(proxy.node)
        if isinstance(value, tuple):
            parts = [each if is_plain(each) else proxy[i] for i, each in enumerate(value)]
            if is_size(value):
                return sizes(parts)
            return type(value)._make(parts) if hasattr(value, "_make") else tuple(parts)
        if is_plain(value):
            self.graph.erase_node(proxy.node)
            return value
        return proxy


@contextmanager
def _parameters_as_proxies(tracer: _Tracer) -> Iterator[None]:
    """What code gets from ``model.parameters()`` while it is traced is part of the graph, as attributes are."""
    own = nn.Module.named_parameters

    def named(self: nn.Module, *arguments: Any, **keywords: Any) -> Iterator[tuple[str, Any]]:
        for name, parameter in own(self, *arguments, **keywords):
            known = None if tracer.is_not_forward() else tracer.tensors.get(id(parameter))
            yield name, parameter if known is None else tracer.create_proxy("get_attr", known, (), {})

    nn.Module.named_parameters = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.named_parameters = own  # type: ignore[method-assign]


def _modes() -> tuple[bool, ...]:
    """What changes the meaning of an operation without being part of it."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


@contextmanager
def _for_proxies(tracer: _Tracer | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Code sees builtins of ours in the global variables that the function is given, functions of torch take N for a
    size, some take proxies, and what a ``tracer`` makes of numbers is in its graph; so does torch.fx.wrap for the whole
    process."""
    functions = rnn.pack_padded_sequence, rnn.pad_packed_sequence, torch.autograd.grad
    ours = {id(function): takes_proxies(function) for function in functions}
    patched: list[tuple[dict[str, Any], str, Any]] = []
    entered: set[int] = set()

    def enter(scope: dict[str, Any]) -> None:
        if is_fixed(scope.get("__name__")) or id(scope) in entered:
            return
        entered.add(id(scope))
        new = {name: BUILTINS[name] for name in BUILTINS.keys() - scope.keys()}
        new |= {name: ours[id(value)] for name, value in scope.items() if id(value) in ours}
        patch(scope, new)

    def patch(scope: dict[str, Any], new: dict[str, Any]) -> None:
        patched.extend((scope, name, scope.get(name)) for name in new)
        scope.update(new)

    try:
        patch(vars(torch), {name: takes_sizes(getattr(torch, name)) for name in ("zeros", "ones")})
        patch(vars(torch), {"where": takes_proxies(torch.where)})  # with a number it kills the process
        if tracer is not None:
            patch(vars(torch), {"arange": makes_constants(tracer, torch.arange)})
        for module in (rnn, torch.autograd):
            scope = vars(module)
            patch(scope, {name: ours[id(value)] for name, value in scope.items() if id(value) in ours})
        yield enter
    finally:
        for scope, name, value in patched:
            if value is None:
                del scope[name]
            else:
                scope[name] = value
