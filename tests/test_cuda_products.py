"""Products large enough for the CUDA engine to stage them in shared memory, and sums over positions cut into parts: the
CPU engine's numbers, and the bits of the persistent kernel, which does neither. And the same products in TF32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from metafast.engine import device

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


def rounded(x: Tensor) -> Tensor:
    """To TF32, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def products(layer: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    """Output, input gradient and weight gradient of ``layer``, by torch in float64."""
    layer, x = copy.deepcopy(layer).double(), x.double().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, layer.weight], g.double())]


def native_products(maml: mf.MAML, x: Tensor, g: Tensor) -> list[Tensor]:
    x = x[None].clone().requires_grad_()
    out = maml((x[:, :1].detach(), g[None, :1]), (x, g[None]))
    gradients = torch.autograd.grad(out.logits, [x, next(maml.model.parameters())], g[None])
    return [out.logits.detach()[0], gradients[0][0], gradients[1]]


Allow = Callable[[bool, bool], None]


def allow(linear: bool, conv: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = linear
    torch.backends.cudnn.allow_tf32 = conv


@pytest.fixture
def allow_tf32() -> Iterator[Allow]:
    """Sets torch's flags."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield allow
    allow(*before)


LAYERS = [(nn.Linear(65, 70), (300, 65)), (nn.Conv2d(20, 36, 3, padding=1), (4, 20, 9, 8))]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["linear", "conv"])
def test_products_in_tf32(
    layer: nn.Module, shape: tuple[int, ...], allow_tf32: Allow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of rounded operands, but for errors of float32; only while torch's flag for the layer allows it."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    x = torch.randn(shape)
    g = torch.randn(layer(x).shape)
    maml = mf.MAML(nn.Sequential(layer), lr=0.1, steps=0, loss="mse", backend="native")
    is_conv = isinstance(layer, nn.Conv2d)

    coarse, magnitude = copy.deepcopy(layer), copy.deepcopy(layer)
    with torch.no_grad():
        coarse.weight.copy_(rounded(layer.weight))
        for p in magnitude.parameters():
            p.abs_()
    with device.emulated("batched", tf32=True):
        allow_tf32(is_conv, not is_conv)
        plain = native_products(maml, x, g)
        allow_tf32(not is_conv, is_conv)
        actual = native_products(maml, x, g)
        monkeypatch.setenv("METAFAST_SHIM_SEED", "17")
        monkeypatch.setenv("METAFAST_SHIM_THREADS", "256")
        assert all(map(torch.equal, native_products(maml, x, g), actual)), "the order of threads decides bits"
        allow_tf32(False, False)
        assert all(map(torch.equal, native_products(maml, x, g), plain)), "a flag is not heeded"
    exact, expected = products(layer, x, g), products(coarse, rounded(x), rounded(g))
    for a, p, e, r, size in zip(actual, plain, exact, expected, products(magnitude, x.abs(), g.abs()), strict=True):
        assert ((p - e).abs() <= 2**-21 * size).all()
        assert ((a - r).abs() <= 2**-21 * size).all()
        assert ((a - e).abs() <= 2**-10 * size).all()
        assert ((a - e).abs() > 2**-17 * size).any(), "this was not TF32"


@pytest.mark.parametrize(
    ("build", "example", "shots"), [(linear, (65,), 530), (conv, (5, 12, 11), 10)], ids=["linear", "conv"]
)
def test_meta_gradients_in_tf32(build: Build, example: tuple[int, ...], shots: int, allow_tf32: Allow) -> None:
    """Close to those of float32. Not in float64, and not by the persistent kernel."""
    allow_tf32(build is linear, build is conv)
    for style, dtype in ("batched", torch.float32), ("batched", torch.float64), ("persistent", torch.float32):
        with device.emulated(style):
            plain = meta_gradient(build, example, shots, dtype)
        with device.emulated(style, tf32=True):
            actual = meta_gradient(build, example, shots, dtype)
        if style == "batched" and dtype == torch.float32:
            for a, p in zip(actual, plain, strict=True):
                assert 0 < (a - p).norm() <= 1e-3 * p.norm()
        else:
            assert all(map(torch.equal, actual, plain))
