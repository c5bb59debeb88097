"""A model and a loss function of the user's own as one Program.

The function is traced as forward is, on the model's outputs and the targets. What it returns must be a mean over the
examples, so that each has a loss of its own: a Program's output is then the model's, and behind it minus the loss of
the example, of which the negative log-likelihood makes the loss again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metafast.model.builder import Builder, Place, described
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowered, lowers
from metafast.model.program import Loss

#: What makes minus the last element of an output, the label being its place, the loss.
LAST = Loss("nll", (("ignore_index", -100.0),))


def joined(output: Tensor, loss: Tensor) -> Tensor:
    """[N, outputs + 1] of what a model and a loss return: a name for the handler below, since torch has no losses of
    examples to put there."""
    raise NotImplementedError("joined() stands in a traced graph alone, and is never run")


def head(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """(outputs, targets) -> outputs with the loss behind them, while they are traced."""

    def with_loss(output: Any, target: Any) -> Any:
        tracer: Any = target.tracer
        tracer.enter_head()
        return tracer.create_proxy("call_function", joined, (output, function(output, target)), {})

    return with_loss


@lowers(joined)
def _joined(b: Builder, output: Any, loss: Any) -> Place:
    b.where, b.subject = "loss", ""
    if not isinstance(output, Place):
        b.refuse(f"is called with {described(output)}; native is one tensor that the model returns")
    if isinstance(loss, Place) and loss.averaged:
        each = Place(loss.value, (), [])
    elif isinstance(loss, (Place, Tensor)) and b.place(loss).shared and math.prod(b.place(loss).shape) == 1:
        each = rearranged(b, torch.reshape, [loss, ()], {}, True, "reshape")
    else:
        b.refuse(f"returns {described(loss)}; native are means over the examples, their sums, differences, multiples")
    minus = lowered(b, torch.neg, each)
    size = math.prod(output.shape)
    row = Place(minus.value, (1,), [], minus.shared)
    if row.shared:
        row = rearranged(b, _for_all, [output, row], {}, False, "expand")
    whole = rearranged(b, torch.flatten, [output, 1], {}, True, "flatten") if len(output.shape) != 1 else output
    if not output.shape:
        whole = Place(output.value, (1,), [])
    made: Place = rearranged(b, torch.cat, [[whole, row], 1], {}, False, "loss")
    assert made.shape == (size + 1,)
    return made


def _for_all(output: Tensor, row: Tensor) -> Tensor:
    return row.expand(len(output), -1)
