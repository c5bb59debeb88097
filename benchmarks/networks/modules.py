"""The networks of :mod:`benchmarks.networks`, as plain torch modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FastWeights(nn.Module):
    """RMSNorm and SwiGLU with a residual connection."""

    def __init__(self, width: int = 128, hidden: int = 344) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Of ResNet-12 for few shots: three convolutions, a shortcut of one pixel, a pool."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in (inputs, outputs, outputs):
            layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.body(x) + self.shortcut(x), 0.1), 2)


class ResNet12(nn.Module):
    def __init__(self, widths: Sequence[int], outputs: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(*map(Block, (3, *widths[:-1]), widths))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def sine_layers(width: int, depth: int) -> nn.ModuleList:
    """Linear maps under sin(30 x), drawn as Sitzmann et al. (2020) do."""
    layers = nn.ModuleList(nn.Linear(i, width) for i in (2, *(depth - 1) * (width,)))
    for number, layer in enumerate(layers):
        bound = math.sqrt(6 / width) / 30 if number else 1 / 2
        nn.init.uniform_(layer.weight, -bound, bound)
    return layers


class Siren(nn.Module):
    def __init__(self, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        self.layers, self.out = sine_layers(width, depth), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.out(x)  # type: ignore[no-any-return]


class LatentSiren(nn.Module):
    """The same body, every layer shifted by a linear map of a latent vector."""

    def __init__(self, width: int = 256, depth: int = 4, latent: int = 64) -> None:
        super().__init__()
        self.layers, self.out = sine_layers(width, depth), nn.Linear(width, 3)
        self.latent, self.shifts = nn.Parameter(torch.randn(latent) / 10), nn.Linear(latent, depth * width)

    def forward(self, x: Tensor) -> Tensor:
        shifts = self.shifts(self.latent).chunk(len(self.layers))
        for layer, shift in zip(self.layers, shifts, strict=True):
            x = torch.sin(30 * (layer(x) + shift / 30))
        return self.out(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.project(self.first(x)).chunk(3, -1)
        q, k, v = (part.view(n, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.join(attended)
        return x + self.body(self.second(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, width: int = 64, blocks: int = 2, outputs: int = 5, words: int = 1000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4, 4 * width) for _ in range(blocks)))
        self.head = nn.Linear(width, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(ids)).mean(1))  # type: ignore[no-any-return]


def convnet3(width: int = 32, size: int = 32) -> nn.Sequential:
    """That of dataset distillation."""
    layers: list[nn.Module] = []
    for inputs in (3, width, width):
        norm = nn.InstanceNorm2d(width, affine=True)
        layers += [nn.Conv2d(inputs, width, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (size // 8) ** 2, 10))


class GaussianPolicy(nn.Module):
    """Means of two actions, and their learnt logarithms of standard deviations."""

    def __init__(self, width: int = 100) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        self.log_std = nn.Parameter(torch.full((2,), -0.5))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.body(x)
        return torch.cat([mean, self.log_std.expand(x.shape[0], 2)], 1)


def policy_gradient(output: Tensor, target: Tensor) -> Tensor:
    """Minus the mean of log-probability times advantage; the target holds two actions, the advantage and a pad."""
    mean, log_std = output[:, :2], output[:, 2:]
    z = (target[:, :2] - mean) * torch.exp(-log_std)
    log_probability = (-0.5 * z * z - log_std).sum(1)
    return -(log_probability * target[:, 2]).mean()
