"""The tables that handlers of layers enter themselves into."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn

Handler = Callable[..., Any]
ModuleHandler = Callable[..., Any]
H = TypeVar("H", bound=Handler)
M = TypeVar("M", bound=ModuleHandler)
FUNCTIONS: dict[Any, Handler] = {}
METHODS: dict[str, Handler] = {}
MODULES: dict[type[nn.Module], ModuleHandler] = {}
#: Those whose handlers know Places whose first axis is merged with that of the examples.
KNOW_MERGED: set[Any] = {"size", "dim", "ndimension", "numel", "nelement", getattr, len, operator.getitem}
#: Those whose handlers know constants; others are given them as values.
KNOW_CONSTANTS: set[Any] = {operator.getitem, F.embedding}
#: Names of the primitives that are functions of one element.
POINTWISE: set[str] = set()


def lowers(*names: Any) -> Callable[[H], H]:
    """Register a handler for torch functions and, given as strings, for methods of Tensor."""

    def register(handler: H) -> H:
        for name in names:
            table: dict[Any, Handler] = METHODS if isinstance(name, str) else FUNCTIONS
            table[name] = handler
        return handler

    return register


def lowers_module(*types: type[nn.Module]) -> Callable[[M], M]:
    """Register a handler for modules of exactly these types. It receives the Builder, the module and its arguments."""

    def register(handler: M) -> M:
        for kind in types:
            MODULES[kind] = handler
        return handler

    return register


def lowered(b: Any, function: Any, *arguments: Any, **keywords: Any) -> Any:
    """What a function, or a method by its name, comes to: for handlers of functions that are made of others."""
    table: dict[Any, Handler] = METHODS if isinstance(function, str) else FUNCTIONS
    return table[function](b, *arguments, **keywords)
