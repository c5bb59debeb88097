"""A model and a loss function of the user's own as one Program.

The function is traced as forward is, on the model's outputs and the targets. What it returns must be a mean over the
examples, or a sum, so that each has a loss of its own: a Program's output is then the model's, and behind it minus
the loss of the example, of which the negative log-likelihood makes the loss again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metafast.call import tensors_of
from metafast.model.builder import Builder, Place, described
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowered, lowers
from metafast.model.program import Loss
from metafast.model.several import Several, in_one

#: What makes minus the last element of an output, the label being its place, the loss.
LAST = Loss("nll", (("ignore_index", -100.0),))


def joined(outputs: Any, loss: Tensor) -> Tensor:
    """[N, total + 1] of what a model and a loss return: a name for the handler below, since torch has no losses of
    examples to put there."""
    raise NotImplementedError("joined() stands in a traced graph alone, and is never run")


@dataclass(frozen=True)
class Head:
    """Outputs with the loss behind them, while they are traced."""

    function: Callable[[Any, Any], Any]
    targets: Several

    @property
    def takes(self) -> int:
        """How many of the inputs are targets, which the model does not see."""
        return len(self.targets.rows.parts)

    def __call__(self, outputs: Any, targets: Sequence[Any]) -> Any:
        tracer: Any = targets[0].tracer
        tracer.enter_head()
        loss = self.function(outputs, self.targets.built(iter(targets)))
        return tracer.create_proxy("call_function", joined, (outputs, loss), {})


@lowers(joined)
def _joined(b: Builder, outputs: Any, loss: Any) -> Place:
    b.where, b.subject = "loss", ""
    if isinstance(loss, Place) and loss.reduction:
        each, b.reduction = Place(loss.value, (), []), loss.reduction
    elif isinstance(loss, (Place, Tensor)) and b.place(loss).shared and math.prod(b.place(loss).shape) == 1:
        each = rearranged(b, torch.reshape, [loss, ()], {}, True, "reshape")
    else:
        b.refuse(f"returns {described(loss)}; native are means and sums over the examples, and sums of such")
    minus = lowered(b, torch.neg, each)
    row = Place(minus.value, (1,), [], minus.shared)
    if row.shared:
        row = rearranged(b, _for_all, [tensors_of(outputs)[0], row], {}, False, "expand")
    return in_one(b, outputs, row)


def _for_all(output: Tensor, row: Tensor) -> Tensor:
    return row.expand(len(output), -1)
