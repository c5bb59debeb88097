"""The short way to a meta-step or Hessian-vector product asked for once more: other numbers, all else unchanged.

Finding the plan, checking shapes and choosing a session take longer than the arithmetic of a small network. A
:class:`Repeat` or a :class:`RepeatedHvp` remembers what that came to and proves, in microseconds, that it would again.
Where it cannot, the call goes the long way, which knows every rule and says what is wrong.
"""

from __future__ import annotations

import functools
import operator
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, get_num_threads, nn

from metafast import _native, arguments
from metafast.call import Batch, Call
from metafast.engine import native, ops
from metafast.planning.accumulation import accumulate, any_requires_grad, is_plain
from metafast.planning.plan import Plan
from metafast.tracking.metadata import metadata

_plain = operator.itemgetter("adapt_params", "backend", "strict", "steps", "rule", "estimator", "memory", "reduction")

#: A session's inputs end with x, y and weights of both sets and two cotangents, which a meta-gradient leaves out.
_DATA = slice(-8, -2)


def _settings(learner: nn.Module) -> tuple[Any, ...]:
    """What a call depends on besides lr, data and the state of the model; a loss may be a module."""
    known, modules = learner.__dict__, learner._modules
    loss = modules.get("loss")
    within = loss and {name: value for name, value in vars(loss).items() if name[0] != "_"}
    return _plain(known), known.get("loss"), loss, within, modules["model"]


