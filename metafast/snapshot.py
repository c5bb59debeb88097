"""Noticing, in a few microseconds, that a module is no longer what it was.

Everything that a forward pass depends on is, for nearly every module, in the instance dictionaries of its submodules.
A Snapshot compares their attributes, children and hooks, tensors by ``is``, and what an optimiser or ``.to()`` may
change inside a parameter by its shape, dtype, device and requires_grad. Most often every object is the one it was,
which C++ sees at once; if not, equal attributes are as good.

Not noticed: a change inside a mutable attribute (``model.config["depth"] = 3``), to a class (``Net.forward = ...``)
or to a global variable that forward reads. Values of parameters and buffers are none of its business.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from metafast.facts import Contents, facts

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
#: torch's own attributes never change as objects, only within.
_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}


class Snapshot:
    """``Snapshot(model, tensors)`` remembers the model and the facts of those of its tensors."""

    def __init__(self, model: nn.Module, tensors: Iterable[Tensor]) -> None:
        self._modules = [vars(module) for module in model.modules()]
        self._getters = [operator.itemgetter(*(set(d) - _TORCHS_OWN)) for d in self._modules]
        self._sizes = [*map(len, self._modules)]
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
        self.contents = Contents([*self._modules, *self._live, *self._holders], self._tensors)
        self._facts = self._read_facts()

    def _read_attributes(self) -> list[Any]:
        return [get(d) for get, d in zip(self._getters, self._modules, strict=True)]

    def _read_tensors(self) -> list[Tensor | None]:
        return [tensor for holder in self._holders for tensor in holder.values()]

    def _read_facts(self) -> Any:
        return facts(self._tensors), [t.requires_grad for t in self._tensors]

    def holds(self) -> bool:
        """Is the model still as remembered?"""
        return self.contents.hold() or (self._equals() and self._read_facts() == self._facts)

    def _equals(self) -> bool:
        try:
            held = self._read_tensors()
            return (
                self._read_attributes() == self._attributes
                and self._live == self._frozen
                and [*map(len, self._modules)] == self._sizes
                and len(held) == len(self._held)
                and all(map(operator.is_, held, self._held))
            )
        except (KeyError, RuntimeError, TypeError, ValueError):
            return False  # an attribute is gone, or replaced by something whose == has no truth value

    def restore_attributes(self) -> None:
        """Undo what running forward did to the attributes of the modules."""
        for live, copy in zip(self._modules, self._copies, strict=True):
            live.clear()
            live.update(copy)
