"""What forward sees in place of a tensor, of a shape and of the number of examples, while it is traced.

Whatever is the same for every number N of examples is what it is: ``x.shape[1]`` is an int, ``x.dtype`` a dtype. N is
none: code may hand it on, to ``view`` for instance, but nothing can be decided by it.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from metafast.model.builder import Batch, Place
from metafast.model.constant import Constant


class _Unknown:
    """What a node comes to that no handler knows."""


UNKNOWN = _Unknown()
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, type(None))


def is_plain(value: Any) -> bool:
    """Whether this is the same for every number of examples, and no tensor."""
    return isinstance(value, _PLAIN)


class TensorProxy(fx.Proxy):
    """A tensor.

    torch.fx records ``x += y`` as ``x = x + y``, which other names of x would not see, accepts attributes, has every
    attribute there is, and says that it is no Tensor to code that may decide by it."""

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.known(self.node)
        if name.startswith("__") or not isinstance(value, (Place, Tensor, Constant)):
            return super().__getattr__(name)
        if isinstance(value, Constant) and name in ("tolist", "item"):
            return getattr(value.tensor, name)
        if not hasattr(value if isinstance(value, Tensor) else Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        if callable(getattr(Tensor, name, None)):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "requires_grad" and value is True:
            self.tracer.create_proxy("call_method", "requires_grad_", (self,), {})
            return
        if name not in ("tracer", "node"):
            raise TypeError(f"assigns to the attribute {name} of a tensor")
        super().__setattr__(name, value)

    def __len__(self) -> int:
        self.tracer.refuse("asks for len() of a tensor where N cannot be told from a number; use size(0)")
        return 0

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What isinstance() asks."""
        return type(self) if _is_ours(_asking()) else self.type_in_torch()

    def type_in_torch(self) -> type:
        value = self.tracer.known(self.node)
        if value is UNKNOWN:
            self.tracer.refuse_unknown("asks for the type of what has no native form")
        return Tensor if isinstance(value, Place) else getattr(value, "type_in_torch", type(value))


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
    setattr(TensorProxy, f"__i{_name}__", _in_place(f"i{_name}"))


NEEDS_A_NUMBER = "decides by the number N of examples or counts with it (if, range, int), which a program does not fix"


class Count(fx.Proxy):
    """The number of examples, what is computed from it, and the sizes of a tensor whose shape is not known."""

    tracer: Any

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Count) and self._is_batch():
            value = self.tracer.known(self.node)
            if value == self.tracer.known(other.node):
                return True
        return self._refuse()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _is_batch(self) -> bool:
        return bool(isinstance(self.tracer.known(self.node), Batch))

    def _refuse(self, *_: Any) -> NoReturn:
        """Whatever needs a number."""
        if self.tracer.depends_on_batch(self.node):
            self.tracer.refuse(NEEDS_A_NUMBER)
        self.tracer.refuse_unknown("decides by the size of a tensor that has no native form")
        raise AssertionError("refused")

    def __index__(self) -> int:
        """Called by range(), and by torch, which then does without."""
        self.tracer.asked_for_index.add(self.node)
        raise TypeError(NEEDS_A_NUMBER)

    def __repr__(self) -> str:
        return repr(self.tracer.known(self.node)) if self._is_batch() else super().__repr__()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self) if _is_ours(_asking()) else self.type_in_torch()

    def type_in_torch(self) -> type:
        if not self._is_batch():
            self._refuse()
        return int


for _name in ("lt", "le", "gt", "ge", "bool", "int", "float", "hash", "len", "round", "trunc"):
    setattr(Count, f"__{_name}__", Count._refuse)


class Sizes(tuple[Any, ...]):
    """A torch.Size with N in it."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What isinstance() asks."""
        return torch.Size

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, item: Any) -> Any:
        part = super().__getitem__(item)
        return sizes(part) if isinstance(item, slice) else part


def sizes(values: Sequence[Any]) -> Any:
    return Sizes(values) if any(isinstance(value, fx.Proxy) for value in values) else torch.Size(values)


# ---- what code sees in place of builtins -----------------------------------------------------------------------------


def length(thing: Any) -> Any:
    """len(x) must return an int, which N is not."""
    if isinstance(thing, TensorProxy):
        return thing.tracer.create_proxy("call_function", len, (thing,), {})
    return len(thing)


class _OfType(type):
    """type(x) is what Python knows, type(...) of three arguments a class, and isinstance(x, type) as ever."""

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        if len(arguments) == 1 and isinstance(arguments[0], (TensorProxy, Count)):
            return arguments[0].type_in_torch()
        return type(*arguments, **keywords)

    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, type)

    def __subclasscheck__(cls, kind: Any) -> bool:
        return issubclass(kind, type)


class Type(type, metaclass=_OfType):
    pass


BUILTINS: dict[str, Any] = {"len": length, "type": Type}


def takes_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.zeros(N, 3)``, which torch does not hand to a proxy; it does ``torch.zeros((N, 3))``."""

    @functools.wraps(function)
    def made(*arguments: Any, **keywords: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, Count):
                return argument.tracer.create_proxy("call_function", function, (tuple(arguments),), keywords)
        return function(*arguments, **keywords)

    return made


def takes_proxies(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function written in Python that is one node of the graph. It is not the user's, as its module says."""

    @functools.wraps(function, assigned=("__name__", "__doc__"))
    def made(*arguments: Any, **keywords: Any) -> Any:
        for argument in _each((*arguments, *keywords.values())):
            if isinstance(argument, TensorProxy):
                return argument.tracer.create_proxy("call_function", function, arguments, keywords)
        return function(*arguments, **keywords)

    return made


def _each(arguments: Sequence[Any]) -> Iterator[Any]:
    """Arguments, and what stands in tuples and lists of such."""
    for argument in arguments:
        yield from argument if type(argument) in (tuple, list) else (argument,)


def makes_constants(tracer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes a tensor of numbers: in forward it is one node of the graph."""

    @functools.wraps(function)
    def made(*arguments: Any, **keywords: Any) -> Any:
        if tracer.is_not_forward() or _is_ours(sys._getframe(1)):
            return function(*arguments, **keywords)
        return tracer.create_proxy("call_function", function, arguments, keywords)

    return made


def _asking() -> FrameType:
    """The frame that asks for the type of a proxy, not those that ask on its behalf."""
    frame = sys._getframe(2)
    while frame.f_back and (frame.f_code is torch.is_tensor.__code__ or frame.f_code.co_name == "__instancecheck__"):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    """Whether this is code of torch, which knows what it does with a proxy, or of metafast."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("torch", "metafast")
