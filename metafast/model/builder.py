"""What a handler of :mod:`metafast.model.layers` builds a Program with.

A value of the Program has a *form*: [C], [rows, C], or [C, H, W] of an image, which the engine stores channels last.
torch's tensor of examples may have any shape; a Place knows it, and whichever form its value has, the elements come in
the same row-major order. So a reshape costs nothing until somebody needs another form (:meth:`Builder.rows`,
:meth:`Builder.image`). A *shared* value has no axis of examples: a parameter, and what is computed from parameters.

Memory is modelled too. torch code may overwrite a tensor (``nn.ReLU(inplace=True)``, ``x += y``) that has other names;
a Program has values that never change. So names map to Places, a Place maps to a value, and writing in place changes
the value of the Place, which every alias sees.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from metafast.model.constant import Constant
from metafast.model.program import ABSENT, Node, Parameter, Role, Shape

if TYPE_CHECKING:
    from metafast.model.several import Several


def called(where: str) -> str:
    """What messages call a layer, by its qualified name ("" is the model), so that a layer named 1 is no number."""
    return where if where in ("loss", "metafast") else f"layer {where!r}" if where else "the model"


class Unsupported(Exception):
    """A model has no native form: ``where`` is the qualified name of the layer ("" is the model), ``reason`` begins
    with its type. Two reasons lie outside of the model: ``where`` is then "loss", or "metafast" itself."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{called(self.where)}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """The number of examples, which a Program does not fix, or so many times that number."""

    times: int = 1

    def __repr__(self) -> str:
        return "N" if self.times == 1 else f"{self.times} N"


BATCH = Batch()


@dataclass(eq=False)
class Place:
    """Memory of shape [N, *shape], or of ``shape`` if it is ``shared``, that holds a value. ``memory`` lists all Places
    that view the same memory. ``axis`` is where N stands in torch's shape; what is not written for others takes 0. Of a
    ``merged`` one torch's shape is [N * shape[0], *shape[1:]]; what is not written for it takes none. One with a
    ``reduction``, "mean" or "sum", is that of its value over the examples, as losses are; sums and multiples of such
    means are means again. The first axis of a ``ragged`` one is, in torch, as long as the longest of the examples'
    sequences."""

    value: int | None  # None: overwritten through another view
    shape: Shape
    memory: list[Place] = field(default_factory=list, repr=False)
    shared: bool = False
    axis: int = 0
    merged: bool = False
    integers: torch.dtype | None = None  # what torch's tensor holds, if no numbers of the parameters' type
    reduction: str = ""
    ragged: bool = False

    def __post_init__(self) -> None:
        self.memory.append(self)

    def meta(self) -> Tensor:
        return torch.empty((2, *self.shape), device="meta", dtype=self.integers)


class Builder:
    """Collects the values, nodes and parameters of a Program. Parameters are all those of the model, in its order;
    buffers join them when a node reads one."""

    def __init__(
        self,
        model: nn.Module,
        example_shape: Shape,
        adapted: Callable[[str], bool],
        dtype: torch.dtype,
        given: torch.dtype | None = None,
    ) -> None:
        """``dtype`` is that of the parameters, and of the input unless that is ``given`` as integers."""
        self.values: list[Shape] = [example_shape if len(example_shape) == 3 else form_of(example_shape)]
        self.nodes: list[Node] = []
        self.parameters: list[Parameter] = []
        self.tensors: list[Tensor] = []
        self.input = Place(0, example_shape, integers=None if given == dtype else given)
        self.where = ""  # the module that the node being built belongs to
        self.subject = ""  # its type, or what is called in it: reasons go on from here
        self.dtype = dtype
        self.in_loss = False  # a mean or a sum over the examples may be made: a loss is one
        self.reduction = "mean"  # which of them the loss came to
        self.outputs: Several | None = None  # of the model, if they stand in one value
        self._parameter_places: dict[int, Place] = {}
        self._tables: dict[int, bool] = {}  # of parameters that nodes read: whether as tables
        self._indices: dict[int, int] = {}  # id of a tensor -> its place among the parameters
        embeddings = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
        self._of_embeddings = {id(m.weight) for m in embeddings}
        self._types = {name: type(module).__name__ for name, module in model.named_modules()}
        self._buffers = {id(buffer): name for name, buffer in model.named_buffers()}
        held = self.input.integers
        if dtype not in (torch.float32, torch.float64) or (held and (held.is_floating_point or held.is_complex)):
            raise Unsupported("", f"inputs of {held or dtype} have no native form, only float32 and float64")
        self._check_size(self.values[0])
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                self._add(name, parameter, "constant")
            else:
                self._add(name, parameter, "adapted" if adapted(name) else "meta")

    def _add(self, name: str, tensor: Tensor, role: Role) -> int:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            kind = f"a {type(tensor).__name__} of layout {tensor.layout}"
            raise self._unfit(name, f"is {kind}; native are parameters and buffers that are plain, dense tensors")
        if tensor.numel() == 0:
            raise self._unfit(name, f"is empty: its shape is {list(tensor.shape)}")
        if tensor.dtype != self.dtype:
            raise self._unfit(name, f"has type {tensor.dtype}, but the input has {self.dtype}")
        if self.tensors and tensor.device != self.tensors[0].device:
            first = self.parameters[0].name
            raise self._unfit(name, f"is on {tensor.device}, but {first!r} on {self.tensors[0].device}")
        self._indices[id(tensor)] = len(self.tensors)
        self.parameters.append(Parameter(name, tuple(tensor.shape), role))
        self.tensors.append(tensor)
        return self._indices[id(tensor)]

    def _unfit(self, name: str, reason: str) -> Unsupported:
        """A parameter or buffer that is none, under the name of its layer."""
        layer, _, attribute = name.rpartition(".")
        return Unsupported(layer, f"{self._types.get(layer, 'model')}'s {attribute} {reason}")

    def refuse(self, reason: str) -> NoReturn:
        raise Unsupported(self.where, f"{self.subject} {reason}" if self.subject else reason)

    def _check_size(self, shape: Shape) -> None:
        if not 1 <= len(shape) <= 3:
            self.refuse(f"works on {batched(shape)}; native are vectors, rows of vectors and images")
        if 0 in shape:
            self.refuse(f"works on {batched(shape)}; native are tensors that are not empty")

    def read(self, place: Any) -> int:
        if not isinstance(place, Place):
            self.refuse(f"works on {described(place)}; native is a tensor computed from the input")
        if place.value is None:
            self.refuse("reads a tensor that was overwritten in place through another view, which has no native form")
        if place.axis:
            self.refuse(f"has no native form for examples in axis {place.axis}; native is to have them first")
        if place.merged:
            self.refuse(
                f"works on {Batch(place.shape[0])} rows, which is native for layers that work on each row alone"
            )
        if place.reduction:
            self.refuse(
                f"counts with a {place.reduction} over the examples; native are sums, differences and multiples of such"
            )
        if place.ragged:
            self.refuse(
                "reads a sequence as long as the longest of the examples, which a program does not know; native is "
                "pad_packed_sequence(total_length=), a sum over the steps, and a step of each example"
            )
        return place.value

    def first(self, place: Place) -> Place:
        """``place`` as if its examples stood first, for what works on each of them by itself."""
        return Place(place.value, place.shape, place.memory, place.shared, integers=place.integers, ragged=place.ragged)

    def real(self, place: Place) -> Place:
        """Integers as numbers of the parameters' type, which is how they stand."""
        return Place(self.read(place), place.shape, shared=place.shared) if place.integers else place

    def form(self, place: Any) -> Shape:
        return self.values[self.read(place)]

    def rows(self, place: Any, shared: bool = False) -> Place:
        """``place`` with a value of the form [C] or [rows, C], C being torch's last axis. Unless ``shared``, it must
        have an axis of examples."""
        self.read(place)
        return self._in_form(place, form_of(place.shape), shared)

    def image(self, place: Any, shape: Shape | None = None, shared: bool = False) -> Place:
        """``place`` with a value of the form [C, H, W]: torch's shape, or this one of as many elements."""
        self.read(place)
        return self._in_form(place, place.shape if shape is None else shape, shared)

    def _in_form(self, place: Place, form: Shape, shared: bool) -> Place:
        if place.shared and not shared:
            self.refuse("works on parameters alone, which has no native form")
        return self.in_form(place, form)

    def in_form(self, place: Place, form: Shape) -> Place:
        """``place`` with a value of this form, of as many elements."""
        if self.form(place) == form:
            return place
        if len(form) == 1 and not place.shared:
            return self.emit("flatten", (place,), form, shape=place.shape)
        table = range(math.prod(form))
        return self.emit("sparse_map", (place,), form, shape=place.shape, table=table, says="reshape")

    def place(self, thing: Any) -> Place:
        """A tensor computed from the input, as it is; a parameter or buffer as a shared value."""
        if isinstance(thing, Place):
            return thing
        if isinstance(thing, Constant):
            return self._constant(thing.tensor)
        index = self.index(thing)
        if index == ABSENT:
            self.refuse("works on None; native are tensors")
        if index not in self._parameter_places:
            shape = self.parameters[index].shape
            table = range(math.prod(shape))
            made = self.emit("parameter", (), form_of(shape), (thing,), shape=shape, table=table)
            self._parameter_places[index] = made
        return self._parameter_places[index]

    def _constant(self, tensor: Tensor) -> Place:
        """As multiples of a one, which is made of no element of some parameter."""
        if not self.tensors or (tensor.is_floating_point() and tensor.dtype != self.dtype) or tensor.is_complex():
            self.refuse(f"makes a tensor of {tensor.dtype}; native is {self.dtype}, that of the parameters, throughout")
        read = next((i for node in self.nodes for i in node.parameters if i != ABSENT), 0)
        zero = self.emit("parameter", (), (1,), (self.tensors[read],), table=[-1])
        one = self.elementwise("affine", zero, {"scale": 1, "shift": 1})
        shape, numbers = tuple(tensor.shape), tensor.reshape(-1).double().tolist()
        table = [0] * len(numbers)
        made = self.emit(
            "sparse_map", (one,), form_of(shape), shape=shape, table=table, factors=numbers, says="constant"
        )
        made.integers = None if tensor.is_floating_point() else tensor.dtype
        return made

    def output(self, place: Place) -> Place:
        """What a model returns: with an axis of examples, and of one axis a value of one."""
        if place.merged:
            self.refuse(f"returns a tensor of {Batch(place.shape[0])} rows, which has no native form; native is N")
        self.read(place)
        if place.shared:
            self.refuse("returns a tensor that is not computed from the input, which has no native form")
        if place.integers:
            self.refuse("returns integers, which has no native form")
        return self.rows(place) if len(place.shape) <= 1 else place

    def index(self, tensor: Any) -> int:
        """The number of a parameter or buffer of the model."""
        if tensor is None:
            return ABSENT
        if id(tensor) in self._indices:
            return self._indices[id(tensor)]
        if id(tensor) in self._buffers:
            return self._add(self._buffers[id(tensor)], tensor, "constant")
        return self.refuse(
            f"takes {described(tensor)} for a weight; native are the model's own parameters and buffers, as they are"
        )

    def rank(self, input: Any, allowed: tuple[int, ...], axes: str) -> None:
        self.read(input)
        if len(input.shape) not in allowed:
            self.refuse(f"is native for inputs {axes}, not for {batched(input.shape)}")

    def axis(self, input: Place, axis: Any) -> int:
        """An axis of [N, *shape], counted from the front."""
        rank = len(input.shape) + 1
        if not isinstance(axis, int) or not -rank <= axis < rank:
            self.refuse(f"names {axis!r}, which is no axis of {batched(input.shape)}")
        return axis % rank

    def shape(self, function: Callable[..., Tensor], input: Place, *arguments: Any) -> Shape:
        """The example shape of torch's own result."""
        for argument in arguments:
            if isinstance(argument, (Place, Tensor)):
                self.index(argument)
        try:
            with torch.no_grad():
                return tuple(function(*map(_blank, (input, *arguments))).shape[not input.shared :])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            self.refuse(f"fails in torch: {_first_line(error)}")

    def emit(
        self,
        op: str,
        inputs: tuple[Place, ...],
        form: Shape,
        parameters: tuple[Tensor | None, ...] = (),
        attributes: Mapping[str, float] = MappingProxyType({}),
        overwrite: bool = False,
        *,
        shape: Shape | None = None,
        memory: list[Place] | None = None,
        table: Sequence[int] = (),
        factors: Sequence[float] = (),
        says: str = "",
    ) -> Place:
        """Append a node whose value has this form, and torch's ``shape`` if that is another one.

        Args:
            overwrite: the result takes the place of its first input, as torch's in-place ops do.
            memory: of a tensor that the result is a view of.
        """
        read = tuple(map(self.read, inputs))
        indices = tuple(map(self.index, parameters))
        if overwrite and self.input in inputs[0].memory:
            self.refuse("overwrites the model's input in place, which has no native form")
        moves = op in ("sparse_map", "flatten") and not factors and len(table) in (0, math.prod(form))
        integers = self._integers(op, inputs, moves)
        self._lay_out(op, indices)
        value = len(self.values)
        self._check_size(form)
        settings = tuple((name, float(number)) for name, number in attributes.items())
        self.values.append(form)
        self.nodes.append(Node(op, read, value, indices, settings, self.where, tuple(table), tuple(factors), says))
        if not overwrite:
            shared = all(place.shared for place in inputs) and "per_example" not in attributes
            return Place(
                value, form if shape is None else shape, [] if memory is None else memory, shared, integers=integers
            )
        target = inputs[0]
        for place in target.memory:
            place.value = None
        target.value = value
        return target

    def _integers(self, op: str, inputs: tuple[Place, ...], moves: bool) -> torch.dtype | None:
        """The type of integers that a node writes, if it does. Only what ``moves`` elements does; embeddings read some.
        Elsewhere torch counts as integers do, or makes other numbers of them."""
        kinds = {place.integers for place in inputs}
        if kinds <= {None} or op == "embedding":
            return None
        if not moves or len(kinds) > 1:
            name = next(str(place.integers) for place in inputs if place.integers)
            self.refuse(f"works on {name}; native are embeddings of integers, one_hot(), and casts to {self.dtype}")
        return kinds.pop()

    def _lay_out(self, op: str, indices: tuple[int, ...]) -> None:
        """The engine stores a table by its rows, and other weights transposed."""
        for index in indices:
            if index == ABSENT or op == "parameter":
                continue
            if self._tables.setdefault(index, op == "embedding") != (op == "embedding"):
                name = self.parameters[index].name
                self.refuse(f"shares the parameter {name!r} between an embedding and a layer that is none")

    def is_table(self, weight: Tensor) -> bool:
        """Whether embeddings read rows of a parameter, and other layers its elements as a value."""
        return id(weight) in self._of_embeddings or self._tables.get(self.index(weight), False)

    def elementwise(
        self, op: str, input: Any, attributes: Mapping[str, float] = MappingProxyType({}), overwrite: bool = False
    ) -> Place:
        """Append a function of one element."""
        if overwrite and not isinstance(input, Place):
            self.refuse(f"overwrites {described(input)} in place, which has no native form")
        place = self.place(input)
        if place.reduction and op == "affine":  # of a mean it is the mean of the same of each example
            if place.reduction == "sum" and attributes["shift"]:
                self.refuse("adds a number to a sum over the examples; native is that of a mean over them")
            each = self.elementwise(op, Place(place.value, ()), attributes)
            return self.reduction_of(each, place.reduction, place if overwrite else None)
        return self.emit(op, (place,), self.form(place), (), attributes, overwrite, shape=place.shape)

    def reduction_of(self, each: Place, reduction: str, overwritten: Place | None) -> Place:
        """That of ``each`` over the examples, which takes the place of another such, as in ``loss += x``."""
        if overwritten is None:
            return Place(each.value, (), reduction=reduction)
        overwritten.value, overwritten.reduction = each.value, reduction
        return overwritten

    def apply(self, handler: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """Call a handler; arguments that it does not know are a reason, not an error."""
        try:
            _signature(handler).bind(self, *arguments, **keywords)
        except TypeError as error:
            self.refuse(f"is called with arguments that have no native form ({error})")
        return handler(self, *arguments, **keywords)


_signature = functools.lru_cache(maxsize=1024)(inspect.signature)


def form_of(shape: Shape) -> Shape:
    """[C] or [rows, C], all axes but the last in one."""
    if len(shape) <= 1:
        return shape or (1,)
    rows = math.prod(shape[:-1])
    return (rows, shape[-1]) if rows > 1 or len(shape) == 2 else (shape[-1],)


def described(thing: Any) -> str:
    """In words for messages."""
    if isinstance(thing, Place):
        return "a tensor computed from the input"
    if isinstance(thing, Tensor):
        kind = "parameter" if isinstance(thing, nn.Parameter) else "tensor"
        return f"a {kind} of shape {list(thing.shape)}"
    if isinstance(thing, (bool, int, float)):
        return f"the number {thing}"
    if isinstance(thing, Batch):
        return "the number N of examples" if thing is BATCH else f"the number {thing}"
    return next((f"a {kind.__name__}" for kind in (tuple, list, dict) if isinstance(thing, kind)), repr(thing))


def batched(shape: Shape) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _blank(argument: Any) -> Any:
    """What torch tells shapes by: a batch of no examples, on which it checks everything and runs no kernel. (Its
    threads must not start here: they would hang in a forked child.) Not on the meta device, whose first use imports
    torch's whole compiler."""
    if isinstance(argument, Place):
        shape = argument.shape if argument.shared else (0, *argument.shape)
        return torch.empty(shape, dtype=argument.integers)
    if isinstance(argument, Tensor):
        return torch.empty(argument.shape)
    return argument
