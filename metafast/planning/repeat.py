"""The short way to a meta-step or Hessian-vector product asked for once more: other numbers, all else unchanged.

Finding the plan, checking shapes and choosing a session take longer than the arithmetic of a small network. What a call
came to is remembered (:class:`Repeated`); in microseconds C++ proves that it would come to that again, and runs it.
Where it cannot, the call goes the long way, which knows every rule and says what is wrong.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, get_num_threads, nn

from metafast import _native, arguments
from metafast.call import Batch, Call
from metafast.engine import native, ops
from metafast.engine.signature import LOSSES, QUERY, SEED, SUPPORT, Slot
from metafast.planning.accumulation import accumulate, any_requires_grad, is_plain
from metafast.planning.plan import Plan
from metafast.tracking.metadata import metadata

_plain = operator.itemgetter("adapt_params", "backend", "strict", "steps", "rule", "estimator", "memory", "reduction")

#: x, y and weights of both sets.
_DATA = (*SUPPORT, *QUERY)


def _settings(learner: nn.Module) -> tuple[Any, ...]:
    """What a call depends on besides lr, data and the state of the model; a loss may be a module."""
    known, modules = learner.__dict__, learner._modules
    loss = modules.get("loss")
    within = loss and {
        **{name: value for name, value in vars(loss).items() if name[0] != "_"},
        **{name: value.tolist() for name, value in loss._buffers.items() if value is not None},  # weights of classes
    }
    return _plain(known), known.get("loss"), loss, within, modules["model"]


class Repeated:
    """What a call came to, to run with other ``tensors``.

    Args:
        plan, run: of the call, on the CPU.
        known: the metadata of its tensors, which C++ could read.
        at: where among those the inputs of this name are; all others stay as they are.
        sets: the names of sets of examples, and where among the tensors their y and weights are.
    """

    __slots__ = ("_borrowed", "_call", "_reading")

    def __init__(
        self, plan: Plan, run: native.Run, known: bytes, at: Mapping[Slot, int], sets: Sequence[tuple[str, Batch, int]]
    ) -> None:
        places = [at.get(slot, -1) for slot in run.inputs]
        own = [None if place >= 0 else tensor for place, tensor in zip(places, run.inputs.values(), strict=True)]
        checks: list[tuple[int, int, Any]] = []
        classes = plan.out[0] if plan.out else 0
        for name, batch, y in sets:
            if batch.y is not None and not batch.y.is_floating_point() and plan.reading.label is None:
                ignored = None if plan.loss is None else plan.loss.ignored
                check = functools.partial(arguments.labels, f"{name} y", classes=classes, ignored=ignored)
                checks.append((y, classes, check))
            if batch.w is not None:
                checks.append((y + 1, 0, functools.partial(plan.check_weights, f"{name} weights")))
        is_unchanged, session = plan.snapshot.is_unchanged, run.prepared.session
        self._reading = plan.reading
        #: What C++ uses without owning it, so that the garbage collector sees circles through here.
        self._borrowed = (plan, session, own, checks, is_unchanged)
        self._call = _native.RepeatedCall(
            session=session,
            metadata=known,
            places=places,
            own=own,
            checks=checks,
            contents=plan.snapshot.contents,
            is_unchanged=is_unchanged,
            threads=get_num_threads,
            workspace=native.Workspace.of_thread,
        )

    def _taken(self, name: str, data: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """x, y and weights as the engine reads them; None where they are of another kind."""
        if not self._reading.converts:
            return data
        return self._reading.batch(name, Batch(*data)) if self._reading.fits(*data[:2]) else None


class Repeat(Repeated):
    """What a learner's ``call`` came to, and ``node`` if it stands in a graph."""

    __slots__ = ("lr", "node", "outputs", "receivers", "results", "seed", "settings", "shared")

    def __init__(
        self,
        learner: nn.Module,
        plan: Plan,
        run: native.Run,
        call: Call,
        known: bytes,
        node: ops.AutogradNode | None,
    ) -> None:
        support, query = call.support, call.query
        assert support is not None and query is not None
        at = {slot: place for place, slot in enumerate((*_DATA, SEED))}
        super().__init__(plan, run, known, at, [("support", support, 1), ("query", query, 4)])
        self.lr, self.settings = learner.__dict__["lr"], _settings(learner)
        self.shared = call._replace(support=None, query=None).leaves()
        wanted = [*LOSSES, *[("gradient.parameters", i, 0) for i in range(len(plan.learnt))]]
        #: These of all that the session writes: it may be one that makes gradients of the data, too.
        self.results = operator.itemgetter(*[run.prepared.outputs.index(slot) for slot in wanted])
        self.outputs = plan.outputs
        self.receivers, seed = plan.receivers, run.inputs.get(SEED)
        self.seed = () if seed is None else (torch.zeros_like(seed),)  # what one is like
        self.node = None
        if node is not None and not any_requires_grad((*support, *query)):
            self.node = node
            node.be_ready(run.prepared)

    @classmethod
    def of(
        cls, learner: nn.Module, plan: Plan, run: native.Run, call: Call, node: ops.AutogradNode | None = None
    ) -> Repeat | None:
        """None on a GPU, with a hyper-parameter that is a tensor, without inner steps, and for data that were converted
        or are no plain tensors."""
        support, query = call.support, call.query
        if support is None or query is None or support.x.device.type != "cpu":
            return None
        rule: Any = learner.rule
        others = [value for name, value in rule.hypers.items() if name != "lr"]
        constant = all(type(value) is float for value in (learner.__dict__.get("lr"), *others)) and not rule.learn
        read = [run.inputs.get(slot) for slot in _DATA]
        if not constant or any(a is not b for a, b in zip(read, (*support, *query), strict=True)):
            return None
        known = metadata((*support, *query, *([run.inputs[SEED]] if SEED in run.inputs else ())))
        return cls(learner, plan, run, call, known, node) if isinstance(known, bytes) else None

    def gradient(self, learner: nn.Module, support: Any, query: Any) -> tuple[Any, ...] | None:
        """Support losses, task losses, loss, logits and the gradients for other data, or None where this may not be the
        same call."""
        data = self._data(learner, support, query)
        made = None if data is None else self._run(data)
        return None if made is None else self.results(made)

    def accumulated(self, learner: nn.Module, support: Any, query: Any, scale: Tensor | None) -> list[Any] | None:
        """Support losses, task losses, loss and logits for other data, their gradients added to ``.grad``, or None."""
        if not is_plain(self.receivers):
            return None
        data = self._data(learner, support, query)
        if data is None or any_requires_grad(data) or (made := self._run(data)) is None:
            return None
        support_loss, task_loss, loss, logits, *gradients = self.results(made)
        accumulate(self.receivers, gradients, scale)
        return [support_loss, task_loss, loss, logits]

    def unrolled(self, learner: nn.Module, support: Any, query: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Loss, task losses, logits and support losses, in a graph, or None."""
        if self.node is None or not torch.is_grad_enabled():
            return None
        data = self._data(learner, support, query)
        if data is None or any_requires_grad(data) or not self._call.fits((*data, *self.seed)):
            return None
        return ops.unroll_again(self.node, *self.shared, *data)

    def _run(self, data: tuple[Any, ...]) -> list[Any] | None:
        if not self.seed:
            return self._call.run(data)
        before = torch.get_rng_state()
        made = self._call.run((*data, torch.empty_like(*self.seed).random_()))
        if made is None:  # the long way draws
            torch.set_rng_state(before)
        return made

    def _data(self, learner: nn.Module, support: Any, query: Any) -> tuple[Any, ...] | None:
        """x, y and weights of both sets, if the learner is as it was."""
        first, second = _of_batch(support), _of_batch(query)
        if first is None or second is None:
            return None
        if learner.__dict__.get("lr") is not self.lr or _settings(learner) != self.settings:
            return None
        first, second = self._taken("support", first), self._taken("query", second)
        return None if first is None or second is None else first + second


def _of_batch(given: Any) -> tuple[Any, ...] | None:
    """x, y and weights or None; None for what is no such pair or triple."""
    if not isinstance(given, (tuple, list)) or not 2 <= len(given) <= 3:
        return None
    return (*given, None) if len(given) == 2 else tuple(given)


class RepeatedHvp(Repeated):
    """What :func:`metafast.hvp` came to."""

    __slots__ = ("names", "written")
    names: tuple[tuple[str, ...], tuple[str, ...]]  # of the parameters and of the vectors
    written: list[tuple[str, int]]  # of the results, and their places among what the session writes

    def run(self, params: Any, batch: Any, v: Any) -> dict[str, Tensor] | None:
        """The product for other numbers, or None where this may not be the same call."""
        data = _of_batch(batch)
        if data is None or type(params) is not dict or type(v) is not dict:
            return None
        if (tuple(params), tuple(v)) != self.names:
            return None
        data = self._taken("batch", data)
        made = None if data is None else self._call.run((*params.values(), *v.values(), *data))
        return None if made is None else {name: made[place] for name, place in self.written}

    @classmethod
    def of(cls, plan: Plan, run: native.Run, params: Any, batch: Batch, v: Any) -> RepeatedHvp | None:
        """None on a GPU, and where something is no plain tensor or had to be converted, or a vector repeated for every
        task, or random numbers are drawn."""
        if plan.program.random or batch.x.device.type != "cpu" or type(params) is not dict or type(v) is not dict:
            return None
        tensors = (*params.values(), *v.values(), *batch)
        known = metadata(tensors)
        if not isinstance(known, bytes):
            return None
        at_param, at_v = ({name: i for i, name in enumerate(given)} for given in (params, v))
        at: dict[Slot, int] = {slot: len(params) + len(v) + i for i, slot in enumerate(SUPPORT)}
        at |= {
            ("parameters", i, 0): at_param[p.name] for i, p in enumerate(plan.program.parameters) if p.name in at_param
        }
        at |= {("vectors", i, 0): len(params) + at_v[name] for i, name in enumerate(plan.learnt) if name in at_v}
        # Each in its own place: one tensor may be both a parameter and a vector, and only the latter be repeated.
        if any(slot in at and tensor is not tensors[at[slot]] for slot, tensor in run.inputs.items()):
            return None
        made = cls(plan, run, known, at, [("batch", batch, len(params) + len(v) + 1)])
        place = {slot: i for i, slot in enumerate(run.prepared.outputs)}
        by_name = {name: place["gradient.parameters", i, 0] for i, name in enumerate(plan.learnt)}
        made.names = (tuple(params), tuple(v))
        made.written = [(name, by_name[name]) for name in params if name in by_name]
        return made
