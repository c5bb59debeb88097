"""Functions of torch that do nothing but move elements: each is run on the numbers of the elements, which gives the
table of one sparse map. Sums and means over axes are maps of the same kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.model.builder import Batch, Builder, Place, batched, form_of
from metafast.model.layers.table import KNOW_MERGED, lowers, lowers_module
from metafast.model.program import Shape

#: Numbers of examples that a function is run for. What it does must be the same for both.
_FEW, _MORE = 2, 3


def rearranged(
    b: Builder,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    keywords: dict[str, Any],
    view: bool,
    says: str,
    form: Callable[[Shape], Shape] = form_of,
) -> Any:
    """What a function makes of its Places by moving, repeating or dropping elements, or putting zeros between them, as
    values of the ``form`` for its shape. A result in which nothing moved is its input in another shape, and costs
    nothing."""
    places: list[Place] = []

    def known(argument: Any) -> Any:
        if isinstance(argument, (tuple, list)):
            return [*map(known, argument)] if isinstance(argument, list) else tuple(map(known, argument))
        if isinstance(argument, (Tensor, nn.Parameter)):
            argument = b.place(argument)
        if isinstance(argument, Place):
            b.read(b.first(argument))
            if all(argument is not place for place in places):
                places.append(argument)
        return argument

    arguments, keywords = known(list(arguments)), {name: known(value) for name, value in keywords.items()}
    few, more = (_numbered(b, function, arguments, keywords, places, n) for n in (_FEW, _MORE))
    if isinstance(few, Tensor):
        return _mapped(b, places, few, more, view, says, form)
    return tuple(_mapped(b, places, *pair, view, says, form) for pair in zip(few, more, strict=True))


def _numbered(
    b: Builder, function: Callable[..., Any], arguments: Any, keywords: Any, places: list[Place], n: int
) -> Any:
    """The function's result on tensors of n examples that hold their elements' numbers, from 1; 0 is no element. They
    count the elements of one example of all places, one place behind the other, and go on with the next example."""
    total = sum(math.prod(place.shape) for place in places)
    tensors: dict[int, Tensor] = {}
    begin = 1
    for place in places:
        numbers = torch.arange(begin, begin + math.prod(place.shape), dtype=torch.float64).reshape(place.shape)
        if not place.shared:
            examples = torch.arange(n, dtype=torch.float64) * total
            numbers = numbers.unsqueeze(place.axis)
            numbers = numbers + examples.reshape([-1 if i == place.axis else 1 for i in range(numbers.ndim)])
        tensors[id(place)] = numbers.flatten(0, 1) if place.merged else numbers
        begin += math.prod(place.shape)

    def given(argument: Any) -> Any:
        if isinstance(argument, (tuple, list)):
            return [*map(given, argument)] if isinstance(argument, list) else tuple(map(given, argument))
        if isinstance(argument, Place):
            return tensors[id(argument)]
        return n * argument.times if isinstance(argument, Batch) else argument

    try:
        with torch.no_grad():
            return function(*given(arguments), **{name: given(value) for name, value in keywords.items()})
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        b.refuse(f"has no native form with these arguments, or fails in torch: {reason}")


def _mapped(
    b: Builder,
    places: list[Place],
    few: Tensor,
    more: Tensor,
    view: bool,
    says: str,
    form: Callable[[Shape], Shape],
) -> Place:
    few, more, merged = _split_rows(few, more)
    one, axis = _one_example(b, places, few, more)
    shared, alone = axis is None, all(place.shared for place in places)
    total = sum(math.prod(place.shape) for place in places)
    shape = tuple(one.shape)
    table = (one.reshape(-1) - 1).long()
    if len(places) == 1 and shared == alone and torch.equal(table, torch.arange(total)):
        first = b.first(places[0])
        memory = first.memory if view else []
        if len(shape) == 1 and b.form(first) != shape and not shared and not axis:
            first = b.emit("flatten", (first,), shape, memory=memory)
        return Place(first.value, shape, memory, shared, axis or 0, merged, first.integers)
    made = b.emit(
        "sparse_map",
        _at_most_four(b, [b.first(place) for place in places]),
        form(shape),
        attributes={"per_example": 1} if alone and not shared else {},
        shape=shape,
        memory=places[0].memory if view and len(places) == 1 else None,
        table=table.tolist(),
        says=says,
    )
    return Place(made.value, shape, made.memory, shared, axis or 0, merged, made.integers) if axis or merged else made


def _one_example(b: Builder, places: list[Place], few: Tensor, more: Tensor) -> tuple[Tensor, int | None]:
    """The numbers of one example's elements, and the axis of the examples: None if the result has none. Refuses where
    an example's elements go to another."""
    total = sum(math.prod(place.shape) for place in places)
    if few.ndim != more.ndim:
        b.refuse("has a shape that depends on the number of examples, which has no native form")
    axes = [i for i in range(few.ndim) if few.shape[i] != more.shape[i]]
    if not axes:
        if any(not place.shared for place in places):
            b.refuse("mixes examples, which has no native form")
        return more, None
    if len(axes) > 1 or (few.shape[axes[0]], more.shape[axes[0]]) != (_FEW, _MORE):
        b.refuse("joins the axis of the examples with another, which has no native form; native is to leave it")
    each = more.movedim(axes[0], 0)
    own = torch.cat([torch.full((math.prod(p.shape),), 0.0 if p.shared else 1.0) for p in places]).double()
    for i in range(1, _MORE):  # the next example's elements, or no element, or those that all examples share
        step = torch.where(each[0] > 0, own[(each[0] - 1).clamp(0, total - 1).long()] * total * i, 0)
        if not torch.equal(each[i], each[0] + step) or (each[0] > total).any():
            b.refuse("mixes examples, which has no native form")
    return each[0], axes[0]


