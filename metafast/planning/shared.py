"""Plans that outlive the learner that made them, so that the next learner of the same model need not plan again.

They belong to the model and go with it: nothing here keeps a model alive, nor a loss of the user's own.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from metafast.planning.plan import Plan

#: Plans kept for one model and one choice of settings: train and eval mode, kinds of examples, structures in turn.
KEPT = 32
#: Choices of settings kept for one model, and models (should one be part of what its plans hold, and so never go).
KEPT_SETTINGS = 8
KEPT_MODELS = 32

_Known = OrderedDict[int, tuple["weakref.ref[nn.Module]", OrderedDict[Hashable, "list[Plan]"]]]
_lock = threading.RLock()
_plans: _Known = OrderedDict()


def _forget(known: _Known, number: int, gone: weakref.ref[nn.Module]) -> None:
    """Called by the garbage collector, at any moment, even while the interpreter ends: takes no lock."""
    found = known.get(number)
    if found is not None and found[0] is gone:
        known.pop(number, None)


def plans(model: nn.Module, settings: Hashable) -> list[Plan]:
    """The plans of ``model`` under these settings, the latest first: a list to add to, with :func:`keep`."""
    with _lock:
        found = _plans.get(id(model))
        if found is None or found[0]() is not model:
            number = id(model)
            found = _plans[number] = weakref.ref(model, partial(_forget, _plans, number)), OrderedDict()
        _plans.move_to_end(id(model))
        while len(_plans) > KEPT_MODELS:
            _plans.popitem(last=False)
        of_model = found[1]
        of_settings = of_model.setdefault(settings, [])
        of_model.move_to_end(settings)
        while len(of_model) > KEPT_SETTINGS:
            of_model.popitem(last=False)
        return of_settings


@contextmanager
def forgotten(model: nn.Module) -> Iterator[None]:
    """What is planned inside is not kept: ``model`` holds tensors that will not come back."""
    number = id(model)
    before = {id(plans): [*plans] for plans in _of(number)}
    try:
        yield
    finally:
        for plans in _of(number):
            plans[:] = before.get(id(plans), [])


def _of(number: int) -> list[list[Plan]]:
    with _lock:
        return [*_plans[number][1].values()] if number in _plans else []


def keep(plans: list[Plan], plan: Plan) -> None:
    """Put ``plan`` first."""
    with _lock:
        plans[:] = [plan, *(p for p in plans if p is not plan)][:KEPT]
