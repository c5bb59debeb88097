"""Watches that training stays sound, and finds where it did not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from metafast.training.outer import Outer, nonfinite
from metafast.training.processes import Taken

#: Diverged: so many times the first loss, in each of so many blocks one after the other.
MULTIPLE, BLOCKS = 100.0, 10


class Divergence:
    """Counts the blocks whose mean loss lies far above the first one's."""

    def __init__(self, first: float | None = None, high: int = 0) -> None:
        self.first, self.high = first, high

    def judge(self, before: float, after: float) -> bool:
        """Whether the block's mean losses, before and after adaptation, mean that training has diverged."""
        if self.first is None:
            self.first = after if math.isnan(before) else max(before, after)
        self.high = self.high + 1 if self.first > 0 and after > MULTIPLE * self.first else 0
        return self.high >= BLOCKS

    def reason(self, meta_step: int) -> str:
        assert self.first is not None
        return (
            f"the query loss has been above {MULTIPLE:g} times its first value, {self.first:.4g}, for {BLOCKS} blocks "
            f"of meta-steps until meta-step {meta_step}; a smaller meta_lr or clip_norm=... may help"
        )


def sound(losses: Tensor, outer: Outer) -> bool:
    """Whether all losses [meta-steps] of a block and all parameters after it are finite."""
    return not nonfinite([losses, *outer.parameters])


def what_is_wrong(taken: Taken, outer: Outer) -> str:
    """What of a meta-step's findings is not finite, before the optimiser has them; empty if nothing is."""
    if nonfinite([taken.loss]):
        return f"the query loss is {float(taken.loss)}"
    if found := nonfinite(taken.gradients):
        return f"the meta-gradient of {_list(outer, found)} is not finite"
    return ""


def what_went_wrong(outer: Outer) -> str:
    """The same after the optimiser's step."""
    found = nonfinite(outer.parameters)
    return f"the optimiser's step made {_list(outer, found)} not finite" if found else ""


def _list(outer: Outer, positions: Sequence[int]) -> str:
    names = [outer.names[i] for i in positions]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
