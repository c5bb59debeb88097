"""Small networks as users write them, called as torchvision calls theirs: where a head sits, and what is frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

EXAMPLE = (3, 8, 8)
CLASSES = 7


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class Vgg(nn.Module):
    """Plain convolutions, and three linear layers with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(20, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


class Basic(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Basic(4), Basic(4))
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv = nn.Sequential(
            block(channels, wide, 1),
            block(wide, wide, 3, groups=wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """Depthwise convolutions in inverted residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(block(3, 4, stride=2), Inverted(4), Inverted(4), block(4, 6, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


BASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vgg": (Vgg, "classifier.6"),
    "resnet": (ResNet, "fc"),
    "mobilenet": (MobileNet, "classifier.1"),
}


def trained(make: Callable[[], nn.Module] = MobileNet, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A base that has seen data: its running statistics are those of none of the batches in tests."""
    network = make().to(dtype)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(16, *EXAMPLE, dtype=dtype) + 1)
    return network.eval()
