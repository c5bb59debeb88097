"""What dropout draws, in Python from the published definition of the generator, and the plainest loop with that."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

Pair = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]


def philox(counter: Sequence[int], key: int) -> list[int]:
    """Philox4x32-10."""
    a, b, c, d = counter
    low, high = key % 2**32, key >> 32
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = y >> 32 ^ b ^ low, y % 2**32, x >> 32 ^ d ^ high, x % 2**32
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return [a, b, c, d]


class DropPath(nn.Module):
    """Stochastic depth as vision models have it: whole examples are dropped."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        random = x.new_empty(shape).bernoulli_(keep)
        if keep > 0.0:
            random.div_(keep)
        return x * random


class Given(nn.Module):
    """Dropout by the masks of ``seed``, for the task and the step that are set; a draw for each element of the first
    ``axes``, of all where that is None."""

    def __init__(self, p: float, axes: int | None, number: int) -> None:
        super().__init__()
        self.p, self.axes, self.number = p, axes, number
        self.seed = self.task = self.step = 0

    def mask(self, count: int) -> Tensor:
        """Whether each draw lets through."""
        words: list[int] = []
        for block in range(-(-count // 4)):
            words += philox((block, self.task, self.step, self.number), self.seed)
        return torch.tensor([word < round((1 - self.p) * 2**32) for word in words[:count]])

    def forward(self, x: Tensor) -> Tensor:
        drawn = x.shape[: self.axes]
        kept = self.mask(math.prod(drawn)).reshape(drawn + (1,) * (x.ndim - len(drawn)))
        return x * (kept.to(x) / (1 - self.p)) if self.p < 1 else x * 0


def given(model: nn.Sequential) -> nn.Sequential:
    """The same parameters, with other dropout."""
    layers: list[nn.Module] = []
    for layer in model:
        number = sum(isinstance(m, Given) for m in layers)
        random = isinstance(layer, (nn.modules.dropout._DropoutNd, DropPath)) and layer.p > 0
        axes = None if isinstance(layer, nn.Dropout) else 1 if isinstance(layer, DropPath) else 2
        layers.append(Given(layer.p, axes, number) if random else layer)
    return nn.Sequential(*layers)


def unroll(model: nn.Sequential, seed: int, support: Pair, query: Pair, lr: Tensor, steps: int) -> Tensors:
    """Losses of tasks by gradient descent on the mean squared error, with a graph of all."""
    drawing = given(model)

    def loss(theta: Tensors, batch: Pair, task: int, step: int) -> Tensor:
        for layer in drawing:
            if isinstance(layer, Given):
                layer.seed, layer.task, layer.step = seed, task, step
        return nn.functional.mse_loss(functional_call(drawing, theta, (batch[0][task],)), batch[1][task])

    task_loss, support_loss = [], []
    for task in range(len(support[0])):
        theta: Tensors = dict(drawing.named_parameters())
        for step in range(steps):
            value = loss(theta, support, task, step)
            support_loss.append(value)
            gradients = torch.autograd.grad(value, list(theta.values()), create_graph=True)
            theta = {name: p - lr * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
        task_loss.append(loss(theta, query, task, steps))
    losses = torch.stack(task_loss)
    return {"loss": losses.mean(), "task_loss": losses, "support_loss": torch.stack(support_loss).view(-1, steps)}
