"""Models that are made of little but convolutions, small."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import seq

L, C = nn.Linear, nn.Conv2d


class TiedDepthwise(nn.Module):
    """A depthwise convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = C(3, 3, 3, padding=1, groups=3), L(60, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(torch.tanh(self.conv(x)))).flatten(1))  # type: ignore[no-any-return]


class ConvAutoencoder(nn.Module):
    """A decoder that is the encoder's transpose: one weight of a convolution and of a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = C(2, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        return F.conv_transpose2d(code, self.encoder.weight, stride=2, padding=1, output_padding=(1, 0))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: expanded, depthwise, projected, and added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        wide = 2 * inputs
        self.adds = inputs == outputs and stride == 1
        self.body = seq(
            C(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), activation(),
            C(wide, wide, 3, stride, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), activation(),
            C(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)  # type: ignore[no-any-return]


class WideBlock(nn.Module):
    """A block of a wide residual network: normalised and activated first, with a shortcut where the widths differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), C(inputs, outputs, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), C(outputs, outputs, 3, stride, padding=1, bias=False)
        self.shortcut = C(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        y = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return y + (x if self.shortcut is None else self.shortcut(h))  # type: ignore[no-any-return]


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """A depthwise convolution and one of single pixels, as MobileNet has them."""
    return seq(
        C(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.SiLU(),
        C(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(),
    )  # fmt: skip


class Causal(nn.Module):
    """A temporal convolution that sees no future: padded before it, dilated, with a residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.before = dilation

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(F.pad(x, (self.before, 0))))
