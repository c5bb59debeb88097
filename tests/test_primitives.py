"""What the list of primitives (csrc/program/primitives.h) promises, on every pair of neighbours.

A trait may let one node overwrite what another wrote, leave a gradient out because the next node cancels it, or run on
packs. So each primitive stands here in front of and behind each other one, against the float64 loop. A primitive that
joins the list joins these tests, or they fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from judge import Case, assert_close, forward, gradients, part, truth
from metafast._native import primitives
from metafast.engine import native
from metafast.model import cost
from metafast.model.program import Node
from row import Row
from rows import POINTWISE


class Both(nn.Module):
    """A function of a value and itself turned round, moved so that nothing is divided by zero."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.far = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, torch.sigmoid(x.flip(1)) + self.far)


class Sum(nn.Module):
    """One value, read twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


class Gram(nn.Module):
    """Rows times a parameter, times the mean product of what that makes with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(0.3 * torch.eye(4) + 0.05)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(len(x), -1, 4) @ self.own
        bounded = torch.tanh(h)
        return (h @ (bounded.transpose(1, 2) @ bounded / h.shape[1])).reshape(x.shape)


class Flip(nn.Module):
    """The order of the channels, turned round."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Masked(nn.Module):
    """One channel is left out, by a comparison of integers."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1]) != 1
        return torch.where(mask.view(-1, *(1,) * (x.dim() - 2)), x, 0.0)


class Replaced(nn.Module):
    """Parameters in the place of the first channel."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.own = nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.own.expand(len(x), *self.shape), x[:, 1:]], 1)


#: name -> the module on [4] and on images [3, 4, 4]; None where there is no such layer.
Layer = Callable[[], nn.Module] | None
LAYERS: dict[str, tuple[Layer, Layer]] = {
    "linear": (lambda: nn.Linear(4, 4), None),
    "conv2d": (None, lambda: nn.Conv2d(3, 3, 3, padding=1)),
    "conv_transpose2d": (None, lambda: nn.ConvTranspose2d(3, 3, 3, padding=1)),
    "batch_norm": (lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm2d(3)),
    "normalise": (lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(3, 3)),
    "softmax": (lambda: nn.Softmax(1), lambda: nn.Softmax(1)),
    "log_softmax": (lambda: nn.LogSoftmax(1), lambda: nn.LogSoftmax(1)),
    "max_pool2d": (None, lambda: nn.MaxPool2d(3, stride=1, padding=1)),
    "avg_pool2d": (None, lambda: nn.AvgPool2d(3, stride=1, padding=1)),
    "adaptive_avg_pool2d": (None, lambda: nn.AdaptiveAvgPool2d(4)),
    "dropout": (lambda: nn.Dropout(1e-10), lambda: nn.Dropout2d(1e-10)),  # keeps all; tests/test_dropout.py draws
    "flatten": (nn.Flatten, None),
    "add": (Sum, Sum),
    **{
        name: (lambda f=function: Both(f), lambda f=function: Both(f))
        for name, function in {
            "subtract": torch.sub,
            "multiply": torch.mul,
            "divide": torch.div,
            "maximum": torch.maximum,
            "minimum": torch.minimum,
            "at_least": lambda x, y: torch.where(x >= y, x, 0.5 * y),
            "binary_cross_entropy": lambda x, y: F.binary_cross_entropy(
                0.5 + 0.3 * x.tanh(), y.cos().square(), reduction="none"
            ),
        }.items()
    },
    "keep": (Masked, Masked),
    "sparse_map": (Flip, Flip),
    "matmul": (Gram, Gram),
    "parameter": (lambda: Replaced(1), lambda: Replaced(1, 4, 4)),
    "hide": (None, None),  # it makes -inf, of which only a softmax makes a number
    "embedding": (None, None),  # of integers, which no layer writes
}
LAYERS |= {name: (build, build) for name, build in POINTWISE.items() if name in primitives()}


#: Functions of every set of traits that the planner tells apart: any other meets these, and they meet each other.
TYPICAL = ("relu", "leaky_relu", "tanh", "elu", "silu", "hardtanh", "exp", "log")


def pair(first: str, second: str) -> Row | None:
    if first in POINTWISE and second in POINTWISE and not {first, second} & set(TYPICAL):
        return None
    flat, image = zip(LAYERS[first], LAYERS[second], strict=True)
    if all(image):
        return _row(f"{first}-{second}", lambda: nn.Conv2d(2, 3, 1), image, 48, (2, 4, 4))
    if all(flat):
        return _row(f"{first}-{second}", lambda: nn.Linear(5, 4), flat, 4, (5,))
    return None


def _row(
    name: str, start: Callable[[], nn.Module], layers: tuple[Layer, ...], width: int, example: tuple[int, ...]
) -> Row:
    def build() -> nn.Module:
        middle = [layer() for layer in layers if layer is not None]
        return nn.Sequential(start(), *middle, nn.Flatten(), nn.Linear(width, 2))

    return Row(f"pair/{name}", build, example, shots=4, queries=3, steps=2, smooth=False)


def test_every_primitive_stands_here() -> None:
    assert LAYERS.keys() == primitives().keys()


PAIRS = [row for first in LAYERS for second in LAYERS if (row := pair(first, second)) is not None]


@pytest.mark.parametrize("row", PAIRS, ids=str)
def test_neighbours_keep_out_of_each_others_way(row: Row) -> None:
    case = Case(row, torch.float64, "cpu", "native")
    outputs, pulled = truth(row, 0, ("loss",))
    problem = case.problem()
    out = forward(case, problem)
    assert_close(out, part(outputs, *out))
    assert_close(gradients(out, problem, "loss"), pulled["loss"])


@pytest.mark.parametrize(
    "name", [name for name, packs in primitives().items() if not packs and LAYERS[name][0] and name != "flatten"]
)
def test_what_is_not_known_to_run_in_packs_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "packing", "whole")
    layer = LAYERS[name][0]
    assert layer is not None
    model = nn.Sequential(nn.Linear(3, 4), layer(), nn.Linear(4, 2))
    maml = mf.MAML(model, steps=1, loss="mse")
    maml((torch.randn(9, 4, 3), torch.randn(9, 4, 2)), (torch.randn(9, 4, 3), torch.randn(9, 4, 2)))
    sessions = native.handle(maml._planner.plan("x", torch.randn(9, 4, 3)).program).sessions
    assert [p.session.tasks_at_once for p in sessions.values()] == [1]


def test_explain_does_not_guess_the_cost_of_a_node() -> None:
    unknown = Node("mystery", (0,), 1)
    with pytest.raises(NotImplementedError, match="mystery"):
        cost.flops(unknown, ((3,), (3,)), ())
