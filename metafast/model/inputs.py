"""Several tensors as the input of one model, ``model(a, b)``: in one tensor for the engines, and apart again before the
model sees them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx

from metafast.model.builder import Builder, Place, batched
from metafast.model.layers.rearrangement import rearranged
from metafast.model.layers.table import lowers
from metafast.model.program import Shape


def part(x: Tensor, begin: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """One of the tensors that stand in x [..., total]."""
    return _part(x, begin, shape).to(dtype)


def _part(x: Tensor, begin: int, shape: Shape) -> Tensor:
    return x[..., begin : begin + math.prod(shape)].reshape(*x.shape[:-1], *shape)


@lowers(part)
def _lowered(b: Builder, x: Place, begin: int, shape: Shape, dtype: torch.dtype) -> Place:
    made: Place = rearranged(b, _part, (x, begin, shape), {}, True, "input")
    made.integers = None if dtype == b.dtype else dtype
    return made


@dataclass(frozen=True)
class Inputs:
    """What the tensors of one example are like. Those of integers and truth values stand as numbers of the parameters'
    type among the others."""

    parts: tuple[tuple[Shape, torch.dtype], ...]

    @classmethod
    def of(cls, x: Any, lead: int) -> Inputs | None:
        """Of x behind ``lead`` axes; None where that is one tensor."""
        return cls(tuple((tuple(t.shape[lead:]), t.dtype) for t in x)) if isinstance(x, tuple) else None

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape, _ in self.parts]

    @property
    def begins(self) -> list[int]:
        return [0, *accumulate(self.sizes)][:-1]

    def place(self, element: int) -> int:
        """The tensor that an element of the row stands for."""
        return bisect_right(self.begins, element) - 1

    def __str__(self) -> str:
        return ", ".join(f"{batched(shape)} of {dtype}" for shape, dtype in self.parts)

    def refuse_others(self, name: str, x: Any, lead: int) -> None:
        """Raise ValueError or TypeError for x [..., *shape] unless it is several tensors of this kind."""
        if not isinstance(x, tuple) or len(x) != len(self.parts):
            given = f"{len(x)} tensors" if isinstance(x, tuple) else "one tensor"
            raise ValueError(f"{name} is {given}; expected a tuple of {len(self.parts)}, as the model was given before")
        for i, (tensor, (shape, dtype)) in enumerate(zip(x, self.parts, strict=True)):
            if tuple(tensor.shape[lead:]) != shape:
                raise ValueError(
                    f"{name}[{i}] has shape {list(tensor.shape)}; expected examples of shape {list(shape)}, as the "
                    "model was given before"
                )
            if tensor.dtype != dtype:
                raise TypeError(
                    f"{name}[{i}] has dtype {tensor.dtype}; expected {dtype}, as the model was given before"
                )

    def fit(self, x: Any, device: torch.device) -> bool:
        """Whether x are certainly such plain tensors, behind the same axes."""
        if type(x) is not tuple or len(x) != len(self.parts):
            return False
        leads = set()
        for tensor, (shape, dtype) in zip(x, self.parts, strict=True):
            if type(tensor) is not Tensor or tensor.dtype != dtype or tensor.device != device:
                return False
            axes = tensor.dim() - len(shape)
            leads.add(tensor.shape[:axes])
            if tensor.shape[axes:] != shape:
                return False
        return len(leads) == 1

    def pack(self, x: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """[..., total] of tensors [..., *shape]."""
        lead = x[0].shape[: x[0].dim() - len(self.parts[0][0])]
        return torch.cat(
            [tensor.reshape(*lead, size).to(dtype) for tensor, size in zip(x, self.sizes, strict=True)], -1
        )

    def unpack(self, x: Any) -> Iterator[Any]:
        """The tensors that stand in x [..., total], or what takes their place while a model is traced."""
        for begin, (shape, dtype) in zip(self.begins, self.parts, strict=True):
            if isinstance(x, fx.Proxy):
                yield x.tracer.create_proxy("call_function", part, (x, begin, shape, dtype), {})
            else:
                yield part(x, begin, shape, dtype)

    @staticmethod
    def check(called: Callable[[int], str], x: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Raise ValueError for integers that the parameters' type does not count exactly; ``called`` tells a tensor's
        name."""
        most = 2 ** (24 if dtype == torch.float32 else 53)
        for i, tensor in enumerate(x):
            if tensor.dtype in (torch.int32, torch.int64) and tensor.numel():
                low, high = (int(bound) for bound in torch.aminmax(tensor))
                if max(-low, high) > most:
                    raise ValueError(
                        f"{called(i)} holds {low if -low > high else high}; among several tensors, integers may be at "
                        f"most {most}, which {dtype} counts exactly"
                    )
