"""What an engine reads of x and y: tensors of numbers of the model's type. Integers become such, several tensors stand
in one; and which of the integers choose rows of tables, and of how many.

Where a loss of the user's own is part of the Program, targets stand behind the inputs, and the label of every example
is the place of the loss among the Program's outputs (:mod:`metafast.model.traced_loss`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metafast import arguments
from metafast.call import Batch, named, tensors_of
from metafast.model.inputs import Inputs
from metafast.model.program import ABSENT, Program, Shape
from metafast.model.several import Several
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
    targets: Several | None = None  # of a loss of the user's own, if they stand in one tensor
    label: int | None = None  # where the loss stands among the outputs of the Program that it is part of

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
        """Whether x, or y, is not what the engine reads."""
        several = self.inputs is not None or self.targets is not None
        return several or (self.program is not None and not self.given.is_floating_point)

    def fits(self, x: Any, y: Any) -> bool:
        """Whether x and y are certainly of the kind that was planned for."""
        if self.label is not None and self.targets is not None and self._all is not None:
            alike = self.targets.alike(y) and isinstance(x, tuple) == (self.inputs is not None)
            return alike and self._all.fit((*tensors_of(x), *tensors_of(y)), self.device)
        if self.inputs is not None:
            return self.inputs.fit(x, self.device)
        axes = x.dim() - len(self.example) if type(x) is Tensor else -1
        return axes >= 0 and x.dtype == self.given and x.shape[axes:] == self.example

    @cached_property
    def _all(self) -> Inputs | None:
        """What an engine's x is made of: several inputs, or inputs and targets."""
        if self.label is None:
            return self.inputs
        assert self.targets is not None
        return read_together(self.inputs, self.example, self.given, self.targets)

    @cached_property
    def _limits(self) -> Limits | None:
        return None if self.program is None else Limits(self.program, self._all)

    def batch(self, name: str, batch: Batch) -> Batch:
        """Examples as the engine reads them."""
        x, y, w = batch
        if self.label is not None:
            packed = self.taken(f"{name} x", x, y, f"{name} y")
            return Batch(packed, self._labels(packed.shape[:-1]), w)
        if self.targets is not None:
            if may_look_at(tensors_of(y)[0]):
                Inputs.check(lambda i: [*named(f"{name} y", y)][i], tensors_of(y), self.dtype)
            y = self.targets.pack(y, self.dtype)
        return Batch(self.taken(f"{name} x", x), y, w)

    def taken(self, name: str, x: Any, y: Any = (), name_of_y: str = "") -> Tensor:
        """x as the engine reads it, with y behind it; indices and large integers are looked at."""
        if self._all is None and (self.program is None or self.given.is_floating_point):
            return x  # type: ignore[no-any-return]
        given = (*tensors_of(x), *tensors_of(y))
        look = may_look_at(given[0])  # where not, an index out of range gives its task NaN
        read: Tensor = x.to(self.dtype) if self._all is None else self._all.pack(given, self.dtype)

        def called(i: int) -> str:
            return [*named(name, x), *named(name_of_y, y)][i]

        if look and self._limits is not None:
            self._limits.check(called, x if self._all is None else read.detach())
        if look and self._all is not None:
            Inputs.check(called, given, self.dtype)
        return read

    @cached_property
    def _known_labels(self) -> dict[Shape, Tensor]:
        return {}

    def _labels(self, lead: Shape) -> Tensor:
        """The place of the loss, for each example: the same tensor again at the next call."""
        found = self._known_labels.get(lead)
        if found is None:
            assert self.label is not None
            with torch.inference_mode(False):
                found = torch.full(lead, self.label, dtype=torch.int64, device=self.device)
            if len(self._known_labels) < 16:
                self._known_labels[lead] = found
        return found


def read_together(inputs: Inputs | None, example: Shape, given: torch.dtype, targets: Several) -> Inputs:
    """Inputs with the targets behind them."""
    own = ((tuple(example), given),) if inputs is None else inputs.parts
    return Inputs((*own, *targets.rows.parts))


def kinds_of(support: Batch, query: Batch | None, stepwise: bool = False) -> tuple[Several, ...]:
    """What one example's targets are like: one for both sets, or two if the sets differ."""
    found = []
    for name, batch in (("support", support), ("query", query)):
        if batch is not None:
            lead = tensors_of(batch.x)[0].shape[: 3 if stepwise and name == "support" else 2]
            arguments.lead(f"{name} y", batch.y, tuple(lead))
            found.append(Several.of(batch.y, len(lead)))
    if len(set(found)) == 2 and not all(kind.one for kind in found):
        raise ValueError(f"query y is {found[1]}; expected {found[0]}, as support y is")
    return tuple(dict.fromkeys(found))


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

    def check(self, called: Callable[[int], str], x: Tensor) -> None:
        """Raise IndexError if an index of x [..., *example] names no row; ``called`` tells a tensor's name."""
        if self.none or not x.numel() or (self.classes and holds_classes(x, self.classes)):
            return
        flat = x.reshape(-1, self.example)
        first, end = self._bounds.to(x.device).unbind(1)
        wrong = (flat < first) | (flat >= end)
        if wrong.any():
            n, i = (int(place) for place in wrong.nonzero()[0])
            name, valid = called(0 if self._inputs is None else self._inputs.place(i)), self._each[i]
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
