"""The CUDA engine, executed on the CPU by csrc/cuda/shim.h, in both of its styles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metafast as mf
from metafast import device
from models import mlp

pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")

STYLES = ("persistent", "batched")


def meta_gradient(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    model = mlp(3, 40, 2).to(dtype)
    maml = mf.MAML(model, lr=0.1, steps=3, loss="mse", backend="native")
    xs, ys, xq, yq = (torch.randn(4, n, k, dtype=dtype) for n, k in ((5, 3), (5, 2), (7, 3), (7, 2)))
    out = maml((xs, ys), (xq, yq))
    return [out.loss.detach(), *torch.autograd.grad(out.loss, list(model.parameters()))]


@pytest.mark.parametrize("style", STYLES)
def test_meta_gradient_is_the_cpus(style: str) -> None:
    expected = meta_gradient()
    with device.emulated(style):
        actual = meta_gradient()
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= 1e-13 * e.norm()


def test_styles_give_the_same_bits() -> None:
    results = []
    for style in STYLES:
        with device.emulated(style):
            results.append(meta_gradient(torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
