"""torch's own fused layers on the torch engine: used for a meta-gradient, and left for one that is differentiated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import metafast as mf


class Captures(nn.Module):
    """Reads a tensor that is neither a parameter nor a buffer."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.held, self.norm, self.last = [scale], nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x * self.held[0]).tanh())


class Names(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def made(scale: Tensor | None = None) -> tuple[mf.MAML, tuple[Tensor, Tensor], list[Tensor]]:
    torch.manual_seed(0)
    layers = nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)
    model = (nn.Sequential(*layers) if scale is None else Captures(scale)).double()
    data = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    return mf.MAML(model, lr=0.1, steps=2, loss="mse", backend="torch"), data, [*model.parameters()]


def test_only_a_gradient_that_is_differentiated_again_is_written_out() -> None:
    maml, data, parameters = made()
    maml(data, data)  # looks at the model
    with Names() as once:
        first = torch.autograd.grad(maml(data, data).loss, parameters)
    with Names() as again:
        second = torch.autograd.grad(maml(data, data).loss, parameters, create_graph=True)
    assert "native_layer_norm_backward" in once.seen and "rsqrt" not in once.seen
    assert "rsqrt" in again.seen
    assert_close(second, first, rtol=1e-13, atol=1e-15)


def test_every_output_has_its_derivatives_in_any_order_of_passes() -> None:
    maml, data, parameters = made()
    out = maml(data, data)
    assert out.task_loss is not None and out.logits is not None
    values = [out.logits.square().sum(), out.loss, out.task_loss @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)]
    for create in (True, False, True):
        for value in values:
            found = torch.autograd.grad(value, parameters, create_graph=create, retain_graph=True)
            expected = torch.autograd.grad(value, parameters, retain_graph=True)
            assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_inputs_may_depend_on_each_other() -> None:
    maml, (x, y), parameters = made()
    scaled = x * parameters[0]
    loss = maml((scaled, y), (scaled, y)).loss
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert_close(torch.autograd.grad(loss, parameters, create_graph=True), once, rtol=1e-12, atol=1e-14)


def test_a_tensor_that_the_model_holds_elsewhere_has_its_gradient() -> None:
    scale = torch.full((4,), 1.5, dtype=torch.float64, requires_grad=True)
    maml, data, _ = made(scale)

    def loss(at: Tensor) -> Tensor:
        with torch.no_grad():
            scale.copy_(at)
        return maml(data, data).loss

    base, step = scale.detach().clone(), torch.tensor([1e-5, 0, 0, 0], dtype=torch.float64)
    (found,) = torch.autograd.grad(loss(base), scale)
    slope = (loss(base + step).item() - loss(base - step).item()) / 2e-5
    assert found[0].item() == pytest.approx(slope, rel=1e-7)


def test_outputs_may_be_changed_in_place() -> None:
    maml, data, _ = made()
    out = maml(data, data)
    assert out.logits is not None
    out.logits.mul_(2).sum().backward()
