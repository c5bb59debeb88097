"""Integers among the inputs that choose rows of tables: which of them, and how many rows there are."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from metafast.model.program import ABSENT, Program
from metafast.tracking.metadata import holds_classes


class Limits:
    """What the elements of an example of ``program`` must be smaller than."""

    def __init__(self, program: Program) -> None:
        found = _rows(program)
        self.example = len(found)
        self.all = found[0] if found and len(set(found)) == 1 else None  # where it is the same for all
        self._each = found

    @cached_property
    def _tensor(self) -> Tensor:
        """0 where an element chooses no row."""
        return torch.tensor(self._each)

    def check(self, name: str, x: Tensor) -> None:
        """Raise IndexError if an index of x [..., *example] names no row."""
        if self.all == 0 or not x.numel() or (self.all is not None and holds_classes(x, self.all)):
            return
        flat = x.reshape(-1, self.example)
        limits = self._tensor.to(x.device)
        wrong = (limits > 0) & ((flat < 0) | (flat >= limits))
        if wrong.any():
            n, i = (int(place) for place in wrong.nonzero()[0])
            raise IndexError(
                f"{name} holds the index {int(flat[n, i])}; expected 0 to {self._each[i] - 1}, as the table that it "
                f"chooses from has {self._each[i]} rows"
            )


def _rows(program: Program) -> list[int]:
    """For each element of an example: of how many rows it chooses one, in the smallest of its tables; else 0."""
    rows = [0] * math.prod(program.values[0])
    sources = {0: list(range(len(rows)))}  # of values that hold elements of the input: which
    for node in program.nodes:
        if not all(i in sources for i in node.inputs) or node.op not in ("embedding", "flatten", "sparse_map"):
            continue
        inputs = [element for i in node.inputs for element in sources[i]]
        if node.op == "embedding":
            table = node.parameters[0] if node.parameters else ABSENT
            count = program.parameters[table].shape[0] if table != ABSENT else program.values[node.output][-1]
            for element in inputs:
                if element >= 0:
                    rows[element] = min(rows[element] or count, count)
        elif node.op == "flatten":
            sources[node.output] = inputs
        elif not node.factors and len(node.table) == math.prod(program.values[node.output]):
            sources[node.output] = [inputs[i] if i >= 0 else -1 for i in node.table]
    return rows
