"""Small models that move, join, cut and sum tensors as users write it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

L, C = nn.Linear, nn.Conv2d


class Tokens(nn.Module):
    """Layers along both axes of a sequence, as a mixer has them, and a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.tokens, self.head = L(3, 5), L(4, 4), L(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.channels(x))
        h = h + torch.tanh(self.tokens(h.transpose(1, 2)).transpose(1, 2))
        return self.head(h.mean(dim=1))


class Heads(nn.Module):
    """Four axes: heads split off, put first, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.each, self.head = L(3, 6), L(2, 2), L(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        h = self.stem(x).view(n, length, 3, 2).permute(0, 2, 1, 3)
        h = torch.tanh(self.each(h)).transpose(1, 2).reshape(n, length * 6)
        return self.head(h)


class Context(nn.Module):
    """CAVIA: a context vector joined to every input, which alone the inner loop moves."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.first, self.second = L(5, 6), L(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([x, self.context.expand(x.shape[0], -1)], dim=1)
        return self.second(torch.tanh(self.first(joined)))


class Dense(nn.Module):
    """A block of a DenseNet: each layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(C(2 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.head = L(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(torch.tanh(layer(torch.cat(features, 1))))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class Parts(nn.Module):
    """Slices, chunks, a stack, a flip and a select; the first part twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = L(3, 8), L(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        a, b = h.chunk(2, dim=-1)
        stacked = torch.stack([a, b, h[:, 2:6].flip(1)], dim=1)
        return self.head(
            torch.cat([stacked[:, :, 1:3].flatten(1), a[:, :2], stacked.sum(dim=(1, 2), keepdim=True)[:, 0]], 1)
        )


class FromVector(nn.Module):
    """Images that come as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = C(2, 3, 3), L(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x.view(-1, 2, 3, 4)))
        return self.head(h.reshape(len(x), -1))


class Ensemble(nn.Module):
    """The mean over copies of the input, each moved by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = L(3, 4), L(4, 1)
        self.offsets = nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.2, 0.5, -0.4]]))

    def forward(self, x: Tensor) -> Tensor:
        several = x.unsqueeze(1).expand(-1, 2, -1) + self.offsets.expand(x.size(0), 2, 3)
        return self.head(torch.tanh(self.stem(several))).mean(1).squeeze(-1)


class Gated(nn.Module):
    """Squeeze and excitation: every channel of an image times a gate, and every position times another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.position, self.head = C(2, 3, 2), L(3, 3), C(3, 1, 1), L(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x))
        gate = torch.sigmoid(self.squeeze(h.mean((2, 3))))
        h = h * gate.view(-1, 3, 1, 1)
        return self.head((h * torch.sigmoid(self.position(h))).mean((2, 3)))


class Film(nn.Module):
    """FiLM: a context makes scales and shifts for every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.film, self.first, self.second = L(3, 8), L(3, 4), L(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.film(self.context).chunk(2)
        return self.second(torch.tanh(self.first(x) * scale + shift))


class Quotients(nn.Module):
    """Differences, quotients and the larger and smaller of two; of rows, of channels and of all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = L(3, 4), L(4, 2)
        self.rows, self.channels = nn.Parameter(torch.rand(5, 1) + 1), nn.Parameter(torch.rand(4) + 1)
        self.all = nn.Parameter(torch.rand(1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        total = h.sum(-1, keepdim=True)
        h = (self.rows - h) / self.channels + total / (self.channels * self.rows)
        h = torch.maximum(h, self.all) - torch.minimum(h - total, total) * self.all.mean()
        h *= total
        h += self.rows
        return self.head(h - h.mean(1, keepdim=True))


class Mixed(nn.Module):
    """Axes that broadcast in between, and images with values of the same shape from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = L(3, 4), C(2, 2, 1), L(12, 2)
        self.scale = nn.Parameter(torch.rand(2, 1, 2) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x)).view(-1, 2, 3, 2)
        h = h * self.scale + self.conv(h) * h[:, :1]
        return self.head((h * h).flatten(1))


class Points(nn.Module):
    """PointNet: every point by itself, the largest of each feature, and of all features and points."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = L(3, 6), L(6, 4), L(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.relu(self.first(x)))
        values, _ = h.max(dim=1)
        return self.head(values - torch.max(h, 2)[0].sum(1, keepdim=True)) + h.amax((1, 2)).unsqueeze(-1)


class Mixture(nn.Module):
    """DARTS: several layers at one place, in a mixture whose weights are meta-learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([C(2, 2, 3, padding=1), C(2, 2, 1), nn.AvgPool2d(3, 1, 1), nn.Identity()])
        self.weights, self.table = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3, 2))
        self.head = L(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.weights, dim=0)
        x = sum(weight * torch.tanh(layer(x)) for weight, layer in zip(weights.unbind(), self.layers, strict=True))
        return self.head(x.mean((2, 3))) + self.table.log_softmax(0).sum(0)


class Directed(nn.Module):
    """weight_norm written out, since torch's own has a wrong second derivative: g v / |v| for each output."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / v.square().sum(tuple(range(1, v.dim())), keepdim=True).sqrt()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.square().sum(tuple(range(1, weight.dim())), keepdim=True).sqrt(), weight


def directed(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrize.register_parametrization(layer, "weight", Directed(), unsafe=True)
