"""Floating-point operations that a workload cannot avoid, and the time they take at a given rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.workloads import HESSIAN_VECTOR, Workload


def multiply_adds(model: nn.Module, example: tuple[int, ...]) -> list[int]:
    """Multiply-adds of every linear and convolutional layer's forward pass for one example, first layer first."""
    counts: list[int] = []

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        counts.append(output.numel() * module.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(torch.zeros(1, *example))
    for hook in hooks:
        hook.remove()
    return counts


def flops(workload: Workload) -> int:
    """Operations of the sweep with every activation kept and neither gradient nor tangent of the network's input.

    In units of a layer's forward pass, a gradient takes 3: forward, input gradient, weight gradient. The product with
    the Hessian adds 6, the two halves of each product rule. The first layer has no input gradient: 2 and 2.
    Elementwise work, norms and pooling are not counted.
    """
    w = workload
    first, *others = multiply_adds(w.network().train(), w.example)
    rest = sum(others)
    gradient, product = 2 * first + 3 * rest, 2 * first + 6 * rest
    if w.kind == HESSIAN_VECTOR:  # nothing is kept from before: activations and their gradients too
        per_task = w.support * (first + 2 * rest + product)
    else:
        inner = gradient + (0 if w.first_order else product)
        per_task = w.steps * w.support * inner + w.query * gradient
    return 2 * w.tasks * per_task


def floor_ms(workload: Workload, gflops: float) -> float:
    return flops(workload) / gflops / 1e6
