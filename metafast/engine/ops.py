"""The native engine behind autograd: the same four functions as :mod:`metafast.engine.reference`.

Eager sweep: with gradients enabled, the forward of :func:`unroll` computes the loss and its whole meta-gradient in one
native call while everything is in cache; backward then only scales it. A cotangent on any other output, or a second
backward through the same graph, runs the sweep in backward from the saved inputs (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metafast import transforms
from metafast.call import Batch, Call, Hyper, InnerLoop, Structure, Unrolled
from metafast.engine import native
from metafast.engine.native import NOTHING, PARAMETERS_ONLY, Cotangents, Wanted
from metafast.model.program import Program

TWICE = (
    "metafast's native gradients are differentiable once. For higher derivatives make the learner with "
    'backend="torch", which runs plain autograd.'
)


class _NotTwice(Function):
    """Identity on gradients whose own differentiation raises: passed ``count`` gradients, then what they depend on."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        raise RuntimeError(TWICE)


def _once(gradients: Sequence[Tensor | None], depend_on: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """``gradients``, guarded if somebody means to differentiate them again (create_graph=True)."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    with torch.enable_grad():
        guarded: tuple[Tensor | None, ...] = _NotTwice.apply(len(gradients), *gradients, *depend_on)  # type: ignore[no-untyped-call]
    return guarded


def once(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors for torch's code, whose own second derivative, should it have one, is not to be taken."""
    made = []
    for tensor in tensors:
        if torch.is_grad_enabled() and tensor.requires_grad:
            tensor = tensor.view_as(tensor)
            tensor.register_hook(lambda gradient: _once([gradient], [gradient])[0])  # type: ignore[no-untyped-call]
        made.append(tensor)
    return made


def _apply(function: type[Function], *inputs: Any) -> Any:
    """``function.apply`` without its search, at every call, for default arguments: there are none."""
    transforms.refuse_natively()
    return super(Function, function).apply(*inputs)  # type: ignore[misc]


def _requires(*tensors: Tensor | None) -> tuple[bool, ...]:
    return tuple([t is not None and t.requires_grad for t in tensors])


@dataclass(slots=True)
class AutogradNode:
    """What :func:`unroll` knows besides its tensors: which they are, and how the loop runs."""

    program: Program
    structure: Structure
    loop: InnerLoop | None
    want_adapted: bool
    needs: Sequence[bool] = ()
    made: native.Run | None = None  # what running it eagerly came to; from forward to unroll
    ready: native.Prepared | None = None  # the session that serves tensors like those
    others: tuple[None, ...] = ()  # of a ready session, which makes gradients of the parameters alone
    eager: Call | None = None  # gradients, from forward to setup_context
    seed: Tensor | None = None  # of random nodes, from unroll to setup_context

    def run(
        self, call: Call, sweep: Wanted | None, cotangents: Cotangents = NOTHING, seed: Tensor | None = None
    ) -> native.Result:
        return native.run(
            self.program,
            call,
            self.loop,
            want_adapted=self.want_adapted and sweep is None,
            sweep=sweep,
            cotangents=cotangents,
            seed=seed,
        )

    def be_ready(self, prepared: native.Prepared) -> None:
        """From now on ``prepared`` serves the tensors, of which the parameters alone want gradients."""
        leaves = self.structure.leaves
        self.ready, self.others = prepared, (None,) * (leaves - self.structure.parameters)

    def run_ready(self, tensors: Sequence[Any]) -> tuple[Tensor | None, ...]:
        assert self.ready is not None
        there = [tensor for tensor in (*tensors, self.seed) if tensor is not None]
        support_loss, task_loss, loss, logits, *made = self.ready.run(there)
        self.eager = PARAMETERS_ONLY._replace(parameters=made)
        return loss, task_loss, logits, support_loss

    def run_eagerly(self, call: Call) -> tuple[Tensor | None, ...]:
        """The outputs; the gradients of the loss are left in ``eager``."""
        result = self.run(call, self.wanted(self.needs), Cotangents(loss=1.0 / call.first.x.shape[0]), self.seed)
        self.made, self.eager = result.run, result.gradients
        return result.loss, result.task_loss, result.logits, result.support_loss

    def wanted(self, needs: Sequence[bool]) -> Wanted:
        return self.structure.call(needs)

    def as_inputs(self, gradients: Call, adapted: Sequence[Tensor | None] = ()) -> list[Tensor | None]:
        """Gradients in the order of the node's tensors; ``adapted`` are the cotangents of the adapted parameters.

        None, as autograd has it, for a parameter that the model never uses, and for values of its own: an optimiser
        then leaves it alone.
        """
        known = native.handle(self.program)
        parameters: list[Tensor | None] = [None] * self.structure.parameters
        for i, gradient in zip(known.learnt, gradients.parameters, strict=True):
            parameters[i] = gradient
        unused = known.unused
        if unused:
            unused = unused - {i for i, t in zip(known.adapted, adapted, strict=False) if t is not None}
            for i in unused:
                parameters[i] = None
        if gradients.support is None and gradients.query is None:
            return [*parameters, *self.others]
        hypers = gradients.hypers
        if unused:
            idle = {a for a, i in enumerate(known.adapted) if i in unused}
            hypers = [
                Hyper(h.table, tuple([(a, None if a in idle else t) for a, t in h.elementwise]))  # type: ignore[misc]
                for h in hypers
            ]
        return Call(parameters, hypers, gradients.support, gradients.query).leaves()


class _Unroll(Function):
    @staticmethod
    def forward(call: AutogradNode, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        if call.ready is not None:
            return call.run_ready(tensors)
        given = call.structure.call(tensors)
        if given.query is not None and given.query.y is not None and not call.want_adapted:
            return call.run_eagerly(given)
        result = call.run(given, None, seed=call.seed)
        return (result.loss, result.task_loss, result.logits, result.support_loss, *(result.adapted or ()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        call = ctx.call = inputs[0]
        ctx.eager, call.eager = call.eager, None
        ctx.seed, call.seed = call.seed, None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[3])
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @transforms.backward
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        call, tensors = ctx.call, ctx.saved_tensors
        loss, task_loss, logits, _, *adapted = cotangents
        gradients = None
        if task_loss is None and logits is None and not any(t is not None for t in adapted):
            if loss is None:
                return (None,) * (1 + len(tensors))
            # Whoever receives the eager gradients owns them and may change them, so they are handed out once.
            gradients, ctx.eager = ctx.eager, None
        if gradients is None:
            with torch.no_grad():
                gradients = _deferred(call, tensors, ctx.needs_input_grad[1:], cotangents, ctx.seed)
        elif loss is not None and (loss.is_cuda or loss.item() != 1.0):  # without waiting for a GPU
            for gradient in call.as_inputs(gradients):  # no adapted parameter has a cotangent here
                if gradient is not None:
                    gradient.mul_(loss.detach())
        return (None, *_once(call.as_inputs(gradients, adapted), (*cotangents, *tensors)))


def _deferred(
    call: AutogradNode,
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    cotangents: Sequence[Tensor | None],
    random: Tensor | None,
) -> Call:
    """The sweep for cotangents on any outputs, from the inputs alone."""
    loss, task_loss, logits, _, *adapted = cotangents
    given = call.structure.call(tensors)
    seed = Cotangents(0.0, task_loss, logits, adapted if any(t is not None for t in adapted) else None)
    if loss is not None:
        tasks = given.first.x.shape[0]
        mean = (loss / tasks).expand(tasks)
        seed.task_loss = mean if task_loss is None else task_loss + mean
    gradients = call.run(given, call.wanted(needs), seed, random).gradients
    assert gradients is not None
    return gradients


def unroll(program: Program, call: Call, loop: InnerLoop | None, *, want_adapted: bool = False) -> Unrolled:
    """K inner steps for every task, then the query loss (docs/maths.md, section 2).

    Differentiable once in everything but integer targets.
    """
    if loop is not None and loop.steps == 0:
        loop, call = None, call._replace(hypers=(), support=None if call.query is not None else call.support)
    node = AutogradNode(program, call.structure(), loop, want_adapted)
    tensors = call.leaves()
    if torch.is_grad_enabled() and any(needs := _requires(*tensors)):
        node.needs, node.seed = needs, native.draw_seed(program)
        loss, task_loss, logits, support_loss, *adapted = _apply(_Unroll, node, *tensors)
    else:
        result = node.run(call, None)
        loss, task_loss, logits, support_loss = result.loss, result.task_loss, result.logits, result.support_loss
        adapted = result.adapted or []
    again = None if node.made is None else (node, node.made)
    node.made = None  # a graph may live longer than the tensors it was made of need to
    return Unrolled(loss, task_loss, logits, support_loss, tuple(adapted) if want_adapted else None, again)


def unroll_again(node: AutogradNode, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, task losses, logits and support losses of :func:`unroll` for other tensors like those that made ``node``,
    which is ``ready``, the parameters alone requiring a gradient."""
    node.seed = native.draw_seed(node.program)
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _apply(_Unroll, node, *tensors)
    return outputs


def meta_gradient(program: Program, call: Call, loop: InnerLoop) -> native.Result:
    """:func:`unroll` with the gradients of its loss in ``program.learnt``, and no graph: what autograd itself costs is
    more than a small meta-step."""
    inner: InnerLoop | None = loop
    if loop.steps == 0:
        inner, call = None, call._replace(hypers=(), support=None)
    return native.run(program, call, inner, sweep=PARAMETERS_ONLY, cotangents=Cotangents(1.0 / call.first.x.shape[0]))


def predict(program: Program, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs [T, N, *output] for x [T, N, *example] at parameters shared or per task; differentiable once."""
    logits = unroll(program, Call(parameters, (), None, Batch(x, None, None)), None).logits
    assert logits is not None
    return logits


def hvp(
    program: Program, parameters: Sequence[Tensor], batch: Batch, vectors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], native.Run]:
    """H_t v_t for every task, H_t the Hessian of its loss in ``program.learnt``; v_t and result [T, *shape] each.

    Also the run that this came to.
    """
    with torch.no_grad():
        call = Call(parameters, (), batch, None)
        result = native.run(program, call, vectors=vectors, gradients_per_task=True)
    assert result.gradients is not None
    return tuple(result.gradients.parameters), result.run


class _Gradient(Function):
    """Loss and gradient of every task; its backward is a Hessian-vector product with the gradient's cotangent."""

    @staticmethod
    def forward(program: Program, count: int, seed: Tensor | None, *tensors: Any) -> tuple[Tensor, ...]:
        return _loss_and_gradient(program, tensors[:count], Batch(*tensors[count:]), seed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.program, ctx.count, ctx.seed = inputs[:3]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    @transforms.backward
    def backward(ctx: Any, loss: Tensor | None, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        program, count, tensors = ctx.program, ctx.count, ctx.saved_tensors
        with torch.no_grad():
            batch = Batch(*tensors[count:])
            tasks = batch.x.shape[0]
            filled = [
                batch.x.new_zeros((tasks, *program.parameters[i].shape)) if v is None else v
                for i, v in zip(program.learnt, vectors, strict=True)
            ]
            gradients = native.run(
                program,
                Call(tensors[:count], (), batch, None),
                sweep=Call((), (), Batch(*ctx.needs_input_grad[3 + count :]), None),
                cotangents=Cotangents(0.0, loss),
                vectors=filled,
                seed=ctx.seed,
            ).gradients
            assert gradients is not None
            made: list[Tensor | None] = [None] * count
            unused = native.handle(program).unused
            for i, gradient in zip(program.learnt, gradients.parameters, strict=True):
                made[i] = None if i in unused else gradient
        assert gradients.support is not None
        return (None, None, None, *_once([*made, *gradients.support], (loss, *vectors, *tensors)))


def _loss_and_gradient(
    program: Program, parameters: Sequence[Tensor], batch: Batch, seed: Tensor | None = None
) -> tuple[Tensor, ...]:
    result = native.run(
        program,
        Call(parameters, (), None, batch),
        sweep=PARAMETERS_ONLY,
        cotangents=Cotangents(loss=1.0),
        gradients_per_task=True,
        seed=seed,
    )
    assert result.task_loss is not None and result.gradients is not None
    return (result.task_loss, *result.gradients.parameters)


def gradient(program: Program, parameters: Sequence[Tensor], batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss [T] and its gradients [T, *shape] in ``program.learnt`` for every task; differentiable once."""
    tensors = (*parameters, *batch)
    if torch.is_grad_enabled() and any(_requires(*tensors)):
        loss, *gradients = _apply(_Gradient, program, len(parameters), native.draw_seed(program), *tensors)
    else:
        loss, *gradients = _loss_and_gradient(program, parameters, batch)
    return loss, tuple(gradients)
