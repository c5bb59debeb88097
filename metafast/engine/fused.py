"""An inner loop on torch's own fused layers, which are quick and differentiate right twice, but no more.

A meta-gradient is a second derivative. Norms and attention that torch runs as one operation give it in less time than
the plain operations of :mod:`metafast.engine.formulas`, which have every derivative. Where autograd is asked for a
meta-gradient that can be differentiated again (``create_graph=True``), the loop runs once more, written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metafast import transforms
from metafast.call import Call, Unrolled

Run = Callable[[Call], Unrolled]


@dataclass
class _Loop:
    """A loop between its two nodes in autograd's graph."""

    written_out: Callable[[Sequence[Tensor]], list[Tensor]]  # the outputs for these inputs
    cotangents: Sequence[Tensor | None] = ()  # of the outputs, in the backward pass that is on its way


class _Inputs(Function):
    """The tensors themselves; their gradients are those of the loop written out if somebody will differentiate them."""

    @staticmethod
    def forward(ctx: Any, loop: _Loop, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.loop = loop
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    @transforms.backward
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return (None, *gradients)
        tensors = [t.view_as(t) for t in ctx.saved_tensors]  # of which none is made of another
        outputs = ctx.loop.written_out(tensors)
        there = [(o, c) for o, c in zip(outputs, ctx.loop.cotangents, strict=True) if c is not None]
        made = torch.autograd.grad(
            [o for o, _ in there], tensors, [c for _, c in there], create_graph=True, allow_unused=True
        )
        return (None, *made)


class _Outputs(Function):
    """The tensors themselves; notes their cotangents."""

    @staticmethod
    def forward(ctx: Any, loop: _Loop, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.loop = loop
        ctx.set_materialize_grads(False)
        return tuple(t.detach() for t in tensors)  # no views, which could not be written into

    @staticmethod
    @transforms.backward
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.loop.cotangents = cotangents if torch.is_grad_enabled() else ()
        return (None, *cotangents)


def unroll(quick: Run, written_out: Run, call: Call) -> Unrolled:
    """``quick(call)``, with derivatives beyond the second from ``written_out``."""
    leaves = call.leaves()
    at = [i for i, t in enumerate(leaves) if t is not None and t.requires_grad]
    if transforms.active():
        return written_out(call)
    if not torch.is_grad_enabled() or not at:
        return quick(call)

    def with_inputs(tensors: Sequence[Tensor]) -> Call:
        filled = [*leaves]
        for i, tensor in zip(at, tensors, strict=True):
            filled[i] = tensor
        return call.structure().call(filled)

    loop = _Loop(lambda tensors: _outputs(written_out(with_inputs(tensors))))
    made = quick(with_inputs(_Inputs.apply(loop, *[leaves[i] for i in at])))  # type: ignore[no-untyped-call]
    if not _outputs(made):
        return made
    outputs: Sequence[Tensor] = _Outputs.apply(loop, *_outputs(made))  # type: ignore[no-untyped-call]
    return _with_outputs(made, outputs)


def _outputs(made: Unrolled) -> list[Tensor]:
    """Those with a graph."""
    every = (made.loss, made.task_loss, made.logits, *(made.adapted or ()))
    return [t for t in every if t is not None and t.requires_grad]


def _with_outputs(made: Unrolled, outputs: Sequence[Tensor]) -> Unrolled:
    rest = iter(outputs)

    def one(tensor: Tensor | None) -> Tensor | None:
        return next(rest) if tensor is not None and tensor.requires_grad else tensor

    loss, task_loss, logits = one(made.loss), one(made.task_loss), one(made.logits)
    adapted = None if made.adapted is None else tuple(t for t in map(one, made.adapted) if t is not None)
    return made._replace(loss=loss, task_loss=task_loss, logits=logits, adapted=adapted)
