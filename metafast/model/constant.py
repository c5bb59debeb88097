"""Tensors that code makes of numbers alone, such as ``torch.arange(x.shape[1])``: torch computes with them while a
model is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Constant:
    type_in_torch = Tensor
    tensor: Tensor

    def __repr__(self) -> str:
        return f"a constant of shape {list(self.tensor.shape)}"


def given(thing: Any) -> Any:
    """Constants as torch has them."""
    if isinstance(thing, (tuple, list)):
        return type(thing)(map(given, thing)) if type(thing) in (tuple, list) else thing
    return thing.tensor if isinstance(thing, Constant) else thing


def any_of(kind: type | tuple[type, ...], things: Any) -> bool:
    """Whether there is one of this kind among things, or in tuples among them."""
    return any(isinstance(t, kind) or (isinstance(t, (tuple, list)) and any_of(kind, t)) for t in things)


def folded(function: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> Any:
    """What torch makes of constants and numbers."""
    with torch.no_grad():
        made = function(*map(given, arguments), **{name: given(value) for name, value in keywords.items()})
    return tuple(map(_made, made)) if type(made) in (tuple, list) else _made(made)


def _made(thing: Any) -> Any:
    return Constant(thing) if isinstance(thing, Tensor) else thing
