"""The page docs/layers.md, from the tables of layers, primitives and losses: ``python -m metafast.model.listing``."""

from __future__ import annotations

import functools
import importlib
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metafast import _native, losses
from metafast.model import layers
from metafast.model.layers import FUNCTIONS, METHODS, MODULES

_HEAD = """# What runs natively

Written by `python -m metafast.model.listing`, from the lists that the engine itself is made of.

A model runs natively if it is made of what stands here, for both orders, in float32 and float64, on CPUs and on CUDA
devices. Shapes and settings without native form are refused by name; `print(mf.explain(model, shape))` says which. What
is refused runs on torch, with one warning that names the layer and the reason. Parameters and buffers may stand where
tensors may.
"""

_PRIMITIVES = """
## Primitives

What the engine executes. Small networks run several tasks at a time, one in each lane of a register, if all their
values are vectors and all their primitives run on packs.

| primitive | packs |
|---|---|
"""

_LOSSES = """
## Losses

| loss | torch's module | targets |
|---|---|---|
"""


def page() -> str:
    text = _HEAD
    for name in layers.__all__:
        if name.isupper():
            continue
        file = importlib.import_module(f"metafast.model.layers.{name}")
        named = dict(_names(file.__name__))
        if any(named.values()):
            first = (file.__doc__ or "").split("\n\n")[0].replace("\n", " ").split(":")[0].rstrip(".")
            text += f"\n## {first}\n\n"
            text += "".join(_wrapped(f"- {kind}: {_listed(names)}") for kind, names in named.items() if names)
    text += _PRIMITIVES
    text += "".join(f"| `{n}` | {'yes' if packs else 'no'} |\n" for n, packs in sorted(_native.primitives().items()))
    text += _LOSSES
    for name, known in sorted(losses.NAMED.items()):
        module = "" if known.module is None else f"`nn.{known.module.__name__}`"
        targets = " or ".join(["classes"] * known.classes + ["numbers"] * known.numbers)
        text += f"| `{name}` | {module} | {targets} |\n"
    return text


def _names(file: str) -> Iterator[tuple[str, list[str]]]:
    """What the handlers of a file stand for."""
    yield "modules", sorted(f"nn.{kind.__name__}" for kind, handler in MODULES.items() if _file(handler) == file)
    found = [_called(function) for function, handler in FUNCTIONS.items() if _file(handler) == file]
    yield "functions and operators", sorted({name for name in found if name})
    yield "methods", sorted(name for name, handler in METHODS.items() if _file(handler) == file)


def _file(handler: Any) -> str:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return str(handler.__module__)


def _called(function: Any) -> str:
    name = str(getattr(function, "__name__", ""))
    for prefix, module in (("F", F), ("torch", torch), ("nn", nn)):
        if getattr(module, name, None) is function:
            return f"{prefix}.{name}"
    own = str(getattr(function, "__module__", "")).partition(".")[0]
    return "" if own == "metafast" else name.lstrip("_")


def _wrapped(item: str) -> str:
    return textwrap.fill(item, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
