"""The native engine for a loss of the user's own that is part of the Program (:mod:`metafast.model.traced_loss`).

The Program reads the targets behind the inputs, and writes each example's loss behind its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metafast.call import Batch, Call, InnerLoop, Unrolled
from metafast.model.program import Program, Shape


@dataclass(frozen=True)
class TracedLoss:
    """Has those functions of :mod:`metafast.engine.ops` that learners call."""

    engine: Any  # metafast.engine.ops
    outputs: Shape  # of one example, of the model
    dtype: torch.dtype
    check: Callable[[str, Tensor], None]  # raises where an integer among the inputs and targets names nothing

    def unroll(self, program: Program, call: Call, loop: InnerLoop, *, want_adapted: bool = False) -> Unrolled:
        made: Unrolled = self.engine.unroll(program, self._joined(call, loop), loop, want_adapted=want_adapted)
        return made._replace(logits=self._outputs(made.logits), again=None)

    def meta_gradient(self, program: Program, call: Call, loop: InnerLoop) -> Any:
        result = self.engine.meta_gradient(program, self._joined(call, loop), loop)
        result.logits, result.run = self._outputs(result.logits), None
        return result

    def gradient(
        self, program: Program, parameters: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, gradients = self.engine.gradient(program, parameters, self._batch("batch", batch, 2))
        return loss, gradients

    def hvp(
        self, program: Program, parameters: Sequence[Tensor], batch: Batch, vectors: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], Any]:
        products, run = self.engine.hvp(program, parameters, self._batch("batch", batch, 2), vectors)
        return products, run

    def _joined(self, call: Call, loop: InnerLoop) -> Call:
        support = self._batch("support", call.support, 3 if loop.stepwise else 2)
        return call._replace(support=support, query=self._batch("query", call.query, 2))

    def _batch(self, name: str, batch: Batch | None, lead: int) -> Batch | None:
        """Inputs with the targets behind them, and the place of the loss as the label."""
        if batch is None:
            return None
        x, y = batch.x, batch.y
        assert y is not None
        packed = torch.cat([t.reshape(*x.shape[:lead], -1).to(self.dtype) for t in (x, y)], -1)
        self.check(name, packed.detach())
        labels = torch.full(x.shape[:lead], math.prod(self.outputs), dtype=torch.int64, device=x.device)
        return Batch(packed, labels, batch.w)

    def _outputs(self, logits: Tensor | None) -> Tensor | None:
        return None if logits is None else logits[..., :-1].reshape(*logits.shape[:2], *self.outputs)
