"""What is adapted in each of the timed problems, and the numbers that all forms of it share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import modules

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    network: Callable[[], nn.Module]
    x: Callable[[Draw, tuple[int, ...]], Tensor]  # of the leading axes, tasks (and steps) and examples
    y: Callable[[Draw, tuple[int, ...]], Tensor]
    tasks: int
    support: int
    query: int
    steps: int
    lr: float
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    adapts: str = "*"
    stepwise: bool = False
    clip: float | None = None
    rates: str = "one"  # or "per step", "per element"; the latter two are learnt
    wanted: Sequence[str] = field(default_factory=tuple)  # "lr", and of "xs ys xq yq" those that want gradients


class Problem:
    """The same numbers for both, drawn in float32."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        self.case = case
        torch.manual_seed(0)
        self.model = case.network().to(dtype)
        generator = torch.Generator().manual_seed(0)

        def draw(shape: tuple[int, ...], classes: int = 0) -> Tensor:
            if classes:
                return torch.randint(classes, shape, generator=generator)
            return torch.randn(shape, generator=generator).to(dtype)

        lead = (case.tasks, case.steps) if case.stepwise else (case.tasks,)
        sets = {"s": (*lead, case.support), "q": (case.tasks, case.query)}
        self.data = {f"{v}{s}": getattr(case, v)(draw, axes) for s, axes in sets.items() for v in ("x", "y")}
        self.parameters = dict(self.model.named_parameters())
        self.moving = [name for name in self.parameters if fnmatchcase(name, case.adapts)]
        self.lr: Any = case.lr
        if case.rates == "per step":
            self.lr = case.lr * (1 + torch.arange(case.steps, dtype=dtype) / 10)
        elif case.rates == "per element":
            self.lr = {n: case.lr * (1 + draw(tuple(self.parameters[n].shape)).abs() / 10) for n in self.moving}
        elif "lr" in case.wanted:
            self.lr = torch.tensor(case.lr, dtype=dtype)
        rates = list(self.lr.values()) if isinstance(self.lr, dict) else [self.lr]
        others = [rates if name == "lr" else [self.data[name]] for name in case.wanted]
        self.unknowns = [*self.parameters.values(), *(t.requires_grad_() for group in others for t in group)]

    def rate(self, name: str, k: int) -> Any:
        if isinstance(self.lr, dict):
            return self.lr[name]
        return self.lr[k] if self.case.rates == "per step" else self.lr


def images(size: int) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    return lambda draw, axes: draw((*axes, 3, size, size))


def numbers(width: int) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    return lambda draw, axes: draw((*axes, width))


def classes(count: int) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    return lambda draw, axes: draw(axes, count)


def coordinates(draw: Draw, axes: tuple[int, ...]) -> Tensor:
    return torch.tanh(draw((*axes, 2)))


CASES = {
    "fast-weights": Case(
        modules.FastWeights, numbers(128), numbers(128), 8, 64, 64, 8, 0.1, F.mse_loss,
        stepwise=True, clip=1.0, rates="per step", wanted=("xs", "ys", "xq", "yq", "lr"),
    ),
    "resnet12": Case(lambda: modules.ResNet12((32, 64, 128, 256)), images(32), classes(5), 2, 5, 25, 3, 0.01),
    "siren": Case(modules.Siren, coordinates, numbers(3), 4, 1024, 1024, 3, 1e-3, F.mse_loss),
    "latent-siren": Case(
        modules.LatentSiren, coordinates, numbers(3), 16, 1024, 1024, 3, 1e-1, F.mse_loss,
        adapts="latent", rates="per element", wanted=("lr",),
    ),
    "transformer": Case(
        modules.Transformer, lambda draw, axes: draw((*axes, 16), 1000), classes(5), 4, 25, 25, 3, 0.05
    ),
    "distillation": Case(modules.convnet3, images(32), classes(10), 1, 10, 256, 20, 0.01, wanted=("xs", "lr")),
    "policy-gradient": Case(
        modules.GaussianPolicy, numbers(2), numbers(4), 20, 2000, 2000, 1, 0.1, modules.policy_gradient
    ),
}  # fmt: skip