def _split_rows(few: Tensor, more: Tensor) -> tuple[Tensor, Tensor, bool]:
    """[N * rows, *rest] as [N, rows, *rest], and whether it was."""
    rows, rest = divmod(len(few), _FEW) if few.ndim else (0, 0)
    if rows < 2 or rest or len(more) != rows * _MORE or few.shape[1:] != more.shape[1:]:
        return few, more, False
    return few.reshape(_FEW, rows, *few.shape[1:]), more.reshape(_MORE, rows, *more.shape[1:]), True


def _at_most_four(b: Builder, places: list[Place]) -> tuple[Place, ...]:
    """Places of the same elements in the same order, as many as a node takes: of several, their concatenation."""
    while len(places) > 4:
        joined = []
        for i in range(0, len(places), 4):
            part = places[i : i + 4]
            size = sum(math.prod(place.shape) for place in part)
            joined.append(
                b.emit("sparse_map", tuple(part), (size,), table=range(size), says="cat") if len(part) > 1 else part[0]
            )
        places = joined
    return tuple(places)


def _moves(*names: Any, view: bool = True, says: str = "") -> None:
    """Register functions, and methods by their names, as rearrangements."""
    for name in names:
        function = getattr(Tensor, name) if isinstance(name, str) else name
        called = says or (name if isinstance(name, str) else name.__name__)

        def handler(
            b: Builder, *arguments: Any, _function: Callable[..., Any] = function, _says: str = called, **keywords: Any
        ) -> Any:
            return rearranged(b, _function, arguments, keywords, view, _says)

        lowers(name)(handler)
        KNOW_MERGED.add(name)


KNOW_MERGED |= {torch.squeeze, "squeeze"}


@lowers(torch.squeeze, "squeeze")
def squeeze(b: Builder, input: Any, dim: Any = None) -> Any:
    place = b.place(input)
    rank = len(place.shape) + (not (place.shared or place.merged))
    given = range(rank) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    if not (place.shared or place.merged) and any(axis in (place.axis, place.axis - rank) for axis in given):
        b.refuse(
            "removes the axis of the examples where N is 1, which has no native form; name other axes, squeeze(-1)"
        )
    return rearranged(b, torch.squeeze, (place,) if dim is None else (place, dim), {}, True, "squeeze")


