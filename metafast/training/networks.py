"""The networks of the few-shot papers, by name, so that a checkpoint can say which one it holds.

A checkpoint stores a name of :data:`NETWORKS` and keyword arguments, never code: :func:`build` turns them back into an
``nn.Module``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}


def mlp(sizes: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """A multilayer perceptron [N, sizes[0]] -> [N, sizes[-1]], ``activation`` between its linear layers.

    The regression network of Finn, Abbeel and Levine (2017) is ``mlp([1, 40, 40, 1])``.
    """
    sizes = [_positive("sizes", size) for size in sizes]
    if len(sizes) < 2:
        raise ValueError(f"sizes: expected at least an input and an output width, got {sizes}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def conv4(channels: int = 64, ways: int = 5, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """Conv-4 of Vinyals et al. (2016): [N, in_channels, image_size, image_size] -> [N, ways].

    Four blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling, then a linear layer. BatchNorm keeps no
    running statistics: it always normalises with those of the batch at hand, as MAML's experiments do.
    """
    channels, ways = _positive("channels", channels), _positive("ways", ways)
    in_channels, image_size = _positive("in_channels", in_channels), _positive("image_size", image_size)
    side = image_size // 16
    if side == 0:
        raise ValueError(f"image_size: expected at least 16, which four poolings by 2 need, got {image_size}")
    layers: list[nn.Module] = []
    for inputs in (in_channels, channels, channels, channels):
        layers += [
            nn.Conv2d(inputs, channels, 3, padding=1),
            nn.BatchNorm2d(channels, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, ways))


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "conv4": conv4}


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network called ``name`` with its keyword ``arguments``; ValueError says what is unknown or wrong."""
    if name not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"network {name}: {error}") from None


#: A file may ask for any width; beyond this it is a mistake or an attack, and refused before memory is.
LARGEST_WIDTH = 1 << 16


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_WIDTH:
        raise ValueError(f"{name}: expected an integer between 1 and {LARGEST_WIDTH}, got {value!r}")
    return value
