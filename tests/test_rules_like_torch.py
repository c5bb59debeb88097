"""The inner loop goes where torch.optim goes: the same settings, defaults and weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import metafast as mf
import oracle
from small import T, mlp, tasks

Clip = Callable[[Iterable[Tensor]], Any]
STEPS = 7


def settings(**options: Any) -> dict[str, Any]:
    return options


SGD = [
    settings(),
    settings(momentum=0.9),
    settings(momentum=0.9, dampening=0.3),
    settings(momentum=0.8, nesterov=True),
    settings(weight_decay=0.1),
    settings(momentum=0.8, nesterov=True, weight_decay=0.1),
    settings(momentum=0.8, dampening=1.0, weight_decay=0.1),
    settings(dampening=0.5),  # without momentum it means nothing
    settings(dampening=0.5, weight_decay=0.1),
]
ADAM = [
    settings(),
    settings(betas=(0.5, 0.7)),
    settings(betas=(0.0, 0.9), eps=1e-3),
    settings(betas=(0.9, 0.0), eps=1e-2),
    settings(weight_decay=0.3),
    settings(amsgrad=True),
    settings(amsgrad=True, weight_decay=0.0, betas=(0.3, 0.2)),
]
OPTIMISERS = (
    [(mf.SGD, torch.optim.SGD, settings(lr=0.3) | s) for s in SGD]
    + [(mf.Adam, torch.optim.Adam, s) for s in ADAM]
    + [(mf.AdamW, torch.optim.AdamW, settings(lr=0.05) | s) for s in ADAM]
)
CLIPS: dict[str, tuple[mf.Rule | None, Clip]] = {
    "": (None, lambda parameters: None),
    "clip_norm": (mf.clip_norm(0.4), lambda parameters: clip_grad_norm_(parameters, 0.4)),
    "clip_norm never": (mf.clip_norm(1e3), lambda parameters: clip_grad_norm_(parameters, 1e3)),
    "clip_value": (mf.clip_value(0.05), lambda parameters: clip_grad_value_(parameters, 0.05)),
}


def by_torch(model: nn.Module, support: tuple[Tensor, ...], make: Any, options: Any, clip: Clip) -> list[nn.Module]:
    """The model of every task after STEPS steps."""
    adapted = [copy.deepcopy(model) for _ in range(T)]
    for t, own in enumerate(adapted):
        optimiser = make(own.parameters(), **options)
        for _ in range(STEPS):
            optimiser.zero_grad()
            oracle.task_loss("cross_entropy", own(support[0][t]), support[1][t]).backward()
            clip(own.parameters())
            optimiser.step()
    return adapted


def largest_error(found: dict[str, Tensor], truth: list[nn.Module]) -> float:
    expected = [dict(m.named_parameters()) for m in truth]
    errors = [(v[t] - expected[t][n]).detach().abs().max() for n, v in found.items() for t in range(T)]
    return float(torch.stack(errors).max())  # NaN where there is one, which Python's max may pass over


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    ("ours", "theirs", "options"), OPTIMISERS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_trajectory_equals_torchs(ours: Any, theirs: Any, options: Any, clip: str, backend: str) -> None:
    model, (support, _) = mlp(), tasks()
    link, hook = CLIPS[clip]
    rule = ours(**options) if link is None else mf.chain(link, ours(**options))
    adapted = mf.MAML(model, rule=rule, steps=STEPS, backend=backend).adapt(support)
    truth = by_torch(model, support, theirs, options, hook)
    assert largest_error(adapted, truth) < 1e-12
    assert largest_error(adapted, [model] * T) > 1e-4, "nothing has moved"


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_settings_have_torchs_names_and_defaults(name: str) -> None:
    ours = inspect.signature(getattr(mf, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    for setting, parameter in ours.items():
        if setting not in ("lr", "per_step", "learn", "detach_denominator"):
            assert parameter.default == theirs[setting].default, setting
    assert mf.Adam().default_lr == mf.AdamW().default_lr == theirs["lr"].default


def test_a_nan_gradient_is_nan_for_all_parameters_after_clipping_by_norm(backend: str) -> None:
    """As in clip_grad_norm_: the norm of all is NaN. Other tasks are left alone."""
    model, ((x, y), _) = mlp(), tasks()
    spoilt = x.clone()
    spoilt[1, 0, 0] = float("nan")
    maml = mf.MAML(model, rule=mf.chain(mf.clip_norm(10.0), mf.SGD(0.1)), steps=1, backend=backend)
    adapted, clean = maml.adapt((spoilt, y)), maml.adapt((x, y))
    for name, value in adapted.items():
        assert value[1].isnan().all(), name
        assert torch.equal(value[[0, 2]], clean[name][[0, 2]]), name


def test_one_nan_among_the_elements_is_nan_in_all_after_clipping_by_norm(backend: str) -> None:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    x = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    y = torch.tensor([[[float("inf")]]], dtype=torch.float64)  # 0 inf in the first column, 1 inf in the second
    own = copy.deepcopy(model)
    oracle.task_loss("mse", own(x[0]), y[0]).backward()
    assert own.weight.grad.isnan().tolist() == [[True, False]]
    clip_grad_norm_(own.parameters(), 1.0)
    torch.optim.SGD(own.parameters(), 0.1).step()
    rule = mf.chain(mf.clip_norm(1.0), mf.SGD(0.1))
    adapted = mf.MAML(model, rule=rule, steps=1, loss="mse", backend=backend).adapt((x, y))
    assert own.weight.isnan().all() and adapted["weight"].isnan().all()
    unclipped = mf.MAML(model, rule=mf.SGD(0.1), steps=1, loss="mse", backend=backend).adapt((x, y))
    assert unclipped["weight"].isnan().tolist() == [[[True, False]]]
