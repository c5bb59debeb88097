"""The optimisers of the outer loop are torch's, but for what a step costs: torch's trajectories are the oracle."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, optimizer

from metafast import optim
from metafast.optim import step as native

NAMES = ("SGD", "Adam", "AdamW")
#: Every pair of settings of any two options is in some row.
MOMENTS: list[dict[str, Any]] = [
    {},
    {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
    {"lr": 0.01, "betas": (0.3, 0.7), "amsgrad": True},
    {"lr": torch.tensor(0.01, dtype=torch.float64), "betas": (0.3, 0.7), "weight_decay": 0.1},
    {"lr": torch.tensor([0.02], dtype=torch.float64), "amsgrad": True, "eps": 1e-3},
    {"betas": (0.0, 0.99), "weight_decay": 1, "maximize": True, "eps": 1e-3},
    {"lr": torch.tensor(0.02, dtype=torch.float64), "maximize": True, "foreach": False},
]
DESCENTS: list[dict[str, Any]] = [
    {},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": torch.tensor(0.1, dtype=torch.float64), "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.5, "dampening": 0.3, "maximize": True},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    {"lr": torch.tensor(0.1, dtype=torch.float64), "momentum": 0.5, "nesterov": True},
    {"lr": torch.tensor(0.1, dtype=torch.float64), "weight_decay": 1, "maximize": True},
]
CASES = [("SGD", each) for each in DESCENTS] + [(name, each) for name in ("Adam", "AdamW") for each in MOMENTS]
ROUNDING = {torch.float64: {"rtol": 1e-12, "atol": 1e-13}, torch.float32: {"rtol": 2e-6, "atol": 2e-6}}
SHAPES: list[tuple[int, ...]] = [(3, 2), (5,), (), (1, 4, 17), (0, 3)]


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def twins(name: str, given: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's optimiser, on copies of the parameters or groups ``given``."""
    return getattr(optim, name)(copy.deepcopy(given), **options), getattr(torch.optim, name)(given, **options)


def parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def drive(*optimisers: torch.optim.Optimizer, steps: int = 5, without: Any = ()) -> None:
    """Steps with the same random gradients, none for the parameters whose numbers are in ``without``."""
    for step in range(steps):
        for i, alike in enumerate(zip(*map(parameters, optimisers), strict=True)):
            g = torch.randn_like(alike[0]) * 10.0 ** (step % 7 - 5)
            for p in alike:
                p.grad = None if i in without else g.to(p.dtype).clone()
        for each in optimisers:
            each.step()


def are_alike(ours: Any, theirs: Any) -> None:
    """Equal parameters and state."""
    for a, b in zip(parameters(ours), parameters(theirs), strict=True):
        close = ROUNDING.get(a.dtype, {})
        torch.testing.assert_close(a, b, **close)
        assert ours.state[a].keys() == theirs.state[b].keys()
        for key, value in theirs.state[b].items():
            torch.testing.assert_close(ours.state[a][key], value, **close)


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on torch's own steps fail."""

    def fail(*_: Any) -> None:
        raise AssertionError("torch took the step")

    for name in NAMES:
        monkeypatch.setattr(getattr(torch.optim, name), "step", fail)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_is_torchs(name: str, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = twins(name, weights(dtype), **copy.deepcopy(options))
    drive(ours, theirs, steps=20)
    are_alike(ours, theirs)
    assert isinstance(ours, getattr(torch.optim, name)) and ours.defaults == theirs.defaults
    without_torch(monkeypatch)
    drive(ours)
    ours.zero_grad()
    assert all(p.grad is None for p in parameters(ours))


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_errors_are_torchs(name: str) -> None:
    ours, theirs = getattr(optim, name), getattr(torch.optim, name)
    assert repr(ours(weights())) == repr(theirs(weights()))
    for wrong in ({"lr": -1.0}, {"weight_decay": -1.0}, {"betas": (1.0, 0.9)}, {"momentum": -1}, {"what": 3}):
        with pytest.raises((ValueError, TypeError)) as expected:
            theirs(weights(), **wrong)
        with pytest.raises(expected.type) as found:
            ours(weights(), **wrong)
        assert str(found.value) == str(expected.value)
    with pytest.raises(ValueError, match="empty parameter list"):
        ours([])


@pytest.mark.parametrize("name", NAMES)
def test_groups_each_with_their_own_settings(name: str) -> None:
    first, second, third = weights(), weights(torch.float32), weights()
    groups = [{"params": first}, {"params": second, "lr": 0.1, "weight_decay": 0.2, "maximize": True}]
    ours, theirs = twins(name, groups, lr=0.01)
    drive(ours, theirs)
    ours.add_param_group({"params": copy.deepcopy(third), "lr": 0.5})
    theirs.add_param_group({"params": third, "lr": 0.5})
    drive(ours, theirs)
    are_alike(ours, theirs)


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True}), ("AdamW", {})])
def test_parameters_without_gradients_stay_and_count_their_own_steps(name: str, options: Any) -> None:
    ours, theirs = twins(name, weights(), lr=0.1, **options)
    for without in ((0, 2), (1,), range(5), ()):
        drive(ours, theirs, without=without)
        are_alike(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_native_form_goes_torchs_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    odd: list[nn.Parameter] = [
        nn.Parameter(torch.randn(4, 3).t()),
        nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(6)[::2]),
        nn.Parameter(torch.randn(5).bfloat16()),
        nn.Parameter(torch.randn(3, dtype=torch.complex64)),
    ]
    ours, theirs = twins(name, weights() + odd, lr=0.1)
    drive(ours, theirs)
    are_alike(ours, theirs)
    ours, theirs = twins(name, weights(), lr=0.1)
    for optimiser in (ours, theirs):
        for p in parameters(optimiser):
            p.grad = torch.full([*reversed(p.shape)], 0.5, dtype=p.dtype).permute([*reversed(range(p.dim()))])
        optimiser.step()
    are_alike(ours, theirs)


