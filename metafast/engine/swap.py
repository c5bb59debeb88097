"""Other values in the place of a module's parameters and buffers, for as long as something runs.

:func:`torch.func.functional_call` does nearly this. It reaches one module, where a loss that is a module needs its own
tensors exchanged too; and it leaves foreign tensors behind in a module that is registered under two names.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: A swap puts tensors into modules and takes them out again, so one thread at a time may run a module, and none may
#: read its parameters meanwhile. Reentrant, because a module may hold a learner of its own.
SWAPPING = threading.RLock()

#: Where a module registers a tensor, and the number of that tensor.
Slot = tuple[dict[str, Any], str, int]


def slots(roots: Iterable[nn.Module], tensors: Sequence[Tensor]) -> list[Slot]:
    """Every place where ``roots`` or their submodules register one of ``tensors``.

    Tensors are told by identity: one that two modules share is found in both, a module with two names once.
    """
    numbers = {id(tensor): i for i, tensor in enumerate(tensors)}
    modules = {id(module): module for root in roots for module in root.modules()}
    return [
        (registered, name, numbers[id(tensor)])
        for module in modules.values()
        for registered in (module._parameters, module._buffers)
        for name, tensor in registered.items()
        if id(tensor) in numbers
    ]


@contextmanager
def swapped(places: Sequence[Slot], values: Sequence[Tensor]) -> Iterator[None]:
    """``values`` in ``places``, which get back what they held whatever happens."""
    with SWAPPING:
        kept = [registered[name] for registered, name, _ in places]
        try:
            for registered, name, number in places:
                registered[name] = values[number]
            yield
        finally:
            for (registered, name, _), tensor in zip(places, kept, strict=True):
                registered[name] = tensor
