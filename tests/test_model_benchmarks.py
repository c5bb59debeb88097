"""The benchmark of networks that people adapt times exact gradients, and native ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import check, fallback, networks, timing
from benchmarks.networks import modules, torch_forms
from benchmarks.networks.cases import CASES, Case, Problem

#: As small as the second-order term allows; the forms of JAX know the depths of the whole.
TINY: dict[str, dict[str, Any]] = {
    "fast-weights": dict(network=lambda: modules.FastWeights(128, 8), steps=2),
    "resnet12": dict(network=lambda: modules.ResNet12((4, 5, 4, 4)), query=5, steps=1),
    "siren": dict(network=lambda: modules.Siren(8), tasks=2),
    "latent-siren": dict(network=lambda: modules.LatentSiren(8, latent=3), tasks=2),
    "transformer": dict(network=lambda: modules.Transformer(8), tasks=2),
    "distillation": dict(network=lambda: modules.convnet3(4), query=8, steps=2),
    "policy-gradient": dict(network=lambda: modules.GaussianPolicy(8), tasks=2),
}
ONCE = timing.Effort(turn=0, rounds=(1, 1), seconds=0)


def tiny(name: str) -> Case:
    return replace(CASES[name], **{"support": 6, "query": 6, "tasks": 1, **TINY[name]})


@pytest.mark.parametrize("name", CASES)
def test_what_is_timed_is_exact_and_native(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "fast-weights":  # compiling all of them takes longer than a test may
        monkeypatch.setattr(networks, "jax_is_installed", lambda: False)
    row = networks.row(name, tiny(name), ONCE)
    row["runs"] = torch_forms.native(Problem(tiny(name)))
    assert row["runs"] == "native"
    assert {"metafast", "loop over tasks", "torch.func"} <= row["ms"].keys()
    assert "times the best" in networks.table({"rows": [row], **_CONDITIONS})


_CONDITIONS = {
    "machine": {"packages": {}, "cpu": "", "threads": 1, "instruction set": "", "python": "", "load": [0.0]},
    "date": "",
    "seconds": 0.0,
    "command": "",
}


def test_torch_alone_is_timed_beside_the_loop() -> None:
    row = networks.row("fast-weights", tiny("fast-weights"), ONCE, fallback.contestants)
    assert row["ms"].keys() == {"metafast", "loop over tasks"}
    assert "times the loop" in fallback.table({"rows": [row], **_CONDITIONS})


def test_a_wrong_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "jax_is_installed", lambda: False)
    loop = torch_forms.loop
    monkeypatch.setattr(torch_forms, "metafast", lambda problem: lambda: loop(problem, first_order=True))
    with pytest.raises(check.Wrong, match="metafast's float64 result is off by"):
        networks.checked("siren", tiny("siren"), networks.steps)


def test_a_network_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no network sirens; there are fast-weights"):
        networks.measure(timing.QUICK, "", print, ["sirens"])
