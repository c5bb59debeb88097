"""The benchmark of networks that people adapt times exact gradients, and native ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import check, models, networks

#: As small as the second-order term allows.
TINY: dict[str, dict[str, Any]] = {
    "fast-weights": dict(network=lambda: networks.FastWeights(128, 8), steps=2),
    "resnet12": dict(network=lambda: networks.ResNet12((4, 5, 4, 4)), query=5, steps=1),
    "siren": dict(network=lambda: networks.Siren(8), tasks=2),
    "latent-siren": dict(network=lambda: networks.LatentSiren(8, latent=3), tasks=2),
    "transformer": dict(network=lambda: networks.Transformer(8, blocks=1), tasks=2),
    "distillation": dict(network=lambda: networks.convnet3(4), query=8, steps=2),
    "policy-gradient": dict(network=lambda: networks.GaussianPolicy(8), tasks=2),
}


def tiny(name: str) -> models.Case:
    return replace(models.CASES[name], **{"support": 6, "query": 6, "tasks": 1, **TINY[name]})


@pytest.mark.parametrize("name", models.CASES)
def test_what_is_timed_is_exact_and_native(name: str) -> None:
    assert max(models.errors(tiny(name))[:2]) < 1e-2
    assert models.native(models.Problem(tiny(name), torch.float64)) == "native"


def test_a_wrong_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first_order = models.loop
    monkeypatch.setattr(models, "metafast", lambda problem: lambda: first_order(problem, first_order=True))
    with pytest.raises(check.Wrong, match="off by"):
        models.errors(tiny("siren"))
