"""Parts of tensors: by slices, and one of each example by integers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from metafast.model.builder import BATCH, Builder, Place, batched, described
from metafast.model.constant import Constant, any_of, given
from metafast.model.layers.arithmetic import shifted
from metafast.model.layers.embeddings import chosen
from metafast.model.layers.pairs import pair
from metafast.model.layers.rearrangement import rearranged, reduced
from metafast.model.layers.sequences import chosen_step
from metafast.model.layers.table import lowers


class Examples:
    """The numbers of the examples, torch.arange(N)."""

    type_in_torch = Tensor

    def __repr__(self) -> str:
        return "the numbers of the examples"


@lowers(torch.arange)
def arange(b: Builder, *limits: Any, dtype: Any = None, device: Any = None) -> Examples | Constant:
    if all(type(each) is int for each in limits):
        return Constant(torch.arange(*limits, dtype=dtype))
    if limits not in ((BATCH,), (0, BATCH), (0, BATCH, 1)) or dtype not in (None, torch.int64, torch.int32):
        b.refuse("is native for the numbers of the examples, arange(N), which may choose a step of each")
    return Examples()


@lowers(operator.getitem)
def getitem(b: Builder, input: Any, item: Any) -> Any:
    if isinstance(input, Place) and isinstance(item, tuple) and any(isinstance(each, Examples) for each in item):
        return _step_of_each(b, input, item)
    if isinstance(input, (Place, Tensor)):
        copies = any_of(Constant, [item])
        function = (lambda x, item: x[given(item)]) if copies else operator.getitem
        return rearranged(b, function, (input, item), {}, not copies, "[]")
    if not isinstance(input, (tuple, list)):
        b.refuse(f"takes a part of {described(input)}, which has no native form")
    return input[item]


def _step_of_each(b: Builder, input: Place, item: tuple[Any, ...]) -> Place:
    """``x[torch.arange(N), steps]``, or ``x[steps, torch.arange(N)]`` where the steps come first."""
    own = item[: 2 * (input.axis < 2)]
    index = next((each for each in own if isinstance(each, Place) and not each.shape and not each.shared), None)
    whole = all(each == slice(None) for each in item[2:])
    fits = index is not None and isinstance(own[input.axis], Examples) and whole and input.shape
    if index is None or not fits or input.shared or input.integers:
        b.refuse("chooses by the numbers of examples and something else; native is x[torch.arange(N), steps]")
    count, steps = input.shape[0], Place(input.value, input.shape)
    if input.ragged:  # where the end that -1 would mean is not known
        return chosen_step(b, steps, chosen(b, index, count))
    signed = chosen(b, shifted(b, index, count) if index.integers else index, 2 * count)
    table = [at + i for i in range(count) for at in (0, count)]
    return chosen_step(b, steps, b.emit("sparse_map", (signed,), (count,), table=table, says="[]"))


@lowers(torch.gather, "gather")
def gather(b: Builder, input: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Place:
    input, index = b.place(input), b.place(index)
    if input.shared or index.shared or len(input.shape) != len(index.shape) or not input.shape or input.integers:
        b.refuse("is native for numbers and an index that are computed from the input, of equally many axes")
    dim = b.axis(input, dim)
    steps = Place(input.value, input.shape) if input.ragged and dim == 1 else input
    b.read(steps)
    narrow, wide = ([n for i, n in enumerate(place.shape) if i != dim - 1] for place in (index, input))
    if dim == 0 or any(n > m for n, m in zip(narrow, wide, strict=True)):
        b.refuse(f"chooses from {batched(input.shape)} along axis {dim} by {batched(index.shape)}, which is not native")
    choice = chosen(b, index, input.shape[dim - 1])

    def turned(x: Tensor) -> Tensor:
        near = (slice(None), *map(slice, narrow))
        return x.movedim(dim, -1)[near].unsqueeze(dim)

    choices = rearranged(b, turned, [steps], {}, False, "gather")
    return reduced(b, pair(b, "multiply", choice, choices), [len(choice.shape)], False, 1.0, "gather")
