"""A snapshot of a model notices every change that may give it another meaning, and training is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from forms import IMAGE, C, L
from metafast.model.lowering import Unsupported, lower
from metafast.tracking.snapshot import Snapshot


def network() -> nn.Sequential:
    return nn.Sequential(
        C(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU(), nn.Dropout(0.0)), nn.Flatten(), L(60, 2)
    )


def reshape_parameter(m: nn.Module) -> None:
    m[4].weight.data = torch.randn(3, 60)


def replace_equal_parameter(m: nn.Module) -> None:
    m[1].weight = nn.Parameter(m[1].weight.detach().clone())


CHANGES: dict[str, Callable[[Any], Any]] = {
    "eval": lambda m: m.eval(),
    "one module's training": lambda m: m[2][1].train(False),
    "requires_grad": lambda m: m[0].weight.requires_grad_(False),
    "shape of a parameter": reshape_parameter,
    "dtype": lambda m: m.double(),
    "parameter replaced": replace_equal_parameter,
    "parameter removed": lambda m: m[0].register_parameter("bias", None),
    "buffer replaced": lambda m: m[1].register_buffer("running_mean", torch.zeros(3)),
    "submodule replaced": lambda m: m[2].__setitem__(0, nn.ReLU()),
    "submodule added": lambda m: m.append(nn.ReLU()),
    "setting": lambda m: setattr(m[2][1], "p", 0.5),
    "setting of a leaf": lambda m: setattr(m[1], "eps", 1.0),
    "forward of an instance": lambda m: setattr(m[2][0], "forward", torch.tanh),
    "forward hook": lambda m: m[2].register_forward_hook(lambda *a: None),
    "forward pre-hook": lambda m: m[0].register_forward_pre_hook(lambda *a: None),
    "backward hook": lambda m: m[0].register_full_backward_hook(lambda *a: None),
    "parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[4]),
    "attribute replaced by a tensor": lambda m: setattr(m[1], "eps", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_snapshot_notices(change: Callable[[Any], Any]) -> None:
    model = network()
    snapshot = Snapshot(model, model.parameters())
    assert snapshot.is_unchanged()
    change(model)
    assert not snapshot.is_unchanged()
    assert Snapshot(model, model.parameters()).is_unchanged()


def test_a_snapshot_notices_hooks_for_all_modules() -> None:
    model = network()
    snapshot = Snapshot(model, model.parameters())
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert not snapshot.is_unchanged()
        with pytest.raises(Unsupported, match="hooks are registered for all modules"):
            lower(model, IMAGE)
    finally:
        handle.remove()
    assert snapshot.is_unchanged()


def test_training_does_not_disturb_a_snapshot() -> None:
    model = network()
    snapshot = Snapshot(model, model.parameters())
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(4, *IMAGE)).sum().backward()
    optimiser.step()
    model.load_state_dict(network().state_dict())
    model.eval().train()
    assert snapshot.is_unchanged()
