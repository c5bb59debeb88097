"""Every benchmark runs on two threads, on two cores."""

from __future__ import annotations

import pytest

from benchmarks import machine


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    machine.confine(2)
