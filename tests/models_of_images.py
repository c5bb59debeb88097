"""Whole networks of images, as published: the widths are those of their builders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import seq
from models_of_convolutions import WideBlock

L, C = nn.Linear, nn.Conv2d


class Excitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = seq(
            L(channels, channels // reduction), nn.ReLU(True), L(channels // reduction, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return x * self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)  # type: ignore[no-any-return]


class FewShotBlock(nn.Module):
    """Three convolutions, a shortcut of one pixel, and a pool (Lee et al. 2019)."""

    def __init__(self, inputs: int, outputs: int, reduction: int = 0) -> None:
        super().__init__()
        self.conv1, self.bn1 = C(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = C(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = C(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.maxpool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)
        self.downsample = seq(C(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.excite = Excitation(outputs, reduction) if reduction else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.excite is not None:
            out = self.excite(out)
        out += self.downsample(x)
        return self.maxpool(self.relu(out))  # type: ignore[no-any-return]


class ResNet12(nn.Module):
    def __init__(self, widths: Sequence[int], channels: int = 3, classes: int = 5, reduction: int = 0) -> None:
        super().__init__()
        self.layers = seq(*map(lambda i, o: FewShotBlock(i, o, reduction), (channels, *widths[:-1]), widths))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), L(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))  # type: ignore[no-any-return]


def wide_resnet(depth: int, width: int, base: int = 16, channels: int = 3, classes: int = 5) -> nn.Module:
    """WRN-depth-width (Zagoruyko and Komodakis 2016)."""
    each = (depth - 4) // 6
    sizes = [base, *(base * width * 2**group for group in range(3))]
    layers: list[nn.Module] = [C(channels, base, 3, padding=1, bias=False)]
    for group in range(3):
        for i in range(each):
            first = i == 0
            layers.append(WideBlock(sizes[group + (not first)], sizes[group + 1], 2 if first and group else 1))
    return seq(
        *layers, nn.BatchNorm2d(sizes[3]), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(sizes[3], classes)
    )


def vgg(widths: Sequence[int | str], hidden: int, pooled: int, channels: int = 3, classes: int = 5) -> nn.Module:
    """As torchvision has it, "M" being a pool."""
    layers: list[nn.Module] = []
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [C(channels, width, 3, padding=1), nn.ReLU(True)]
            channels = width
    layers += [nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), L(channels * pooled**2, hidden), nn.ReLU(True), nn.Dropout()]
    return seq(*layers, L(hidden, hidden), nn.ReLU(True), nn.Dropout(), L(hidden, classes))


def convnet(width: int, size: int, channels: int = 3, depth: int = 3, classes: int = 10) -> nn.Module:
    """That of dataset distillation (Zhao et al. 2021)."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        norm = nn.InstanceNorm2d(width, affine=True)
        layers += [C(channels, width, 3, padding=1), norm, nn.ReLU(True), nn.AvgPool2d(2, 2)]
        channels = width
    return seq(*layers, nn.Flatten(), L(width * (size >> depth) ** 2, classes))


class DenseLayer(nn.Module):
    """With a bottleneck where it has a width (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        wide = bottleneck * growth or inputs
        squeeze = [nn.BatchNorm2d(inputs), nn.ReLU(True), C(inputs, wide, 1, bias=False)] if bottleneck else []
        self.body = seq(*squeeze, nn.BatchNorm2d(wide), nn.ReLU(True), C(wide, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def transition(inputs: int, outputs: int) -> nn.Module:
    return seq(nn.BatchNorm2d(inputs), nn.ReLU(True), C(inputs, outputs, 1, bias=False), nn.AvgPool2d(2))


def densenet(
    growth: int, blocks: Sequence[int], first: int, bottleneck: int, channels: int = 3, classes: int = 5
) -> nn.Module:
    """Blocks with transitions in between, which halve the channels where there are bottlenecks."""
    layers, width = [C(channels, first, 3, padding=1, bias=False)], first
    for i, count in enumerate(blocks):
        for _ in range(count):
            layers.append(DenseLayer(width, growth, bottleneck))
            width += growth
        if i < len(blocks) - 1:
            narrow = width // 2 if bottleneck else width
            layers.append(transition(width, narrow))
            width = narrow
    return seq(*layers, nn.BatchNorm2d(width), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(width, classes))


def twice(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [C(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return seq(*layers)


class UNet(nn.Module):
    """A class for each pixel: pools on the way down, transposed convolutions on the way up, and what was joined to it
    (Ronneberger et al. 2015)."""

    def __init__(self, widths: Sequence[int], channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(twice, (channels, *widths[:-1]), widths))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairs)
        self.up = nn.ModuleList(twice(2 * narrow, narrow) for _, narrow in pairs)
        self.pool, self.out = nn.MaxPool2d(2), C(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else self.pool(x))
            skips.append(x)
        for grow, block, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, grow(x)], dim=1))
        return self.out(x)  # type: ignore[no-any-return]


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


def depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    padding = dilation * (kernel - 1) // 2
    each = C(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=False)
    return seq(nn.ReLU(), each, C(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False))


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: Zero(),
    "avg_pool_3x3": lambda c: seq(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.BatchNorm2d(c, affine=False)),
    "max_pool_3x3": lambda c: seq(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(c, affine=False)),
    "skip_connect": lambda channels: nn.Identity(),
    "sep_conv_3x3": lambda channels: depthwise(channels, 3),
    "dil_conv_3x3": lambda channels: depthwise(channels, 3, dilation=2),
}


class MixedOperation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(make(channels) for make in OPERATIONS.values())

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=False))  # type: ignore[return-value]


class SearchCell(nn.Module):
    """DARTS (Liu et al. 2019): every node sums mixed operations of all nodes before it, whose weights are learnt."""

    def __init__(self, width: int, steps: int, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.stem, self._steps = seq(C(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)), steps
        self._ops = nn.ModuleList(MixedOperation(width) for i in range(steps) for _ in range(1 + i))
        self.alphas = nn.Parameter(1e-3 * torch.randn(len(self._ops), len(OPERATIONS)))
        self.classifier = L(width * steps, classes)

    def forward(self, x: Tensor) -> Tensor:
        weights, states, offset = F.softmax(self.alphas, dim=-1), [self.stem(x)], 0
        for _ in range(self._steps):
            s = sum(self._ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states))
            offset += len(states)
            states.append(s)  # type: ignore[arg-type]
        out = torch.cat(states[-self._steps :], dim=1)
        return self.classifier(F.adaptive_avg_pool2d(out, 1).view(out.size(0), -1))  # type: ignore[no-any-return]
