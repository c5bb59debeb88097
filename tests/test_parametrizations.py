"""Parametrizations run natively, and torch's weight_norm as what it is defined to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import metafast as mf
from models_of_parts import directed

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (3,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2, stride=2), (2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, padding=1), (2, 3, 4)),
}


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("name", LAYERS)
def test_weight_norm_is_its_definition(name: str, backend: str) -> None:
    layer, example = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(layer()), nn.Tanh(), nn.Flatten()).double()
    written = nn.Sequential(directed(layer()), nn.Tanh(), nn.Flatten()).double()
    written.load_state_dict(model.state_dict())
    xs, xq = torch.randn(2, 5, *example).double(), torch.randn(2, 4, *example).double()
    with torch.no_grad():
        ys, yq = (torch.randn(2, x.shape[1], model(x[0]).shape[1]).double() for x in (xs, xq))
    found, expected = (gradients(each, way, (xs, ys), (xq, yq)) for each, way in ((model, backend), (written, "torch")))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def gradients(
    model: nn.Module, backend: str, support: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    out = mf.MAML(model, lr=0.3, steps=2, loss="mse", backend=backend)(support, query)
    return torch.autograd.grad(out.loss, list(model.parameters()))


def test_what_torch_computes_of_a_weight_elsewhere_is_still_refused() -> None:
    hooked = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(RuntimeError, match="Linear has forward pre hooks"):
        mf.MAML(hooked, steps=1, loss="mse", strict=True)(
            (torch.randn(2, 5, 3), torch.randn(2, 5, 4)), (torch.randn(2, 5, 3), torch.randn(2, 5, 4))
        )
