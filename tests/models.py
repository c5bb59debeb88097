"""The small models that rows are made of, one for each way in which users write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L, C = nn.Linear, nn.Conv2d


class Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Reused(nn.Module):
    """One value read by three others, and a value added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = L(3, 4), L(4, 4), L(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        value = torch.tanh(self.stem(x))
        both = value + torch.sigmoid(self.left(value)) + torch.add(value, self.right(value))
        return both + both


class Twice(nn.Module):
    """The same module called twice: one parameter, two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = L(3, 5), L(5, 5), L(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.stem(x)))))))


class Tied(nn.Module):
    """Two modules that share a weight and not a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L(4, 4), L(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.silu(self.first(x)))


class TwoHeads(nn.Module):
    """A layer of one output at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = L(3, 5), L(5, 5), L(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(h) + self.head(torch.tanh(self.second(h)))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Written with functions and methods instead of modules, as the original Conv-4 codes are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = C(2, 3, 3, padding=1), nn.BatchNorm2d(3), L(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.max_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))


class Methods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = C(2, 3, 3), L(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.avg_pool2d(self.conv(x).tanh(), 2, stride=1), 1)
        return self.head(F.gelu(x.reshape(x.shape[0], -1), approximate="tanh").sigmoid())


class Unused(nn.Module):
    """A parameter that the output does not depend on: its meta-gradient is zero, and backward gives it none."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = L(3, 2), L(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.used(x))


class Cumulative(nn.Module):
    """A layer with parameters that has no native form."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.logcumsumexp(x, -1) + self.bias


class Transformer(nn.Module):
    """A backbone that may run once; sequences are averaged by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), L(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A backbone that returns more than one tensor, and a size of the input that is read behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(3, 5, batch_first=True, proj_size=4), L(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        states, _ = self.body(x)
        return self.head(states[:, -1]).view(count, -1)  # type: ignore[no-any-return]


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def frozen(model: nn.Module, *prefixes: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    return model


def mlp(inputs: int = 3, width: int = 5, outputs: int = 2, act: Callable[[], nn.Module] = nn.Tanh) -> nn.Module:
    return seq(L(inputs, width), act(), L(width, width), act(), L(width, outputs))


def conv4(act: Callable[[], nn.Module] = nn.ReLU, classes: int = 3) -> nn.Module:
    """Four blocks of the field's standard network, shrunk: 3x3 convolution, batch norm, activation, 2x2 max-pool."""
    blocks: list[nn.Module] = []
    for channels in (1, 3, 3, 3):
        blocks += [C(channels, 3, 3, padding=1), nn.BatchNorm2d(3), act(), nn.MaxPool2d(2)]
    return seq(*blocks, nn.Flatten(), L(3, classes))


def around(layer: nn.Module, channels: int = 3) -> nn.Module:
    """A convolution or pool with smooth layers on both sides, so that all of its derivatives are needed."""
    return seq(C(2, channels, 1), nn.Tanh(), layer, nn.Softplus(), nn.Flatten())


class Sign(nn.Module):
    """A model written by hand, with an operation that no table of primitives will ever hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sinc(x @ self.weight) + (x**2).sum(-1, keepdim=True) * self.weight[0]


def cumulative_loss(output: Tensor, target: Tensor) -> Tensor:
    """A mean over the examples that has no native form."""
    return (torch.logcumsumexp(output, 1) - target).square().mean()
