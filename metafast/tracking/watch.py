"""What a forward pass reads besides the attributes of its modules, and whether that is still what it was.

Python code may decide by anything: an entry of a dict, an element of a list, a global variable, a class attribute, what
a closure holds. A :class:`Watch` keeps copies of the mutable things that it is given and compares them. What can be
neither copied nor compared makes it ``blind``; a plan that depends on such a thing must not be kept.
:mod:`metafast.tracking.reads` says which things a model depends on.
"""

from __future__ import annotations

import array
import collections
import enum
import logging
import operator
import pathlib
import random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Things looked into behind one name, and elements of one container. Beyond that, comparing takes longer than planning.
MOST_THINGS = 500
MOST_ELEMENTS = 5000

#: Packages whose code and global variables are what they are.
_FIXED = frozenset({"torch", "metafast", "numpy", "builtins"}) | frozenset(sys.stdlib_module_names) - {"__main__"}

#: They never change, or decide nothing.
_ATOMS = (
    *(int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, np.generic, np.dtype, enum.Enum),
    *(types.CodeType, types.ModuleType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc),
    *(types.GetSetDescriptorType, types.MemberDescriptorType, re.Pattern, pathlib.PurePath),
    *(logging.Logger, type(threading.Lock()), type(threading.RLock()), threading.local),
)
#: Equality is as good as identity for these, and cheap.
_VALUES = frozenset(
    {bool, int, float, complex, str, bytes, tuple, frozenset, type(None), torch.Size, types.CodeType, torch.dtype}
)
#: Their draws are told by other means: the generators that every thread of the process shares.
_SHARED_GENERATORS = (random._inst, np.random.mtrand._rand, torch.default_generator)

Parts = tuple[Any, ...]


def is_fixed(module_name: Any) -> bool:
    """Is this the name of a module of torch, numpy, Python or metafast, or of code that namedtuple makes?"""
    name = str(module_name)
    return name.partition(".")[0] in _FIXED or name.startswith("namedtuple_")


# ---- How to read a thing: everything in it that may change, as a tuple -----------------------------------------------


def _items(mapping: Any) -> Parts:
    return (*mapping, *mapping.values())


def _array(values: np.ndarray[Any, Any]) -> Parts:
    return values.tobytes(), values.shape, str(values.dtype)


def _function(function: types.FunctionType) -> Parts:
    return function.__code__, function.__defaults__, function.__kwdefaults__, *_cells(function.__closure__ or ())


def _cells(cells: Iterable[types.CellType]) -> Parts:
    return tuple([_cell(c) for c in cells])


def _atom(_: Any) -> Parts:
    return ()


def _types(modules: list[weakref.ref[nn.Module]]) -> Parts:
    return tuple([type(module()) for module in modules])


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _instance(thing: Any) -> Parts:
    return type(thing), *_items(thing.__dict__)


def _class(kind: type) -> Parts:
    return *kind.__bases__, *_items(vars(kind))


def _with_attributes(read: Callable[[Any], Parts], thing: Any) -> Parts:
    return *read(thing), *_items(thing.__dict__)


def _slots(names: tuple[str, ...], thing: Any) -> Parts:
    return tuple([getattr(thing, name, None) for name in names])


def _chosen(names: tuple[str, ...], scope: dict[str, Any]) -> Parts:
    return tuple([scope.get(name) for name in names])


def _state(generator: Any) -> Parts:
    if isinstance(generator, random.Random):
        return (generator.getstate(),)
    if isinstance(generator, torch.Generator):
        return (generator.get_state().numpy().tobytes(),)
    if isinstance(generator, np.random.RandomState):
        return (repr(generator.get_state()),)
    return (repr(generator.bit_generator.state),)


_READERS: tuple[tuple[tuple[type, ...], Callable[[Any], Parts]], ...] = (
    ((random.Random, np.random.Generator, np.random.RandomState, torch.Generator), _state),
    ((dict, types.MappingProxyType, collections.UserDict), _items),
    ((tuple, list, collections.deque, collections.UserList), tuple),
    ((set, frozenset), lambda s: (frozenset(s),)),
    ((bytearray, array.array), lambda b: (bytes(b),)),
    ((np.ndarray,), _array),
    ((types.FunctionType,), _function),
    ((types.MethodType,), lambda m: (m.__func__, m.__self__)),
    ((partial,), lambda p: (p.func, p.args, p.keywords)),
    ((property,), lambda p: (p.fget,)),
    ((staticmethod, classmethod), lambda m: (m.__func__,)),
)


