"""An engine for models that the inner loop moves only in part: the static prefix runs once per task and set.

The inner loop of ANIL moves the last layer, say. With a fixed support set, what stands before it has the same value at
every step. So it is run once for the support set and once for the query set, each a batch of its own; the loop runs the
rest on what came out, and its gradients for these features go back through the prefix in one sweep. Autograd joins the
three. Where the prefix has no native form, torch runs it, and the inner loop is native all the same.

:class:`Composed` has those functions of :mod:`metafast.engine.ops` that learners call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from metafast.call import Call, InnerLoop, Unrolled
from metafast.engine import reference
from metafast.estimators import FirstOrder
from metafast.model import lowering
from metafast.model.builder import Unsupported
from metafast.model.cut import Part, Split, candidates, graph_cut, reads_parameters, source_of
from metafast.model.program import Loss, Shape

#: Whether the static prefix runs once: "auto" where that is less work; "always" and "never" in tests.
use = "auto"

#: Operations worth about as much as what it costs to call an engine twice more.
OVERHEAD = 3e6


class Half(NamedTuple):
    engine: Any  # metafast.engine.ops or metafast.engine.reference
    program: Any  # a Program or a reference.Model
    at: tuple[int, ...]  # the places of its parameters among those of the whole

    def of(self, parameters: Sequence[Any]) -> list[Any]:
        return [parameters[i] for i in self.at]


class Differentiated(NamedTuple):
    """Outputs and gradients without a graph, as :class:`metafast.engine.native.Result` has them."""

    loss: Tensor | None
    task_loss: Tensor | None
    logits: Tensor | None
    support_loss: Tensor
    gradients: Call
    run: None = None


@dataclass(frozen=True)
class Composed:
    whole: Any  # the engine that runs the model as it is
    prefix: Half
    rest: Half
    where: str  # in words, the layer whose output is the cut
    features: Shape  # of one example, at the cut
    flops: int  # of one example in the prefix; 0: not known, and it is always worth while

    @property
    def by_torch(self) -> bool:
        """Whether torch runs the prefix, before an inner loop that is native."""
        return self.prefix.engine is not self.rest.engine

    def of(self, model: nn.Module | None, loss: Any) -> Composed:
        """The same for a model of the same structure, or without one."""
        return replace(self, prefix=_held(self.prefix, model, loss), rest=_held(self.rest, model, loss))

    # ---- what learners call --------------------------------------------------------------------------------------

    def unroll(self, program: Any, call: Call, loop: InnerLoop, *, want_adapted: bool = False) -> Unrolled:
        """As that of the whole, of which ``program`` is."""
        if not self._is_worthwhile(call, loop, torch.is_grad_enabled() and self._sweeps(program, call)):
            made: Unrolled = self.whole.unroll(program, call, loop, want_adapted=want_adapted)
            return made
        return self._unroll(call, loop, want_adapted)

    def meta_gradient(self, program: Any, call: Call, loop: InnerLoop) -> Any:
        """As that of the whole: gradients of the learnt parameters alone."""
        learns = any(program.parameters[i].role != "constant" for i in self.prefix.at)
        if not self._is_worthwhile(call, loop, learns):
            return self.whole.meta_gradient(program, call, loop)
        learnt = set(program.learnt)
        with torch.inference_mode(False), torch.enable_grad():
            alone = call.structure().call([_detached(tensor) for tensor in call.leaves()])
            for i in learnt:
                alone.parameters[i].requires_grad_()
            out = self._unroll(alone, loop, False)
            assert out.loss is not None and out.task_loss is not None and out.logits is not None
            wanted = [alone.parameters[i] for i in program.learnt]
            gradients = torch.autograd.grad(out.loss, wanted, materialize_grads=True)
        loss, task_loss, logits = (value.detach() for value in (out.loss, out.task_loss, out.logits))
        return Differentiated(loss, task_loss, logits, out.support_loss, Call(gradients, (), None, None))

    def predict(self, program: Any, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        made: Tensor
        if not self.by_torch or use == "never":
            made = self.whole.predict(program, parameters, x)
        else:
            made = self.rest.engine.predict(self.rest.program, self.rest.of(parameters), self._features(parameters, x))
        return made

    # ------------------------------------------------------------------------------------------------------ how it runs

    def _unroll(self, call: Call, loop: InnerLoop, want_adapted: bool) -> Unrolled:
        support, query = call.support, call.query
        if support is not None:
            # Of first order, features of the support set receive nothing.
            constant = isinstance(loop.estimator, FirstOrder) and not support.x.requires_grad
            support = support._replace(x=self._features(call.parameters, support.x, loop.stepwise, constant))
        if query is not None:
            query = query._replace(x=self._features(call.parameters, query.x))
        inner = Call(self.rest.of(call.parameters), call.hypers, support, query)
        made: Unrolled = self.rest.engine.unroll(self.rest.program, inner, loop, want_adapted=want_adapted)
        return made._replace(again=None)

    def _features(
        self, parameters: Sequence[Tensor], x: Tensor, stepwise: bool = False, constant: bool = False
    ) -> Tensor:
        """The prefix's outputs [T, N, *features], or [T, K, N, *features] of minibatches that are batches of their
        own."""
        given = self.prefix.of(parameters)
        batches = x.shape[: 2 if stepwise else 1]
        if stepwise:
            known = self.prefix.program.parameters
            given = [
                value.repeat_interleave(batches[1], 0) if value.ndim > len(p.shape) else value
                for value, p in zip(given, known, strict=True)
            ]
            x = x.flatten(0, 1)
        with torch.no_grad() if constant else nullcontext():
            if self.by_torch:
                *given, x = self.rest.engine.once([*given, x])
            made: Tensor = self.prefix.engine.predict(self.prefix.program, given, x)
        if made.shape[1:] != (x.shape[1], *self.features):
            raise RuntimeError(
                f"{self.where} made features of shape {list(made.shape)} of x {list(x.shape)}, where [T, N, "
                f"{', '.join(map(str, self.features))}] were expected; make the learner with backend='torch'"
            )
        return made.view(*batches, *made.shape[1:]) if stepwise else made

    def _sweeps(self, program: Any, call: Call) -> bool:
        """Whether a gradient goes back through the prefix."""
        roles = program.parameters
        learnt = any(call.parameters[i].requires_grad and roles[i].role != "constant" for i in self.prefix.at)
        return learnt or any(batch is not None and batch.x.requires_grad for batch in (call.support, call.query))

    def _is_worthwhile(self, call: Call, loop: InnerLoop, sweeps: bool) -> bool:
        """Whether the prefix is run once. A prefix without native form always is.

        One forward pass of the prefix as the unit, an inner step costs one, and two more for the sweep; the query set
        as much. Run by itself, the prefix runs forward once more before its sweep.
        """
        if use == "never":
            return False
        if self.by_torch:
            return True
        if loop.stepwise or loop.steps == 0 or call.support is None:
            return False
        if use == "always" or not self.flops:
            return True
        examples, queries = call.support.x.shape[1], 0 if call.query is None else call.query.x.shape[1]
        swept = sweeps and not isinstance(loop.estimator, FirstOrder)
        saved = ((3 * loop.steps - 4) if swept else (loop.steps - 1)) * examples - (queries if sweeps else 0)
        return saved * call.support.x.shape[0] * self.flops > OVERHEAD


def _detached(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _held(half: Half, model: nn.Module | None, loss: Any) -> Half:
    """``half`` with the parts of another model, should torch run it."""
    if half.engine is not reference:
        return half
    return half._replace(program=replace(half.program, module=half.program.module.of(model), loss=loss))


# ---- made ------------------------------------------------------------------------------------------------------------


def composed(engine: Any, split: Split) -> Composed:
    """Both halves native."""
    prefix, rest = Half(engine, split.prefix, split.prefix_at), Half(engine, split.rest, split.rest_at)
    return Composed(engine, prefix, rest, split.where, split.rest.values[0], split.flops)


@dataclass(frozen=True)
class Observed:
    """A traced model and what the nodes of its beginning came to, for N examples and for N + 1."""

    graph: fx.Graph
    x: Tensor  # one task's examples
    nodes: list[fx.Node]  # where it might be cut, the last first
    few: dict[fx.Node, Any]
    more: dict[fx.Node, Any]


def observe(
    model: nn.Module, whole: reference.Model, graph: fx.Graph, x: Tensor, adapted: Callable[[str], bool]
) -> Observed | None:
    """Run what the inner loop does not move on one task's examples ``x``. None: there is nothing of the kind."""
    nodes = [*candidates(graph, model, adapted)]
    if whole.reading or not nodes:
        return None
    source, everything = source_of(graph), [*graph.nodes]
    part = Part(model, everything[: everything.index(nodes[0]) + 1], source, nodes[0], {})
    random: list[fx.Node] = []
    drawn: list[str] = []

    def note(node: fx.Node) -> None:
        if drawn and not random:
            random.append(node)

    try:
        few = reference.observed(whole, lambda x: part.values(x, note), x, drawn.append)
        more = reference.observed(whole, part.values, torch.cat([x, x[:1]]), lambda name: None)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return None
    before = everything[: everything.index(random[0])] if random else everything
    nodes = [node for node in nodes if node in before]
    return Observed(graph, x, nodes, few, more) if nodes else None