@pytest.mark.parametrize("asked", ["foreach", "fused", "differentiable"])
@pytest.mark.parametrize("name", NAMES)
def test_implementations_of_torch_can_be_asked_for(name: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = twins(name, weights(torch.float32), lr=0.1, **{asked: True})
    if asked == "differentiable":
        for p in parameters(ours) + parameters(theirs):
            p.requires_grad_(False)
    taken: list[object] = []
    monkeypatch.setattr(getattr(optim, name), "_native", staticmethod(lambda *a: taken.append(native_step(name)(*a))))
    drive(ours, theirs)
    are_alike(ours, theirs)
    assert taken == [None] * 5


def native_step(name: str) -> Callable[..., Any]:
    return native.sgd_step if name == "SGD" else native.adam_step


def test_sparse_gradients_are_refused_by_name() -> None:
    for name in ("Adam", "AdamW"):
        p = nn.Parameter(torch.randn(4))
        p.grad = torch.ones(4).to_sparse()
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            getattr(optim, name)([p]).step()
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4).to_sparse()
    optim.SGD([p], lr=0.5).step()
    assert torch.equal(p, torch.full((4,), -0.5))


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_states_load_from_each_other(name: str, options: dict[str, Any], ours_first: bool) -> None:
    """Each continues from the other's state as its own optimiser does."""
    ours, theirs = twins(name, weights(), **options)
    kinds = [optim, torch.optim] if ours_first else [torch.optim, optim]
    whole, other = (ours, theirs) if ours_first else (theirs, ours)
    drive(whole, other)
    saved = pickle.loads(pickle.dumps(whole.state_dict()))
    assert saved.keys() == other.state_dict().keys()
    continued = getattr(kinds[1], name)(copy.deepcopy(parameters(whole)))
    continued.load_state_dict(saved)
    drive(whole, continued)
    for a, b in zip(parameters(whole), parameters(continued), strict=True):
        torch.testing.assert_close(a, b, **ROUNDING[torch.float64])
    again = getattr(kinds[0], name)(copy.deepcopy(parameters(whole)))
    again.load_state_dict(pickle.loads(pickle.dumps(whole.state_dict())))
    drive(whole, again)
    assert all(map(torch.equal, parameters(whole), parameters(again)))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies(clone: Callable[[Any], Any]) -> None:
    ours = optim.Adam(weights())
    drive(ours)
    twin = clone(ours)
    drive(ours, twin)
    assert all(map(torch.equal, parameters(ours), parameters(twin)))


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=20),  # which moves betas and momentum too
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_schedules(name: str, schedule: str) -> None:
    ours, theirs = twins(name, weights(), lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    schedules = [SCHEDULES[schedule](each) for each in (ours, theirs)]
    for _ in range(7):
        drive(ours, theirs, steps=1)
        for each in schedules:
            each.step()
    assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
    are_alike(ours, theirs)


def test_hooks_and_closures() -> None:
    ours, theirs = twins("Adam", weights())
    drive(ours, theirs, steps=1)
    calls: list[Any] = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append("closure")
        return 3.0

    with torch.no_grad():
        for optimiser in (ours, theirs):
            handles = [
                optimiser.register_step_pre_hook(lambda o, args, kwargs: calls.append(("before", len(args), kwargs))),
                optimiser.register_step_post_hook(lambda o, args, kwargs: calls.append(("after", len(args)))),
                optimizer.register_optimizer_step_post_hook(lambda o, args, kwargs: calls.append(type(o).__name__)),
            ]
            assert optimiser.step(closure) == 3.0 and optimiser.step() is None
            for handle in handles:
                handle.remove()
            assert optimiser.step(closure) == 3.0
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :] and len(calls) == 2 * 8
    are_alike(ours, theirs)
    ours.register_step_pre_hook(lambda o, args, kwargs: ((args[0], closure), kwargs))
    assert ours.step() == 3.0


