"""Threads without a task take parts of others' loops (csrc/cpu/threads/work_stealing.h): the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from judge import Case
from law import Law
from laws import LAWS
from metafast.engine import native
from rows import ROWS


def cases(law: str) -> Iterator[object]:
    for found in LAWS:
        if found.name == law:
            for case in found.cases(ROWS, "cpu"):
                if case.backend == "native":
                    yield pytest.param(found, case, id=f"{case.row.name}-{str(case.dtype).removeprefix('torch.')}")


@pytest.mark.parametrize(("law", "case"), list(cases("threads_do_not_change_bits")))
def test_every_loop_in_parts(law: Law, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "always", loops of any length are cut in as many parts as there are threads."""
    monkeypatch.setattr(native, "sharing", "always")
    law.check(case)


@pytest.mark.parametrize(("law", "case"), list(cases("hvp_equals_the_oracle")))
def test_hessian_vector_products_in_parts(
    law: Law, case: Case, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "sharing", "always")
    threads(3)
    law.check(case)


def block(inputs: int, channels: int, stride: int = 1, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1)
    return [convolution, nn.BatchNorm2d(channels), act(), *([nn.MaxPool2d(2)] if stride == 1 else [])]


#: Networks long enough that loops are shared, of shapes that leave something over.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv4": (
        lambda: nn.Sequential(*block(1, 64), *block(64, 64), *block(64, 64), nn.Flatten(), nn.Linear(576, 5)),
        (1, 28, 28),
    ),
    "strided": (
        lambda: nn.Sequential(
            *block(3, 40, stride=2, act=nn.Tanh),
            *block(40, 24, stride=2),
            *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(96, 5)),
        ),
        (3, 30, 29),
    ),
    "colours": (
        lambda: nn.Sequential(*block(3, 33), *block(33, 17, act=nn.ELU), nn.Flatten(), nn.Linear(17 * 49, 5)),
        (3, 28, 28),
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(784, 300), nn.Softplus(), nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 5)),
        (784,),
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = NETWORKS[request.param]
    return build(), shape


def sets(tasks: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(tasks, n, *shape, dtype=dtype), torch.randint(5, (tasks, n))) for n in (7, 17)]


@pytest.mark.parametrize("sharing", ["auto", "always"])
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_helpers_change_no_bit(
    network: tuple[nn.Module, tuple[int, ...]],
    tasks: int,
    sharing: str,
    dtype: torch.dtype,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, shape = network
    support, query = sets(tasks, shape, dtype)
    maml = mf.MAML(model.to(dtype), lr=0.1, steps=2, learn_lr=True, strict=True)

    def everything() -> list[Any]:
        out = maml(support, query)
        return [*out, *torch.autograd.grad(out.loss, list(maml.parameters()))]

    threads(1)
    expected = everything()
    monkeypatch.setattr(native, "sharing", sharing)
    for count in (2, 3, 8):
        threads(count)
        for one, shared in zip(expected, everything(), strict=True):
            assert torch.equal(one, shared)
