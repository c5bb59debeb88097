"""Settings that every test shares: threads, seeds, and what a missing device is called when it is skipped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

#: Derandomised, so that a run is repeatable; METAFAST_HYPOTHESIS=search looks for new counterexamples instead.
settings.register_profile("repeatable", derandomize=True, max_examples=150, deadline=None, print_blob=True)
settings.register_profile(
    "search", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("METAFAST_HYPOTHESIS", "repeatable"))

#: The suite runs one process per core. More threads are asked for by the tests that are about them.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed asks every kind of device, which takes a fifth of a law


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Where a real data set lies: the folder of its name in METAFAST_DATA."""

    def find(name: str) -> Path:
        root = os.environ.get("METAFAST_DATA")
        if root is None:
            pytest.skip("METAFAST_DATA names no folder of real data sets")
        if not (Path(root) / name).is_dir():
            pytest.skip(f"METAFAST_DATA={root} holds no {name}/")
        return Path(root) / name

    return find