def test_the_profiler_sees_steps() -> None:
    ours = optim.SGD(weights())
    with torch.profiler.profile() as profile:
        ours.step()
        ours.zero_grad()
    seen = {event.name for event in profile.events()}
    assert {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"} <= seen


def test_a_graph_of_before_the_step_is_out_of_date() -> None:
    p = nn.Parameter(torch.randn(3))
    ours = optim.SGD([p])
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads_gives_the_same_bits(name: str, threads: Callable[[int], None]) -> None:
    results = []
    for count in (1, 3):
        threads(count)
        torch.manual_seed(0)
        ours, theirs = twins(name, [nn.Parameter(torch.randn(100_003))], lr=0.1)
        drive(ours, theirs, steps=3)
        are_alike(ours, theirs)
        results.append(parameters(ours)[0])
    assert torch.equal(*results)


def test_what_is_not_finite_stays_so() -> None:
    """amsgrad keeps the largest, and NaN is the largest of all, as in torch."""
    for options in ({"amsgrad": True}, {"weight_decay": 0.1}, {}):
        ours, theirs = twins("Adam", [nn.Parameter(torch.tensor([1.0, torch.inf, 2.0, 3.0]))], **options)
        for value in (1.0, torch.nan, 1.0):
            for each in (ours, theirs):
                parameters(each)[0].grad = torch.tensor([value, 1.0, torch.inf, 1.0])
                each.step()
        torch.testing.assert_close(parameters(ours)[0], parameters(theirs)[0], equal_nan=True)


def test_without_the_native_engine_torch_takes_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metafast._native", None)
    spec = native.__spec__
    assert spec is not None and spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    monkeypatch.setattr(optim.Adam, "_native", staticmethod(without.adam_step))
    ours, theirs = twins("Adam", weights())
    drive(ours, theirs)
    assert all(map(torch.equal, parameters(ours), parameters(theirs)))


USE = """
import sys, torch
from metafast import optim
for kind in (optim.SGD, optim.Adam, optim.AdamW):
    p = torch.ones(3, requires_grad=True)
    ours = kind([p])
    for _ in range(2):
        ours.zero_grad()
        p.sum().backward()
        ours.step()
    ours.load_state_dict(ours.state_dict())
assert "torch._dynamo" not in sys.modules
"""


def test_torchs_compiler_is_not_imported() -> None:
    """It takes seconds. torch's own optimisers import it when they are made."""
    subprocess.run([sys.executable, "-c", USE], check=True, timeout=300)


def test_gradients_are_zeroed_in_place_where_asked() -> None:
    ours = optim.Adam(weights())
    drive(ours)
    before = [p.grad for p in parameters(ours)]
    ours.zero_grad(set_to_none=False)
    for p, grad in zip(parameters(ours), before, strict=True):
        assert p.grad is grad and not grad.any()


def test_torch_compile_sees_torchs_step() -> None:
    ours, theirs = twins("Adam", [nn.Parameter(torch.randn(3))])
    drive(ours, theirs)
    for each in (ours, theirs):
        for p in parameters(each):
            p.grad = torch.ones_like(p)
        torch.compile(each.step, backend="eager")()
    are_alike(ours, theirs)


@pytest.mark.parametrize("infinite", [False, True])
def test_grad_scalers(infinite: bool) -> None:
    ours, theirs = twins("Adam", weights(torch.float32))
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for _ in range(3):
        for optimiser, scaler in zip((ours, theirs), scalers, strict=True):
            optimiser.zero_grad()
            loss = sum((p * (torch.inf if infinite else 0.3)).square().sum() for p in parameters(optimiser))
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
    are_alike(ours, theirs)
