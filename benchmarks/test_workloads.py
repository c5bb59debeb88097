"""The table's rows under pytest-benchmark: every gradient checked, then timed.

``python -m pytest benchmarks -k "W1 and jax"``. ``python -m benchmarks`` times rivals in turns, and is what ratios come
from.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks.check import Judge
from benchmarks.rivals import RIVALS, Unable
from benchmarks.run import PATIENCE, SLOW, contestant
from benchmarks.workloads import WORKLOADS

judge = functools.cache(lambda name: Judge(WORKLOADS[name]))


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(name: str, rival: str, benchmark: Any) -> None:
    if reason := SLOW.get(rival, {}).get(name):
        pytest.skip(reason)
    try:
        step, row = contestant(rival, WORKLOADS[name], judge(name), PATIENCE)
    except Unable as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{name}: {WORKLOADS[name].title}"
    benchmark.extra_info.update(row)
    benchmark(step)