def _slot_names(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += (slots,) if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _has_only_attributes(kind: type) -> bool:
    """Is there no state in instances that only code in C can see? Their size tells."""
    pointers = len(_slot_names(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ <= object.__basicsize__ + 8 * pointers


def reader(thing: Any) -> Callable[[Any], Parts] | None:
    """How to read what may change in ``thing``; None where nothing can tell. Atoms have no parts."""
    if isinstance(thing, _ATOMS) or any(thing is shared for shared in _SHARED_GENERATORS):
        return _atom
    if isinstance(thing, type):
        return _atom if is_fixed(thing.__module__) else _class
    if isinstance(thing, Tensor):
        return lambda t: () if t.is_inference() else (t._version,)
    for kinds, read in _READERS:
        if isinstance(thing, kinds):
            extra = type(thing) not in kinds and getattr(thing, "__dict__", None)
            return partial(_with_attributes, read) if extra else read
    if isinstance(thing, types.BuiltinFunctionType):
        return lambda f: (f.__self__,)
    if _has_only_attributes(type(thing)):
        if hasattr(thing, "__dict__"):
            names = _slot_names(type(thing))
            return (lambda t: (*_instance(t), *_slots(names, t))) if names else _instance
        return partial(_slots, _slot_names(type(thing)))
    kind: Any = type(thing)
    if kind.__hash__ not in (None, object.__hash__) and kind.__eq__ is not object.__eq__:
        return _atom  # a value, like a datetime
    # C++ and Cython: a function wrapped by functools.lru_cache or torch, a torch.jit function
    return _atom if callable(thing) and not isinstance(thing, nn.Module) else None


def _is_large(thing: Any) -> bool:
    if isinstance(thing, np.ndarray):
        return thing.nbytes > 64 * MOST_ELEMENTS
    return isinstance(thing, (set, frozenset, bytearray, array.array)) and len(thing) > MOST_ELEMENTS


def _is_function(thing: Any) -> bool:
    return hasattr(type(thing), "__get__") or (callable(thing) and not isinstance(thing, type))


def same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and type(a) in _VALUES and bool(a == b))


class Watch:
    """Copies of mutable things, to be compared. ``versions``: also the numbers that a program of fixed steps may have
    taken from tensors and large arrays, by the changes in place that torch counts."""

    def __init__(self, known: Iterable[Any] = (), versions: bool = True, names: Set[str] | None = None) -> None:
        self._names = names  # of attributes of classes that are looked into; None: neither classes nor functions are
        self.things: list[tuple[Callable[[Any], Parts], Any, Parts]] = []
        self.blind = ""  # the type of something that cannot be watched
        self._seen: dict[int, Any] = {id(thing): thing for thing in known}
        self._versions = versions

    def add(self, value: Any) -> None:
        """Watch ``value`` and all that can be reached from it."""
        left = [value]
        most = len(self.things) + MOST_THINGS
        while left:
            thing = left.pop()
            if id(thing) in self._seen or isinstance(thing, (int, float, str, type(None))):
                continue
            if self._names is None and isinstance(thing, (type, types.FunctionType)):
                continue
            if not self._versions and (isinstance(thing, Tensor) or _is_large(thing)):
                continue
            read = reader(thing)
            if read is None or len(self.things) > most:
                self.blind = self.blind or type(thing).__name__
                return
            self._seen[id(thing)] = thing
            parts = self._note(read, thing)
            left += self._data(thing) if read is _class else parts

    def _note(self, read: Callable[[Any], Parts], thing: Any) -> Parts:
        parts = read(thing)
        if _is_large(thing) or len(parts) > 2 * MOST_ELEMENTS:
            self.blind = self.blind or f"large {type(thing).__name__}"
            return ()
        if read is not _atom and not isinstance(thing, (tuple, frozenset)):
            self.things.append((read, thing, parts))
        return parts

    def _data(self, kind: type) -> list[Any]:
        """What code can find in a class without calling it. Functions are watched where they run."""
        own = [value for name, value in vars(kind).items() if name in (self._names or ()) and not _is_function(value)]
        return [*own, *kind.__bases__]

    def scope(self, scope: dict[str, Any], names: tuple[str, ...]) -> None:
        """Watch these entries of a namespace, and what can be reached from them."""
        for value in self._note(partial(_chosen, names), scope):
            self.add(value)

    def add_types(self, modules: list[nn.Module]) -> None:
        """Watch of which class each of these is."""
        weak = [*map(weakref.ref, modules)]  # a plan must not keep its model alive
        self.things.append((_types, weak, _types(weak)))

    def close(self) -> None:
        """Nothing more will be added: forget what was only seen."""
        self._seen.clear()

    def changed(self) -> list[int]:
        """Numbers of those ``things`` that are not as they were."""
        return [i for i, (read, thing, then) in enumerate(self.things) if not _unchanged(read, thing, then)]

    def is_unchanged(self) -> bool:
        """Is all that is watched as it was?"""
        return all(_unchanged(*thing) for thing in self.things)

    def keep_unchanged(self) -> None:
        """Watch no longer what has changed: forward itself changes it, or fills a cache at its first use."""
        kept = []
        for read, thing, then in self.things:
            if _unchanged(read, thing, then):
                kept.append((read, thing, then))
            elif isinstance(read, partial) and read.func is _chosen:
                pairs = zip(read.args[0], then, strict=True)
                names = tuple([name for name, value in pairs if same(thing.get(name), value)])
                kept.append((partial(_chosen, names), thing, _chosen(names, thing)))
        self.things = kept

    def restore(self) -> None:
        """Undo changes of dicts, lists and attributes of objects."""
        for i in self.changed():
            read, thing, then = self.things[i]
            if isinstance(thing, (list, collections.deque)):
                thing.clear()
                thing.extend(then)
            elif isinstance(thing, set):
                thing.clear()
                thing.update(then[0])
            elif isinstance(read, partial) and read.func is _chosen:
                thing.update({n: v for n, v in zip(read.args[0], then, strict=True) if n in thing})
            elif read is _instance or (read is _items and isinstance(thing, dict)):
                parts = then[1:] if read is _instance else then
                half = len(parts) // 2
                live = thing.__dict__ if read is _instance else thing
                live.clear()
                live.update(zip(parts[:half], parts[half:], strict=True))


def _unchanged(read: Callable[[Any], Parts], thing: Any, then: Parts) -> bool:
    try:
        now = read(thing)
    except Exception:  # whatever reading raises: a thing that cannot be read is not what it was
        return False
    return len(now) == len(then) and (all(map(operator.is_, now, then)) or all(map(same, now, then)))
