"""A CUDA device: its clocks, its limits in the run they are compared with, and how it is described beside every figure.

Nothing here touches the device when it is imported.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.rivals import Step

#: Rivals with a runtime of their own, whose work torch's events do not see. Their results are waited for.
OWN_RUNTIME = ("jax",)
#: Calls before any that counts: compilers, CUDA graphs and autotuning are done by then.
WARM_UP = 3
TRIES = 7


def prepare() -> None:
    """Float32 means float32 for everybody, libraries choose their fastest algorithm, and memory is shared with JAX."""
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    allow_tf32(False)
    torch.backends.cudnn.benchmark = True


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


# ------------------------------------------------------------------------------------------------------------- clocks


class EventClock:
    """Seconds between two events around a call on the current stream, the device idle before it."""

    def __init__(self, event: Callable[..., Any] = torch.cuda.Event) -> None:
        self.start, self.end = event(enable_timing=True), event(enable_timing=True)

    def __call__(self, step: Step) -> float:
        self.start.record()
        step()
        self.end.record()
        self.end.synchronize()
        return 1e-3 * float(self.start.elapsed_time(self.end))


def waiting_clock(step: Step) -> float:
    """Seconds on the host until the result is there: what can be measured of any runtime."""
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def host_us(step: Step, calls: int = 30, synchronize: Callable[[], object] = torch.cuda.synchronize) -> float:
    """Median microseconds until a call returns, its work under way on an idle device."""
    times = []
    for _ in range(calls):
        synchronize()
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    synchronize()
    return 1e6 * statistics.median(times)


def warm(steps: Sequence[Step]) -> None:
    for step in steps:
        for _ in range(WARM_UP):
            step()
    torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------------------- limits


def limits(size: int = 8192, megabytes: int = 1024) -> dict[str, float]:
    """GFLOP/s of a large product in float32 and in TF32, and GB/s read and written by a copy."""
    clock = EventClock()

    def best(run: Callable[[], object]) -> float:
        def step() -> tuple[()]:
            run()
            return ()

        warm([step])
        return min(clock(step) for _ in range(TRIES))

    def product() -> float:
        a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
        out = torch.empty_like(a)
        return 2e-9 * size**3 / best(lambda: torch.mm(a, b, out=out))

    found = {"matmul_gflops": product()}
    try:
        allow_tf32(True)
        found["tf32_gflops"] = product()
    finally:
        allow_tf32(False)
    source = torch.ones(megabytes << 18, device="cuda")
    target = torch.empty_like(source)
    found["copy_gbps"] = 2e-9 * source.nbytes / best(lambda: target.copy_(source))
    return found


# -------------------------------------------------------------------------------------------------------- description


def describe() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu memory": properties.total_memory,
        "CUDA in torch": torch.version.cuda,
        "driver, clocks, power limit": _smi("driver_version,clocks.sm,clocks.max.sm,power.limit"),
    }


def _smi(query: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None
