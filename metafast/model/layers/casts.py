"""Casts that change nothing, since all that a Program computes has one type and lies on one device; and what code asks
of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metafast.model.builder import Builder, Place, described
from metafast.model.layers.masks import to_bool
from metafast.model.layers.shapes import ATTRIBUTES, clone, contiguous
from metafast.model.layers.table import lowers

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _dtype(b: Builder, input: Place | Tensor) -> torch.dtype:
    return (input.integers or b.dtype) if isinstance(input, Place) else input.dtype


def _device(b: Builder, input: Place | Tensor) -> torch.device:
    """All parameters lie on the device of the input."""
    if isinstance(input, Tensor):
        return input.device
    return b.tensors[0].device if b.tensors else b.refuse("asks for the device of a model without parameters")


ATTRIBUTES |= {
    "dtype": _dtype,
    "device": _device,
    "is_cuda": lambda b, input: _device(b, input).type == "cuda",
    "is_cpu": lambda b, input: _device(b, input).type == "cpu",
    "is_mps": lambda b, input: _device(b, input).type == "mps",
    "layout": lambda b, input: torch.strided,
    "is_sparse": lambda b, input: False,
    "is_quantized": lambda b, input: False,
    "is_nested": lambda b, input: False,
    "is_meta": lambda b, input: False,
    "itemsize": lambda b, input: _dtype(b, input).itemsize,
}


@lowers("is_floating_point", torch.is_floating_point)
def is_floating_point(b: Builder, input: Any) -> bool:
    return bool(_fact(b, input, "dtype").is_floating_point)


@lowers("is_complex", torch.is_complex)
def is_complex(b: Builder, input: Any) -> bool:
    return bool(_fact(b, input, "dtype").is_complex)


@lowers("element_size")
def element_size(b: Builder, input: Any) -> int:
    return int(_fact(b, input, "itemsize"))


def _fact(b: Builder, input: Any, name: str) -> Any:
    if not isinstance(input, (Place, Tensor)):
        b.refuse(f"works on {described(input)}")
    return ATTRIBUTES[name](b, input)


def unchanged(b: Builder, input: Any, dtype: Any = None, device: Any = None) -> Any:
    """The input itself, as torch has it of a cast to what a tensor is. Integers stand as numbers of the parameters'
    type, and may be cast to that or to integers of more bits."""
    mine: torch.dtype = _fact(b, input, "dtype")
    if dtype == torch.bool and isinstance(input, Place):
        return unchanged(b, to_bool(b, input), None, device)
    if isinstance(input, Place) and input.integers and dtype not in (None, mine):
        wider = dtype in _INTEGERS and torch.promote_types(mine, dtype) == dtype
        if dtype == b.dtype or wider:
            input, mine = b.real(input), dtype
            input.integers = dtype if wider else None
    if dtype not in (None, mine):
        b.refuse(f"casts {described(input)} to {dtype}; native is {mine}, that of the parameters, throughout")
    if device is not None:
        here, there = _fact(b, input, "device"), torch.device(device)
        if isinstance(input, Place) and input.integers and there.type == "cpu":
            return input  # where torch wants the lengths of packed sequences
        if there.type != here.type or there.index not in (None, here.index):
            b.refuse(f"moves {described(input)} to {there}; native is {here}, that of the parameters, throughout")
    return input


@lowers("to")
def to(
    b: Builder,
    input: Any,
    *given: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = torch.preserve_format,
) -> Any:
    flags = [each for each in given if isinstance(each, bool)]
    for each in given[: len(given) - len(flags)]:
        if isinstance(each, (Place, Tensor)):
            dtype, device = _fact(b, each, "dtype"), _fact(b, each, "device") if b.tensors else None
        elif isinstance(each, torch.dtype):
            dtype = each
        elif each is not None:
            device = each
    same = unchanged(b, input, dtype, device)
    if copy or flags[1:2] == [True]:
        return clone(b, same)
    return same if memory_format is torch.preserve_format else contiguous(b, same)


@lowers("type")
def cast(b: Builder, input: Any, dtype: Any = None, non_blocking: bool = False) -> Any:
    if not isinstance(dtype, torch.dtype):
        b.refuse("is native with a torch.dtype")
    return unchanged(b, input, dtype)


@lowers("type_as")
def type_as(b: Builder, input: Any, other: Any) -> Any:
    return unchanged(b, input, _fact(b, other, "dtype"))


@lowers("float")
def to_float(b: Builder, input: Any, memory_format: Any = None) -> Any:
    return unchanged(b, input, torch.float32)


@lowers("double")
def to_double(b: Builder, input: Any, memory_format: Any = None) -> Any:
    return unchanged(b, input, torch.float64)


@lowers("long")
def to_long(b: Builder, input: Any, memory_format: Any = None) -> Any:
    return unchanged(b, input, torch.int64)


@lowers("int")
def to_int(b: Builder, input: Any, memory_format: Any = None) -> Any:
    return unchanged(b, input, torch.int32)


@lowers("cpu")
def cpu(b: Builder, input: Any, memory_format: Any = None) -> Any:
    return unchanged(b, input, device="cpu")


@lowers("cuda")
def cuda(b: Builder, input: Any, device: Any = "cuda", non_blocking: bool = False, memory_format: Any = None) -> Any:
    return unchanged(b, input, device="cuda" if device is None else device)
