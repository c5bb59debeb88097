"""Which things a model's forward depends on besides tensors: found by watching it run once.

:class:`Reads` notes the code that runs in this thread while a model is planned, the global variables that it names and
the names it uses for attributes. :class:`Undone` finds out what forward writes to its modules, and takes it back: to
plan must leave no trace.
"""

from __future__ import annotations

import dis
import gc
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from torch import nn

from metafast.tracking import draws
from metafast.tracking.watch import Watch, is_fixed, same

#: Code that uses one of these may read attributes whose names are nowhere written.
_DYNAMIC = frozenset(
    {"getattr", "hasattr", "vars", "__dict__", "__getattribute__", "attrgetter", "dir", "eval", "exec"}
)
_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})


@lru_cache(maxsize=1024)
def _globals(code: types.CodeType) -> tuple[str, ...]:
    return tuple(dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL))


def own_classes(modules: Iterable[nn.Module]) -> list[type]:
    """The classes that users wrote, of these modules."""
    found = dict.fromkeys(kind for module in modules for kind in type(module).__mro__)
    return [kind for kind in found if not is_fixed(kind.__module__)]


class Reads:
    """``with reads.recording(): model(x)`` notes what this thread's code reads, as it is before that code runs."""

    def __init__(self, model: nn.Module, versions: bool = True) -> None:
        self._modules = [*model.modules()]
        self._versions = versions
        self.blind = ""  # why not all can be known
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.names: set[str] = {"forward"}
        self.watch = Watch(self._modules, self._versions, self.names)
        self._codes: dict[int, types.CodeType] = {}
        self._ours: dict[int, types.CodeType] = {}

    def may_read(self, name: str) -> bool:
        """Whether the code may have read an attribute of this name."""
        return name in self.names or not _DYNAMIC.isdisjoint(self.names)

    @contextmanager
    def recording(
        self,
        refuse: Callable[[str], Any] | None = None,
        enter: Callable[[dict[str, Any]], Any] = lambda scope: None,
    ) -> Iterator[None]:
        """``refuse(name)`` is called before a generator of Python's ``random`` draws, unless metafast asks it to;
        ``enter(scope)`` before a user's code runs, with its global variables, but for what runs in an import."""

        def profile(frame: Any, event: Any, argument: Any) -> None:
            if event == "call":
                code = frame.f_code
                if id(code) not in self._codes:
                    self._codes[id(code)] = code
                    if not is_fixed(frame.f_globals.get("__name__")):
                        self._read(code, frame.f_globals)
                        if not importing():
                            enter(frame.f_globals)
            elif event == "c_call" and refuse is not None and _draws(argument) and not importing():
                refuse(f"random.{argument.__name__}")
            if before is not None and callable(before):
                before(frame, event, argument)

        before: Any = sys.getprofile()
        if before is not None and not callable(before) and not hasattr(before, "enable"):
            self.blind = "a profiler is at work"
            yield
            return
        importing = draws.imports_begin()
        collects = gc.isenabled()
        gc.disable()  # or the finalizers and callbacks that it runs in this thread would count as the model's code
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before if callable(before) else None)
            if collects:
                gc.enable()
            if before is not None and not callable(before):
                before.enable()  # cProfile's, which goes on where it stopped

    def _read(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        self._ours[id(code)] = code
        self.names.update(code.co_names, (c for c in code.co_consts if isinstance(c, str)))
        used = [name for name in _globals(code) if name in scope and not _is_ours(scope[name])]
        if used:
            self.watch.scope(scope, tuple(used))
        self._look_into([scope[name] for name in used], code.co_names, set())

    def _look_into(self, values: list[Any], names: tuple[str, ...], seen: set[int]) -> None:
        """``config.DEPTH``, where config is a module of the user's."""
        for module in values:
            if isinstance(module, types.ModuleType) and not is_fixed(module.__name__) and id(module) not in seen:
                seen.add(id(module))
                found = tuple(name for name in names if name in vars(module))
                self.watch.scope(vars(module), found)
                self._look_into([vars(module)[name] for name in found], names, seen)

    def add_functions(self, watch: Watch, classes: Iterable[type]) -> None:
        """Watch the functions that ran: their code, defaults and closures."""
        known: dict[int, types.FunctionType] = {}
        for kind in classes:
            for value in vars(kind).values():
                _index(value, known)
        for number in self._ours.keys() & known.keys():
            watch.add(known[number])
        watched = (thing for w in (self.watch, watch) for _, thing, _ in w.things)
        found = {id(thing.__code__) for thing in watched if isinstance(thing, types.FunctionType)}
        found |= {id(constant) for code in self._ours.values() for constant in code.co_consts}  # made when they run
        for number, code in self._ours.items():
            if set(code.co_freevars) - {"__class__"} and number not in found:
                self.blind = self.blind or f"the closure of {code.co_name}"


@contextmanager
def unwatched() -> Iterator[None]:
    """Inside of recording, where code of ours runs."""
    profile: Any = sys.getprofile()
    if not callable(profile):  # a profiler is at work, and nothing is recorded
        yield
        return
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)


def _draws(function: Any) -> bool:
    return type(getattr(function, "__self__", None)) is random.Random and function.__name__ != "getstate"


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "metafast"


def _index(value: Any, known: dict[int, types.FunctionType]) -> None:
    """The functions in an attribute of a class, and those they wrap, by their code."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        for part in (value.fget, value.fset):
            _index(part, known)
    elif isinstance(value, types.FunctionType) and id(value.__code__) not in known:
        known[id(value.__code__)] = value
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # not assigned yet
                _index(cell.cell_contents, known)
    elif hasattr(value, "__wrapped__"):
        _index(value.__wrapped__, known)


class Undone:
    """``with Undone(model) as undone: model(x)`` takes back what forward did to attributes of the modules, and to
    dicts, lists and objects in them."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [*model.modules()]
        self.assigned: frozenset[tuple[int, str]] = frozenset()  # which module, which attribute
        self.written: list[Any] = []  # things behind attributes

    def __enter__(self) -> Undone:
        self._live = [vars(module) for module in self._modules]
        self._copies = [dict(live) for live in self._live]
        self._inside = Watch(self._modules, versions=False)
        own = vars(nn.Module())
        for live in self._live:
            for name, value in live.items():
                if name not in own:
                    self._inside.add(value)
        self._classes = [(vars(kind), dict(vars(kind))) for kind in own_classes(self._modules)]
        return self

    def __exit__(self, *_: object) -> None:
        assigned = set()
        for number, (live, copy) in enumerate(zip(self._live, self._copies, strict=True)):
            for name in {*live, *copy}:
                if name not in live or name not in copy or not same(live[name], copy[name]):
                    assigned.add((number, name))
                    if name in copy:
                        live[name] = copy[name]
                    else:
                        del live[name]
        self.assigned = frozenset(assigned)
        self.written = [self._inside.things[i][1] for i in self._inside.changed()]
        self._inside.restore()

    @property
    def changes(self) -> bool:
        """Whether forward leaves anything else behind than its result."""
        classes = any(dict(live) != copy for live, copy in self._classes)
        return bool(self.assigned or self.written or classes)