def cut(
    model: nn.Module,
    whole: reference.Model,
    observed: Observed,
    adapted: Callable[[str], bool],
    dtype: torch.dtype,
    native: Any = None,
) -> Composed | None:
    """``whole`` in two halves, torch running the prefix; the rest on ``native``, or on torch if that is None.

    None where there is no cut, nothing to do before it, or no native form behind it.
    """
    names = [p.name for p in whole.parameters]
    for node in observed.nodes:
        found = graph_cut(observed.graph, node, observed.few, observed.more)
        value = observed.few[node]
        if found is None or value.dtype != dtype or not reads_parameters(found.before, model):
            continue
        features, (before, behind) = tuple(value.shape[1:]), found.parts(model)
        every = tuple(range(len(names)))
        prefix = Half(
            reference,
            replace(
                whole,
                module=before,
                inputs=None,
                outputs=None,
                out=features,
                derivatives=1 if native is not None else None,
            ),
            every,
        )
        if native is None or not isinstance(whole.loss, Loss):
            rest = Half(reference, replace(whole, module=behind, inputs=None), every)
        else:
            try:
                program = lowering.lower_rest(found, model, features, adapted=adapted, loss=whole.loss, dtype=dtype)
            except Unsupported:
                continue
            rest = Half(native, program, tuple(names.index(p.name) for p in program.parameters))
        if not _agree(whole, before, behind, observed.x):
            continue
        return Composed(reference, prefix, rest, found.where, features, 0)
    return None


def _agree(whole: reference.Model, before: Part, behind: Part, x: Tensor) -> bool:
    """Whether the halves give what the whole gives: the last word on code that writes where nobody has looked."""
    drawn: list[str] = []

    def made(run: Callable[[Tensor], Any]) -> Tensor:
        return reference.observed(whole, lambda x: whole.packed(run(x)), x, drawn.append)

    expected = made(lambda x: reference.call(whole.module, x, whole.inputs))
    return bool(drawn) or torch.allclose(
        made(lambda x: behind(before(x))), expected, rtol=1e-3, atol=1e-5, equal_nan=True
    )
