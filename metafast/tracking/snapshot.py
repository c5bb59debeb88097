"""Noticing, in a few microseconds, that a module is no longer what it was.

Everything that a forward pass depends on is, for nearly every module, in the instance dictionaries of its submodules.
A Snapshot compares their attributes, children and hooks, tensors by ``is``, and what an optimiser or ``.to()`` may
change inside a parameter by its shape, dtype, device and requires_grad. Most often every object is the one it was,
which C++ sees at once; if not, equal attributes are as good.

Where :class:`metafast.tracking.reads.Reads` says what forward reads, its Snapshot also compares what is inside mutable
attributes (``model.config["depth"] = 3``), classes (``Net.forward = ...``), functions, closures and global variables,
which takes about a microsecond each in Python. Models made of torch's modules have none. Values of parameters and
buffers are none of its business.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Set
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from metafast.tracking.metadata import Contents, metadata
from metafast.tracking.reads import Reads, own_classes
from metafast.tracking.watch import Watch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
#: torch's own attributes never change as objects, only within.
_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}
#: Contents that do not hold: the dictionary, which they only borrow, was empty when they were made.
_FILLED_SINCE: dict[Any, Any] = {}
_NEVER = Contents([_FILLED_SINCE], ())
_FILLED_SINCE[None] = None


class Snapshot:
    """``Snapshot(model, tensors)`` remembers the model and the metadata of those of its tensors.

    Args:
        reads: what forward reads; None compares the attributes themselves and no more.
        assigned: which attributes forward assigns (number of the module, name): they are not compared.
        written: things that forward itself changes.
        versions: see :class:`metafast.tracking.watch.Watch`.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Iterable[Tensor],
        reads: Reads | None = None,
        assigned: Set[tuple[int, str]] = frozenset(),
        written: Iterable[Any] = (),
        versions: bool = True,
    ) -> None:
        modules = [*model.modules()]
        self._modules = [vars(module) for module in modules]
        self._assigned = [{name for number, name in assigned if number == i} for i in range(len(modules))]
        self._getters = [_getter((d.keys() - _TORCHS_OWN - own) | ({"training"} & d.keys())) for d, own in self._both()]
        self._sizes = self._read_sizes()
        self._attributes = self._read_attributes()
        # Children and hooks: dictionaries that stay the same objects.
        self._live = [*GLOBAL_HOOKS, *(d[name] for d in self._modules for name in ("_modules", *HOOKS))]
        self._frozen = [dict(d) for d in self._live]
        # Tensors apart, because == compares their elements.
        self._holders = [d[name] for d in self._modules for name in ("_parameters", "_buffers") if d[name]]
        self._held = self._read_tensors()
        self._copies = [dict(d) for d in self._modules]
        self._tensors = tuple(tensors)
        self._kept = [dict(holder) for holder in self._holders]  # `contents` borrow what they refer to
        self._contents = Contents([*self._modules, *self._live, *self._holders], self._tensors)
        self._metadata = self._read_metadata()
        self._watches: list[Watch] = []
        self.blind = ""  # what forward reads and nothing can watch
        if reads is not None:
            self._watch(modules, reads, Watch([*modules, *written], versions, reads.names))
        #: Whether all is certainly as remembered, which C++ sees without running Python.
        self.contents = _NEVER if self._watches or self.blind else self._contents

    def _watch(self, modules: list[nn.Module], reads: Reads, watch: Watch) -> None:
        for d, assigned in self._both():
            for name, value in d.items():
                if name not in _TORCHS_OWN and name not in assigned and reads.may_read(name):
                    watch.add(value)
        classes = own_classes(modules)
        for kind in classes:
            watch.add(kind)
        if classes:
            watch.add_types(modules)
        reads.add_functions(watch, classes)
        self._watches = [w for w in (reads.watch, watch) if w.things]
        for w in self._watches:
            w.close()
        self.blind = reads.blind or reads.watch.blind or watch.blind

    def _read_attributes(self) -> list[Any]:
        return [get(d) for get, d in zip(self._getters, self._modules, strict=True)]

    def _read_sizes(self) -> list[int]:
        return [len(d) - len(own & d.keys()) if own else len(d) for d, own in self._both()]

    def _both(self) -> Iterable[tuple[dict[str, Any], set[str]]]:
        return zip(self._modules, self._assigned, strict=True)

    def _read_tensors(self) -> list[Tensor | None]:
        return [tensor for holder in self._holders for tensor in holder.values()]

    def _read_metadata(self) -> Any:
        return metadata(self._tensors), [t.requires_grad for t in self._tensors]

    def is_unchanged(self) -> bool:
        """Is the model still as remembered? Never, if forward reads what cannot be watched."""
        if self.blind or not (self._contents.hold() or (self._equals() and self._read_metadata() == self._metadata)):
            return False
        return not self._watches or all(watch.is_unchanged() for watch in self._watches)

    def _equals(self) -> bool:
        try:
            held = self._read_tensors()
            return (
                self._read_attributes() == self._attributes
                and self._live == self._frozen
                and self._read_sizes() == self._sizes
                and len(held) == len(self._held)
                and all(map(operator.is_, held, self._held))
            )
        except (KeyError, RuntimeError, TypeError, ValueError):
            return False  # an attribute is gone, or replaced by something whose == has no truth value


def _getter(names: Set[str]) -> Callable[[dict[str, Any]], Any]:
    return operator.itemgetter(*names) if names else lambda attributes: ()
