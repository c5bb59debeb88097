"""What an engine reads of x: one tensor of numbers of the model's type. Integers become such, several tensors stand in
one; and which of the integers choose rows of tables, and of how many."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metafast import arguments
from metafast.call import tensors_of
from metafast.model.inputs import Inputs
from metafast.model.program import ABSENT, Program
from metafast.tracking.metadata import holds_classes


def may_look_at(tensor: Tensor) -> bool:
    """Whether values may be checked: on a GPU the host would have to wait for them."""
    return tensor.device.type == "cpu" or os.environ.get("METAFAST_CHECK", "0") != "0"


@dataclass(frozen=True)
class Reading:
    program: Program | None  # where the whole model has a native form
    dtype: torch.dtype
    device: torch.device
    example: tuple[int, ...]  # the shape of one, as the engine reads it
    given: torch.dtype  # of x, if that is one tensor
    inputs: Inputs | None  # of several

    def check(self, name: str, x: Any, stepwise: bool = False) -> None:
        """Device and dtype of x, and whether it is of the kind that was planned for."""
        arguments.inputs(name, x, self.dtype, self.device)
        if self.inputs is not None:
            self.inputs.refuse_others(name, x, 3 if stepwise else 2)
        elif isinstance(x, tuple):
            raise ValueError(f"{name} is {len(x)} tensors; expected one tensor, as the model was given before")
        elif self.program is not None and x.dtype != self.given:
            raise TypeError(f"{name} has dtype {x.dtype}; expected {self.given}, as the model was given before")

    @cached_property
    def converts(self) -> bool:
        """Whether x is not what the engine reads."""
        return self.inputs is not None or (self.program is not None and not self.given.is_floating_point)

    def fits(self, x: Any) -> bool:
        """Whether x is certainly of the kind that was planned for."""
        if self.inputs is not None:
            return self.inputs.fit(x, self.device)
        axes = x.dim() - len(self.example) if type(x) is Tensor else -1
        return axes >= 0 and x.dtype == self.given and x.shape[axes:] == self.example

    @cached_property
    def _limits(self) -> Limits | None:
        return None if self.program is None else Limits(self.program, self.inputs)

    def taken(self, name: str, x: Any) -> Tensor:
        """x as the engine reads it; indices and large integers are looked at."""
        if not self.converts:
            return x  # type: ignore[no-any-return]
        look = may_look_at(tensors_of(x)[0])  # where not, an index out of range gives its task NaN
        read: Tensor = x.to(self.dtype) if self.inputs is None else self.inputs.pack(x, self.dtype)
        if look and self._limits is not None:
            self._limits.check(name, x if self.inputs is None else read.detach())
        if look and self.inputs is not None:
            self.inputs.check(name, x, self.dtype)
        return read


class Limits:
    """In which ranges the elements of an example of ``program`` must be."""

    def __init__(self, program: Program, inputs: Inputs | None) -> None:
        """``inputs``: of several tensors in one."""
        self._inputs = inputs
        found = _ranges(program)
        self.example = len(found)
        same = found[0] if found and len(set(found)) == 1 else ANY  # of all
        self.none = set(found) == {ANY}
        self.classes = same.stop if same.start == 0 else 0  # they are like labels of so many classes
        self._each = found

    @cached_property
    def _bounds(self) -> Tensor:
        return torch.tensor([(each.start, each.stop) for each in self._each])

    def check(self, name: str, x: Tensor) -> None:
        """Raise IndexError if an index of x [..., *example] names no row."""
        if self.none or not x.numel() or (self.classes and holds_classes(x, self.classes)):
            return
        flat = x.reshape(-1, self.example)
        first, end = self._bounds.to(x.device).unbind(1)
        wrong = (flat < first) | (flat >= end)
        if wrong.any():
            n, i = (int(place) for place in wrong.nonzero()[0])
            if self._inputs is not None:
                name = f"{name}[{self._inputs.place(i)}]"
            valid = self._each[i]
            raise IndexError(
                f"{name} holds the index {int(flat[n, i])}; expected {valid.start} to {valid.stop - 1}, as the table "
                f"that it chooses from has {len(valid)} rows"
            )


#: The range of what chooses no row.
ANY = range(-(2**62), 2**62)


def _ranges(program: Program) -> list[range]:
    """For each element of an example: what it may be so that it chooses a row of each table that it chooses from."""
    ranges = [ANY] * math.prod(program.values[0])
    #: Of values that hold elements of the input: which, and what is added to them.
    sources = {0: [(element, 0) for element in range(len(ranges))]}
    for node in program.nodes:
        if not node.inputs or not all(i in sources for i in node.inputs):
            continue
        inputs = [element for i in node.inputs for element in sources[i]]
        settings = dict(node.attributes)
        if node.op == "embedding":
            table = node.parameters[0] if node.parameters else ABSENT
            count = program.parameters[table].shape[0] if table != ABSENT else program.values[node.output][-1]
            for element, shift in inputs:
                if element >= 0:
                    own = ranges[element]
                    ranges[element] = range(max(own.start, -shift), min(own.stop, count - shift))
        elif node.op == "affine" and settings["scale"] == 1 and settings["shift"].is_integer():
            sources[node.output] = [(element, shift + int(settings["shift"])) for element, shift in inputs]
        elif node.op == "flatten":
            sources[node.output] = inputs
        elif node.op == "sparse_map" and not node.factors and len(node.table) == math.prod(program.values[node.output]):
            sources[node.output] = [inputs[i] if i >= 0 else (-1, 0) for i in node.table]
    return ranges
