"""The short way to a meta-gradient asked for once more: other data of the same kind, all else unchanged.

Finding the plan, checking shapes and choosing a session take longer than the arithmetic of a small network. A
:class:`Repeat` remembers what that came to and proves, in a few microseconds, that it would come to the same again;
where it cannot, the call goes the long way, which knows every rule and says what is wrong.
"""

from __future__ import annotations

import operator
import threading
from typing import Any

import torch
from torch import nn

from metafast import arguments, native
from metafast.batch import Batch
from metafast.facts import facts
from metafast.plan import Plan

_plain = operator.itemgetter("adapt_params", "backend", "strict", "steps", "first_order", "memory")

#: A session's inputs end with x, y and weights of both sets and two cotangents, which a meta-gradient leaves out.
_DATA = slice(-8, -2)


def _settings(learner: nn.Module) -> tuple[Any, ...]:
    """What a call depends on besides lr, data and the state of the model; a loss may be a module."""
    known, modules = learner.__dict__, learner._modules
    return _plain(known), known.get("loss"), modules.get("loss"), modules["model"]


class Repeat:
    """``Repeat(learner, plan, call, support, query)``: what the learner's ``call`` on these sets came to."""

    __slots__ = ("call", "facts", "labelled", "lr", "plan", "settings", "shared", "thread", "threads")

    def __init__(self, learner: nn.Module, plan: Plan, call: native.Call, support: Batch, query: Batch) -> None:
        data = (*support, *query)
        self.lr, self.settings = learner.__dict__["lr"], _settings(learner)
        self.plan, self.call, self.shared = plan, call, call.inputs[: _DATA.start]
        self.facts = facts(data)
        assert support.y is not None
        self.labelled = [] if support.y.is_floating_point() else [("support y", 1), ("query y", 4)]
        self.thread, self.threads = threading.get_ident(), torch.get_num_threads()

    @staticmethod
    def possible(learner: nn.Module, call: native.Call, support: Batch, query: Batch) -> bool:
        """Not on a GPU, with a rate that is a tensor, without inner steps, or with data that had to be converted."""
        read = call.inputs[_DATA]
        return (
            support.x.device.type == "cpu"
            and type(learner.__dict__.get("lr")) is float
            and len(read) == 6
            and all(a is b for a, b in zip(read, (*support, *query), strict=True))
        )

    def __call__(self, learner: nn.Module, support: Any, query: Any) -> list[Any] | None:
        """Support losses, task losses, loss, logits and the gradients for other data, or None where this may not be the
        same call."""
        if not (isinstance(support, (tuple, list)) and isinstance(query, (tuple, list))):
            return None
        data = (*support, *(None,) * (3 - len(support)), *query, *(None,) * (3 - len(query)))
        if not (
            len(data) == 6
            and facts(data) == self.facts
            and learner.__dict__.get("lr") is self.lr
            and _settings(learner) == self.settings
            and self.plan.snapshot.holds()
            and threading.get_ident() == self.thread  # a session is run by one thread at a time
            and torch.get_num_threads() == self.threads
        ):
            return None
        for name, y in self.labelled:
            arguments.labels(name, data[y], self.plan.out[0])
        prepared = self.call.prepared
        return native.Call(prepared, [*self.shared, *data, None, None]).run()[: prepared.gradients]