_moves(torch.reshape, "reshape", "view", "view_as", "reshape_as", torch.flatten, "flatten")
_moves(torch.permute, "permute", torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.movedim, "movedim")
_moves(torch.unsqueeze, "unsqueeze", torch.unflatten, "unflatten")
_moves(torch.narrow, "narrow", torch.select, "select", torch.unbind, "unbind")
_moves(torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split")
_moves("expand", "expand_as", torch.broadcast_to, "broadcast_to", "unfold", "t", torch.t)
_moves(torch.cat, torch.concat, torch.stack, torch.hstack, torch.vstack, torch.flip, "flip", view=False)
_moves(torch.roll, "roll", "repeat", torch.tile, "tile", F.pixel_shuffle, F.pixel_unshuffle, view=False)
_moves(torch.repeat_interleave, "repeat_interleave", torch.tril, "tril", torch.triu, "triu", view=False)
lowers_module(nn.Flatten)(lambda b, m, x: rearranged(b, m, [x], {}, True, "flatten"))
lowers_module(nn.PixelShuffle)(lambda b, m, x: rearranged(b, m, [x], {}, False, "pixel_shuffle"))
lowers_module(nn.Unflatten)(lambda b, m, x: rearranged(b, m, [x], {}, True, "unflatten"))


# ---- sums and means over axes ----------------------------------------------------------------------------------------


def reduced(b: Builder, input: Place, axes: Sequence[int], keepdim: bool, factor: float, says: str) -> Place:
    """``factor`` times the sum over these axes of torch's tensor, of which that of the examples is none."""
    inner = _inner(input, axes)
    if len(inner) < len(axes):
        b.refuse(f"sums over the examples of {batched(input.shape)}, which has no native form")
    elements = torch.arange(math.prod(input.shape)).reshape(input.shape)
    kept: Shape = tuple(s for i, s in enumerate(input.shape) if i not in inner)
    shape = tuple(1 if i in inner else s for i, s in enumerate(input.shape)) if keepdim else kept
    table = elements.movedim(inner, list(range(-len(inner), 0))).reshape(-1)
    factors = () if factor == 1 else [factor] * len(table)
    first = b.first(input) if input.axis else input
    made = b.emit("sparse_map", (first,), form_of(shape), shape=shape, table=table.tolist(), factors=factors, says=says)
    made.axis = input.axis - sum(axis < input.axis for axis in axes if not keepdim)
    return made


def _inner(input: Place, axes: Sequence[int]) -> list[int]:
    """Of axes of torch's tensor, those of an example."""
    if input.shared:
        return [*axes]
    return [axis - (axis > input.axis) for axis in axes if axis != input.axis]


def _axes(b: Builder, input: Any, dim: Any) -> list[int]:
    input = b.place(input)
    rank = len(input.shape) + (not input.shared)
    if dim is None or dim in ((), []):
        return list(range(rank))
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not all(isinstance(axis, int) and -rank <= axis < rank for axis in axes):
        b.refuse(f"names {dim!r}, which is no axis of {batched(input.shape)}")
    return sorted({axis % rank for axis in axes})


@lowers(torch.sum, "sum")
def sum_over(b: Builder, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Literal[None] = None) -> Place:
    input = b.place(input)
    axes = _axes(b, input, dim)
    if _of_all(input, axes, keepdim) and not input.integers:
        return of_examples(b, input, "sum")
    if input.integers == torch.bool:  # whose numbers are counted exactly
        made = reduced(b, b.real(input), axes, keepdim, 1.0, "sum")
        made.integers = torch.int64
        return made
    if input.ragged and 0 in _inner(input, axes):  # to which what stands behind an end adds zeros
        input = Place(input.value, input.shape, axis=input.axis)
    return reduced(b, input, axes, keepdim, 1.0, "sum")


def _of_all(input: Place, axes: Sequence[int], keepdim: bool) -> bool:
    """Whether all elements of all examples become one number, as in a loss and in a sum that is differentiated."""
    return axes == list(range(len(input.shape) + 1)) and not input.shared and not keepdim


def of_examples(b: Builder, input: Place, reduction: str) -> Place:
    """The mean of all elements of all examples: of each example's mean. Or their sum."""
    count = math.prod(input.shape)
    factor = 1 / count if reduction == "mean" else 1.0
    axes = list(range(1, len(input.shape) + 1))
    each = reduced(b, input, axes, False, factor, reduction) if count > 1 else input
    return Place(b.rows(Place(each.value, (), [])).value, (), reduction=reduction)


@lowers(torch.mean, "mean")
def mean(b: Builder, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Literal[None] = None) -> Place:
    input, axes = b.place(input), _axes(b, input, dim)
    if b.in_loss and _of_all(input, axes, keepdim):
        return of_examples(b, input, "mean")
    if axes == [2, 3] and not input.shared and not input.axis and b.form(input) == input.shape:  # of an image
        pooled = b.emit("adaptive_avg_pool2d", (input,), (input.shape[0], 1, 1))
        return pooled if keepdim else Place(pooled.value, input.shape[:1], pooled.memory)
    count = math.prod(input.shape[axis] for axis in _inner(input, axes))
    return reduced(b, input, axes, keepdim, 1 / count, "mean")
