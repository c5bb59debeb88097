"""Random numbers drawn while a model is planned: noticed, and never taken from a generator that others use.

The generators of torch, of Python's ``random`` and of ``numpy.random`` belong to the whole process. Other threads draw
from them at any time, so nothing here saves, rewinds or compares them. torch's draws are seen by a dispatch mode, which
acts on this thread alone. The functions in numpy's and Python's modules have no such thing: while a model is planned
others stand in their place, which do nothing special for other threads. What a module does while it is imported happens
once in a process, whoever is the first to need it: such draws are those of the module, and stay as they are.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: One thread at a time puts functions into modules and takes them out again.
_LOCK = threading.RLock()
_SEEDED = torch.Tag.nondeterministic_seeded
#: Arguments of fused operations that take no generator; at zero, nothing is drawn.
_PROBABILITIES = ("p", "dropout_p", "dropout")


def imports_begin() -> Callable[[], bool]:
    """A function that says whether this thread is importing a module now; imports under way already do not count."""

    def depth() -> int:
        frame: FrameType | None = sys._getframe(1)
        found = 0
        while frame is not None:
            found += frame.f_code.co_filename == "<frozen importlib._bootstrap>"
            frame = frame.f_back
        return found

    before = depth()
    return lambda: depth() > before


class _Random(random.Random):
    """Told from those of users by its type."""


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation that this thread runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's guard would import the whole compiler, which takes seconds


class _Private(Mode):  # type: ignore[no-untyped-call]
    """Draws come from a generator of this mode's own."""

    def __init__(self, note: Callable[[str], Any]) -> None:
        super().__init__()
        self._note = note
        self._importing = imports_begin()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _SEEDED not in func.tags or self._importing():
            return func(*args, **kwargs)
        self._note(func._schema.name.replace("aten::", "torch."))
        overload = _with_generator(func)
        if overload is None:
            return func(*_undrawn(func, args), **kwargs)
        if kwargs.get("generator") is None:
            kwargs["generator"] = self._generator(_device(args, kwargs))
        return overload(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device.type == "meta":
            device = torch.device("cpu")
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(0)
        return self._generators[device]


def _with_generator(func: Any) -> Any:
    """The form of an operation that takes a generator besides the same arguments; None: there is none."""
    names = [a.name for a in func._schema.arguments]
    if "generator" in names:
        return func
    for form in map(func.overloadpacket.__getattr__, func.overloadpacket.overloads()):
        others = [a.name for a in form._schema.arguments]
        if "generator" in others and [name for name in others if name != "generator"] == names:
            return form
    return None


def _device(args: Any, kwargs: dict[str, Any]) -> torch.device:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.Tensor):
            return argument.device
    return torch.device(kwargs.get("device") or "cpu")


def _undrawn(func: Any, args: Any) -> list[Any]:
    names = [a.name for a in func._schema.arguments]
    return [0.0 if n in _PROBABILITIES and isinstance(a, float) else a for n, a in zip(names, args, strict=False)]


def _shared_functions() -> Iterator[tuple[ModuleType, str, Any]]:
    """Those that draw from the generator of the whole process, which their modules offer."""
    for module, owner in ((random, random._inst), (np.random, np.random.mtrand._rand)):
        for name, function in vars(module).items():
            if callable(function) and getattr(function, "__self__", None) is owner:
                yield module, name, function


@contextmanager
def _in_place_of(stands_for: Callable[[ModuleType, str], Callable[..., Any]]) -> Iterator[None]:
    thread, importing = threading.get_ident(), imports_begin()
    over = False  # a module that was imported meanwhile may have kept the name

    def stand_in(own: Callable[..., Any], everybodys: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            mine = not over and threading.get_ident() == thread and not importing()
            return (own if mine else everybodys)(*args, **kwargs)

        return function

    with _LOCK:
        found = [*_shared_functions()]
        try:
            for module, name, function in found:
                setattr(module, name, stand_in(stands_for(module, name), function))
            yield
        finally:
            over = True
            for module, name, function in found:
                setattr(module, name, function)


@contextmanager
def private(note: Callable[[str], Any] = lambda name: None) -> Iterator[None]:
    """What this thread draws comes from generators of its own; ``note(name)`` hears of it. Not seen: a function of
    Python's or numpy's module that the code imported by its own name (``from random import random``)."""
    own: dict[ModuleType, Any] = {random: _Random(0), np.random: np.random.RandomState(0)}

    def from_own(module: ModuleType, name: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            note(f"{module.__name__}.{name}")
            return getattr(own[module], name)(*args, **kwargs)

        return function

    with _in_place_of(from_own), _Private(note):
        yield
