"""Short ways to write a model down, for the tests of lowering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

C, L = nn.Conv2d, nn.Linear
IMAGE, VECTOR = (2, 6, 7), (4,)


def model_of(forward: Callable[[Any, Tensor], Any], **modules: Any) -> nn.Module:
    """A model whose forward is ``forward(model, x)`` itself: what is traced is the code of the test."""
    model = type("Of", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(model, name, module)
    return model


def of(function: Callable[[Any, Tensor], Any], **build: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: model_of(function, **{name: make() for name, make in build.items()})


def seq(*build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make() for make in build))


def pool(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return of(lambda m, x: function(x))


def as_tuple(x: Any) -> tuple[Any, ...]:
    """As helpers in other files than the model's do."""
    return tuple(x) if isinstance(x, (list, tuple)) else (x,)


def flattened(x: Tensor) -> Tensor:
    return x.view(len(x), -1) if isinstance(x, Tensor) and x.dim() > 2 else x
