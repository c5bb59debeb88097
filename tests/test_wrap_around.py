"""Uneven runs are begun by one thread and finished by another (csrc/cpu/threads/wrap_around.h): the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import metafast as mf
from metafast import _native
from metafast.engine import native


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.lists(st.sampled_from([1.0, 2.0, 0.0]), min_size=1, max_size=11).filter(any),
    st.floats(0, 5),
)
def test_every_stage_is_done_once_in_order_by_evenly_busy_threads(
    threads: int, runs: int, stages: list[float], rest: float
) -> None:
    lists = _native.wrap_around(threads, runs, stages, rest)
    assert len(lists) == threads
    slices = [slice for slices in lists for slice in slices]
    first = [sum(len(slices) for slices in lists[:i]) for i in range(threads)]
    for run in range(runs):
        parts = sorted((begin, end) for r, begin, end, *_ in slices if r == run)
        ends = [0, *(end for _, end in parts)]
        assert [begin for begin, _ in parts] == ends[:-1]
        assert ends[-1] == len(stages)
        assert len(parts) <= 2
    for thread, own in enumerate(lists):
        for run, begin, end, after, migrated in own:
            assert (migrated < 0) == (begin == 0 and end == len(stages))
            assert (after < 0) == (begin == 0)
            if after >= 0:  # the first slice of the next thread is the other half of this one's last
                assert (run, begin, end, after, migrated) == own[-1]
                assert after == first[thread + 1]
                assert slices[after] == (run, 0, begin, -1, migrated)
    migrated = sorted(slice[4] for slice in slices if slice[3] >= 0)
    assert migrated == list(range(len(migrated)))

    length = sum(stages)
    share = max(length, length * (runs + rest) / threads)
    busy = [sum(sum(stages[begin:end]) for _, begin, end, *_ in own) for own in lists]
    assert max(busy) <= share + max(stages) + 1e-5 * length


def mlp(inputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 10), nn.ReLU(), nn.Linear(10, 17), nn.Tanh(), nn.Linear(17, 2))


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))


#: Tasks by themselves: any network, one whose first layer stands as its products with the data. Packs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (mlp, (3,)),
    "gram": (lambda: mlp(200), (200,)),
    "images": (images, (1, 4, 5)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "one rate": {},
    "learnt rates": {"lr": torch.tensor([0.3, 0.1, 0.2]), "learn_lr": True},
    "rates of elements": {"lr": "elements", "learn_lr": True},
    "first order": {"first_order": True},
    "recompute": {"memory": "recompute"},
}


def everything(
    model: nn.Module, shape: tuple[int, ...], tasks: int, options: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    """All that a learner returns and all its gradients, of data too."""
    torch.manual_seed(0)
    chosen = {"lr": 0.1, "steps": 3, "loss": "mse", "strict": True, **options}
    if chosen["lr"] == "elements":
        chosen["lr"] = {name: 0.1 * torch.rand_like(p) for name, p in model.named_parameters()}
    maml = mf.MAML(model, **chosen)
    sets = [(torch.randn(tasks, n, *shape, dtype=dtype), torch.randn(tasks, n, 2, dtype=dtype)) for n in (6, 4)]
    wanted = [*maml.parameters()]
    if shape != (200,):  # the gram form has none for the data
        wanted += [t.requires_grad_() for t in sets[0]]
    out = maml(*sets)
    return [*out, *torch.autograd.grad(out.loss, wanted)]


@pytest.mark.parametrize(
    ("packing", "runs", "expected"), [("never", 3, 1), ("never", 4, 0), ("whole", 3, 1), ("small", 5, 1)]
)
def test_uneven_runs_migrate(
    packing: str, runs: int, expected: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "packing", packing)
    threads(2)
    maml = mf.MAML(mlp(), lr=0.1, steps=3, loss="mse", strict=True)
    width = 1
    for _ in range(2):  # a first time to learn how many tasks a run takes
        support, query = [(torch.randn(runs * width, n, 3), torch.randn(runs * width, n, 2)) for n in (5, 4)]
        maml.meta_gradient(support, query)
        prepared = list(native.handle(maml._planner.plan("x", support[0]).program).sessions.values())[-1]
        width = prepared.session.tasks_at_once
    assert prepared.session.migrated == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_tasks_that_migrate_change_no_bit(
    network: str, options: str, dtype: torch.dtype, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "packing", "never")
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model = build().to(dtype)
    for tasks in (3, 5, 8):
        threads(1)
        expected = everything(model, shape, tasks, OPTIONS[options], dtype)
        for count in (2, 3):
            threads(count)
            found = everything(model, shape, tasks, OPTIONS[options], dtype)
            assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("packing", ["whole", "small", "mixed", "auto"])
def test_packs_that_migrate_change_no_bit(
    packing: str, options: str, dtype: torch.dtype, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = mlp().to(dtype)
    for tasks in (25, 48, 53):
        monkeypatch.setattr(native, "packing", "never")
        threads(1)
        expected = everything(model, (3,), tasks, OPTIONS[options], dtype)
        monkeypatch.setattr(native, "packing", packing)
        for count in (1, 2, 3, 4):
            threads(count)
            found = everything(model, (3,), tasks, OPTIONS[options], dtype)
            assert all(map(torch.equal, expected, found))
