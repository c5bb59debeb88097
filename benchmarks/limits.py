"""What the machine can do, measured in the run it is compared with: multiply-adds, matrix product, copying."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

#: Of so many tries the best counts: a limit is what the machine reaches undisturbed.
TRIES = 7


def measure(threads: int) -> dict[str, float]:
    """GFLOP/s of fused multiply-adds in registers (where a C compiler is found) and of a large float32 product, and
    GB/s read and written by a copy, all on so many threads."""
    limits = {"matmul_gflops": _matmul(), "copy_gbps": _copy()}
    if (peak := _multiply_adds(threads)) is not None:
        limits["fma_gflops"] = peak
    return limits


def peak_gflops(limits: dict[str, float]) -> float:
    return max(limits.get("fma_gflops", 0.0), limits["matmul_gflops"])


def _best(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def _matmul(size: int = 1536) -> float:
    a, b, out = (torch.ones(size, size) for _ in range(3))
    return 2e-9 * size**3 / _best(lambda: torch.mm(a, b, out=out))


def _copy(megabytes: int = 128) -> float:
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / _best(lambda: target.copy_(source))


def _multiply_adds(threads: int, rounds: int = 4_000_000) -> float | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        source = Path(__file__).with_name("peak.c")
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", source, "-o", library]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        kernel = ctypes.CDLL(str(library))
    kernel.peak.argtypes, kernel.peak.restype = [ctypes.c_long, ctypes.c_float, ctypes.c_float], ctypes.c_float
    kernel.flops_per_round.restype = ctypes.c_double

    def together() -> None:
        workers = [threading.Thread(target=kernel.peak, args=(rounds, 0.999, 0.001)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 1e-9 * threads * rounds * kernel.flops_per_round() / _best(together)
