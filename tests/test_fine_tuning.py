"""Plain training on one task: against torch's own loop and against the inner loop of a learner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from bases import EXAMPLE, MobileNet, trained
from judge import assert_close, assert_same_bits
from models import mlp


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_all_examples_in_one_batch_by_sgd_is_what_a_learner_does() -> None:
    network = mf.transfer(trained(dtype=torch.float64), head=3, freeze="features.*")
    network.classifier[0].p = 0.0  # type: ignore[index,union-attr]  nothing is drawn
    x, y = torch.randn(6, *EXAMPLE, dtype=torch.float64), torch.randint(3, (6,))
    adapted = mf.MAML(network.eval(), lr=0.1, steps=4).adapt((x[None], y[None]))
    tuned = mf.fine_tune(network, (x, y), steps=4, optimizer=lambda p: torch.optim.SGD(p, 0.1), batch_size=None)
    assert tuned is network and not network.training
    made = dict(network.named_parameters())
    assert_close({n: made[n] for n in adapted}, {n: value[0] for n, value in adapted.items()}, 1e-12)


@pytest.mark.parametrize("rate", [None, 0.05])
def test_minibatches_are_those_of_torchs_own_loop(rate: float | None) -> None:
    """The same bits; and every example once in an epoch."""
    x, y = torch.randn(10, 3), torch.randn(10, 2)
    ours, theirs = mlp(), mlp()
    theirs.load_state_dict(ours.state_dict())
    seen: list[Tensor] = []
    hook = ours.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    values: list[float] = []
    optimizer = None if rate is None else torch.optim.SGD(ours.parameters(), rate, momentum=0.9)
    mf.fine_tune(
        ours, (x, y), epochs=3, batch_size=4, loss="mse", optimizer=optimizer, callback=lambda k, v: values.append(v)
    )
    hook.remove()
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    for epoch in range(3):
        assert sorted(torch.cat(seen[3 * epoch : 3 * epoch + 3]).tolist()) == sorted(x.tolist())
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:6]))
    other: Any = torch.optim.Adam(theirs.parameters(), 1e-3)
    if rate is not None:
        other = torch.optim.SGD(theirs.parameters(), rate, momentum=0.9)
    for batch, value in zip(seen, values, strict=True):
        at = [int((x == row).all(1).nonzero()) for row in batch]
        loss = F.mse_loss(theirs(batch), y[at])
        other.zero_grad()
        loss.backward()
        other.step()
        assert value == pytest.approx(float(loss.detach()), rel=1e-6)
    assert_same_bits(state(ours), state(theirs))


def test_a_seed_gives_the_same_network_and_another_one_another() -> None:
    start, (x, y) = mlp(), (torch.randn(9, 3), torch.randn(9, 2))
    made = []
    for seed in (0, 0, 1):
        network = mlp()
        network.load_state_dict(start.state_dict())
        made.append(state(mf.fine_tune(network, (x, y), steps=5, batch_size=4, loss="mse", seed=seed)))
    assert_same_bits(made[0], made[1])
    assert not torch.equal(made[0]["0.weight"], made[2]["0.weight"])


def test_what_is_frozen_is_left_as_it_is_and_modes_are_kept() -> None:
    network = mf.transfer(trained(), head=3, freeze="features.*", unfreeze="features.3.*").train()
    network.features[3][1].eval()  # type: ignore[index,union-attr]  the user's own choice
    before = state(network)
    mf.fine_tune(network, (torch.randn(8, *EXAMPLE), torch.randint(3, (8,))), steps=2)
    after = state(network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"features.3.{n}" for n in ("0.weight", "1.weight", "1.bias")} | {
        "classifier.1.weight",
        "classifier.1.bias",
    }
    assert network.training


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"steps": None}, ValueError, "expected steps or epochs, and not both; they are None and None"),
        ({"epochs": 2}, ValueError, "expected steps or epochs, and not both; they are 1 and 2"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number"),
        ({"steps": None, "epochs": 0}, ValueError, "epochs must be a whole number >= 1; it is 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1; it is 0"),
        ({"data": (torch.zeros(4, 3), torch.zeros(3, 3))}, ValueError, r"x has shape \[4, 3\], y \[3, 3\]"),
        ({"data": (torch.zeros(4, 3), torch.zeros(4))}, ValueError, r"y has shape \[4\]; expected .*\[4, 2\]"),
        ({"data": torch.zeros(4, 3)}, TypeError, r"data must be a tuple \(x, y\)"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be a torch.optim.Optimizer, or a function that makes one"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, ValueError, "is it another model's"),
        ({"model": mlp().requires_grad_(False)}, ValueError, "nothing to train"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"model": mlp(), "data": (torch.zeros(4, 3), torch.zeros(4, 2)), "steps": 1, "loss": "mse"}
    with pytest.raises(error, match=match):
        mf.fine_tune(**{**given, **change})


def test_a_loss_that_is_not_finite_stops_before_it_is_learnt() -> None:
    network = MobileNet().double()
    x = torch.randn(4, *EXAMPLE, dtype=torch.float64)
    x[2, 0, 0, 0] = torch.inf
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; the weights are those before it"):
        mf.fine_tune(network.eval(), (x, torch.zeros(4, dtype=torch.long)), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert not network.training
