"""A case of the one table: a model, a loss, shapes and options. Everything a row leaves out has a small default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from metafast import losses
from models import around, mlp, seq

L, C = nn.Linear, nn.Conv2d


@dataclass(frozen=True)
class Row:
    name: str
    build: Callable[[], nn.Module]
    example: tuple[int, ...] = (3,)  # the shape of one input
    loss: Any = "mse"
    tasks: int = 2
    shots: int = 3  # support examples per task
    queries: int = 2  # query examples per task
    steps: int = 2
    lr: float = 0.1
    lr_form: Literal["scalar", "per_step", "per_tensor", "per_element"] = "scalar"
    first_order: bool = False
    adapt_params: Any = None
    stepwise: bool = False  # another support minibatch at every step
    weighted: bool = False  # per-example weights, one of them zero
    reduction: Literal["weighted_mean", "mean", "sum"] = "weighted_mean"
    soft: bool = False  # class probabilities as targets
    zeros: bool = False  # some exact zeros among the inputs, where conventions at a kink show
    training: bool = True
    smooth: bool = True  # no kinks: float32 can be judged, finite differences are safe
    native: bool = True  # False: no native form; the torch backend must still be right
    static: bool = False  # what stands before some layer is not moved by the inner loop, and may run once
    by_torch: bool = False  # and has no native form, so that torch runs it
    vocabulary: int = 0  # inputs are integers smaller than this; 0: they are real
    inputs: tuple[tuple[tuple[int, ...], int], ...] = ()  # several: the shape of each, and its vocabulary; 2: a mask
    targets: tuple[tuple[tuple[int, ...], int], ...] = ()  # of a loss function: the shape of each, and how many classes

    def __str__(self) -> str:
        return self.name

    @property
    def copied(self) -> bool:
        """The engine has copies of what it is given, in which several tensors are one, and integers numbers."""
        return bool(self.inputs or self.vocabulary) or losses.resolve(self.loss)[0] is None

    @property
    def classes(self) -> bool:
        """Targets are class indices."""
        known, _ = losses.resolve(self.loss)
        return known is not None and losses.NAMED[known.kind].classes and not self.soft


# ---------------------------------------------------------------------- shorthands


def conv(
    name: str, *args: Any, example: tuple[int, ...] = (2, 5, 6), inputs: int = 3, outputs: int = 2, **kwargs: Any
) -> Row:
    return Row(f"conv/{name}", lambda: around(C(inputs, outputs, *args, **kwargs), inputs), example)


def transposed(name: str, *args: Any, outputs: int = 2, **kwargs: Any) -> Row:
    layer = lambda: nn.ConvTranspose2d(3, outputs, *args, **kwargs)  # noqa: E731
    return Row(f"conv/transposed-{name}", lambda: around(layer(), 3), (2, 3, 4))


def pool(name: str, build: Callable[[], nn.Module], example: tuple[int, ...] = (2, 6, 7), smooth: bool = True) -> Row:
    return Row(f"pool/{name}", lambda: around(build()), example, smooth=smooth)


def norm(name: str, build: Callable[[], nn.Module], example: tuple[int, ...] = (3,), **options: Any) -> Row:
    def model() -> nn.Module:
        if len(example) == 3:
            return seq(C(example[0], 3, 2), build(), nn.Tanh(), nn.Flatten(), L(12, 2))
        return seq(L(*example, 5), build(), nn.Tanh(), L(5, 2))

    return Row(f"norm/{name}", model, example, shots=4, queries=3, **options)


#: The layers of the rows act/..., by the names of primitives.
POINTWISE: dict[str, Callable[[], nn.Module]] = {}


def act(name: str, build: Callable[[], nn.Module], smooth: bool = True, **options: Any) -> Row:
    POINTWISE[name.replace("-", "_")] = build
    return Row(f"act/{name}", lambda: mlp(act=build), smooth=smooth, **options)