class Repeat:
    """``Repeat(learner, plan, run, call, node)``: what the learner's ``call`` came to, and ``node`` if it stands in a
    graph."""

    __slots__ = (
        "labelled",
        "lr",
        "metadata",
        "node",
        "plan",
        "prepared",
        "settings",
        "shared",
        "thread",
        "threads",
        "weighted",
    )

    def __init__(
        self,
        learner: nn.Module,
        plan: Plan,
        run: native.Run,
        call: Call,
        node: ops.AutogradNode | None = None,
    ) -> None:
        support, query = call.support, call.query
        assert support is not None and query is not None
        data = (*support, *query)
        self.plan, self.prepared, self.metadata = plan, run.prepared, metadata(data)
        self.thread, self.threads = get_ident(), get_num_threads()
        self.lr, self.settings, self.shared = learner.__dict__["lr"], _settings(learner), run.inputs[: _DATA.start]
        assert support.y is not None
        self.labelled = [] if support.y.is_floating_point() else [("support y", 1), ("query y", 4)]
        self.weighted = [
            (name, at) for name, at in (("support weights", 2), ("query weights", 5)) if data[at] is not None
        ]
        self.node = None
        if node is not None and not any_requires_grad(data):
            self.node = node
            node.be_ready(run.prepared)

    @staticmethod
    def possible(learner: nn.Module, run: native.Run, call: Call) -> bool:
        """Not on a GPU, with a hyper-parameter that is a tensor, without inner steps, or with converted data."""
        read, (_, _, support, query) = run.inputs[_DATA], call
        if support is None or query is None:
            return False
        rule: Any = learner.rule
        others = [value for name, value in rule.hypers.items() if name != "lr"]
        return (
            support.x.device.type == "cpu"
            and all(type(value) is float for value in (learner.__dict__.get("lr"), *others))
            and not rule.learn
            and len(read) == 6
            and all(a is b for a, b in zip(read, (*support, *query), strict=True))
        )

    def gradient(self, learner: nn.Module, support: Any, query: Any) -> list[Any] | None:
        """Support losses, task losses, loss, logits and the gradients for other data, or None where this may not be the
        same call."""
        data = self._data(learner, support, query)
        if data is None:
            return None
        return native.Run(self.prepared, [*self.shared, *data, None, None]).again()[: self.prepared.gradients]

    def accumulated(self, learner: nn.Module, support: Any, query: Any, scale: Tensor | None) -> list[Any] | None:
        """Support losses, task losses, loss and logits for other data, their gradients added to ``.grad``, or None."""
        receivers = self.plan.receivers
        if not is_plain(receivers):
            return None
        data = self._data(learner, support, query)
        if data is None or any_requires_grad(data):
            return None
        written = native.Run(self.prepared, [*self.shared, *data, None, None]).again()
        accumulate(receivers, written[4 : self.prepared.gradients], scale)
        return written[:4]

    def unrolled(self, learner: nn.Module, support: Any, query: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Loss, task losses, logits and support losses, in a graph, or None."""
        if self.node is None or not torch.is_grad_enabled():
            return None
        data = self._data(learner, support, query)
        if data is None or any_requires_grad(data):
            return None
        return ops.unroll_again(self.node, *self.shared, *data)

    def _is_current(self) -> bool:
        """Are the model and the thread still the same? A session is run by one thread at a time."""
        return self.plan.snapshot.is_unchanged() and get_ident() == self.thread and get_num_threads() == self.threads

    def _data(self, learner: nn.Module, support: Any, query: Any) -> tuple[Any, ...] | None:
        """x, y and weights of both sets, if all else is as it was."""
        if not (isinstance(support, (tuple, list)) and isinstance(query, (tuple, list))):
            return None
        data = (*support, *(None,) * (3 - len(support)), *query, *(None,) * (3 - len(query)))
        if not (
            len(data) == 6
            and learner.__dict__.get("lr") is self.lr
            and _settings(learner) == self.settings
            and metadata(data) == self.metadata
            and self._is_current()
        ):
            return None
        for name, y in self.labelled:
            arguments.labels(name, data[y], self.plan.out[0])
        for name, w in self.weighted:
            self.plan.check_weights(name, data[w])
        return data


def product_again(plan: Plan, run: native.Run, params: Any, batch: Batch, v: Any) -> _native.RepeatedHvp | None:
    """What ``mf.hvp`` of these ``params``, ``batch`` and ``v`` came to, to ``run`` with other numbers.

    None on a GPU, and where something is no plain tensor or had to be converted, or a vector repeated for every task.
    """
    if batch.x.device.type != "cpu" or type(params) is not dict or type(v) is not dict:
        return None
    tensors = (*params.values(), *v.values(), *batch)
    known = metadata(tensors)
    if not isinstance(known, bytes):
        return None
    # Of the session's inputs: the place among `tensors`, or -1 for those that stay as they were.
    at_param, at_v = ({name: i for i, name in enumerate(given)} for given in (params, v))
    places = [
        *(at_param.get(p.name, -1) for p in plan.program.parameters),
        *(len(params) + at_v[name] if name in at_v else -1 for name in plan.learnt),
        *range(len(params) + len(v), len(tensors)),
    ]
    places += [-1] * (len(run.inputs) - len(places))
    # Each in its own place: one tensor may be both a parameter and a vector, and only the latter be repeated.
    read = [*zip(places, run.inputs, strict=True)]
    if any(tensor is not tensors[place] for place, tensor in read if place >= 0):
        return None
    by_name = {name: i for i, name in enumerate(plan.learnt)}
    classes = plan.out[0] if batch.y is not None and not batch.y.is_floating_point() else 0
    return _native.RepeatedHvp(
        session=run.prepared.session,
        names=(tuple(params), tuple(v)),
        metadata=known,
        places=places,
        own=[None if place >= 0 else tensor for place, tensor in read],
        written=[(name, run.prepared.adapted + by_name[name]) for name in params if name in by_name],
        check=functools.partial(arguments.labels, "batch y", classes=classes) if classes else None,
        classes=classes,
        check_weights=None if batch.w is None else functools.partial(plan.check_weights, "batch weights"),
        contents=plan.snapshot.contents,
        is_unchanged=plan.snapshot.is_unchanged,
        threads=get_num_threads,
        workspace=native.Workspace.of_thread,
    )
