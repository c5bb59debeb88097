"""Products large enough for the CUDA engine to stage them in shared memory, and sums over positions cut into parts: the
CPU engine's numbers, and the bits of the persistent kernel, which does neither."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from metafast import device

pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")

Build = Callable[[], nn.Sequential]


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(65, 37), nn.Tanh(), nn.Linear(37, 70), nn.Tanh(), nn.Linear(70, 3))


def conv() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(5, 20, 3, stride=2, padding=2), nn.Tanh(), nn.Conv2d(20, 21, 3, padding=2, dilation=2), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 3)),
    )


def meta_gradient(build: Build, example: tuple[int, ...], shots: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(3)
    model = build().to(dtype)
    maml = mf.MAML(model, lr=0.5, steps=2, loss="cross_entropy", backend="native")
    xs, xq = torch.randn(2, shots, *example, dtype=dtype), torch.randn(2, 4, *example, dtype=dtype)
    ys, yq = torch.randint(3, (2, shots)), torch.randint(3, (2, 4))
    xs.requires_grad_()
    out = maml((xs, ys), (xq, yq))
    return [out.loss.detach(), *torch.autograd.grad(out.loss, [*model.parameters(), xs])]


@pytest.mark.parametrize(
    ("build", "example", "shots"), [(linear, (65,), 530), (conv, (5, 12, 11), 10)], ids=["linear", "conv"]
)
def test_large_products(build: Build, example: tuple[int, ...], shots: int) -> None:
    expected = meta_gradient(build, example, shots, torch.float64)
    results = []
    for style in ("persistent", "batched"):
        with device.emulated(style):
            results.append(meta_gradient(build, example, shots, torch.float64))
    for actual, bits, value in zip(*results, expected, strict=True):
        assert (actual - value).norm() <= 1e-12 * value.norm()
        assert torch.equal(actual, bits)
