"""How much memory one meta-gradient takes at its peak: growth of the resident set, in a process of its own.

``python -m benchmarks.memory RIVAL WORKLOAD [--memory POLICY]`` prints the growth in bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.rivals import OURS, Step, Unable, prepare
from benchmarks.rivals import metafast as ours
from benchmarks.workloads import Workload, chosen

#: metafast's two policies, and the rivals that have only one.
CONTESTANTS = ((OURS, "keep"), (OURS, "recompute"), ("torch loop", ""), ("torch.func", ""), ("jax", ""))


def growth(rival: str, workload: Workload, policy: str = "", limit: float = 120.0) -> int:
    """Bytes, measured in a fresh process; Unable says why not."""
    command = [sys.executable, "-m", "benchmarks.memory", rival, workload.name, "--memory", policy or "auto"]
    command += ["--threads", str(torch.get_num_threads())]
    try:
        run = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unable(f"no answer in {limit:.0f} s") from None
    if run.returncode:
        raise Unable(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit code {run.returncode}")
    return int(run.stdout.split()[-1])


def _measure(step: Step) -> int:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _resident("VmRSS")
    for _ in range(2):
        step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field} in /proc/self/status")


def _step(rival: str, workload: Workload, policy: str) -> Step:
    problem = workload.problem()
    forms = ours.meta_gradient(problem, policy) if rival == OURS else prepare(rival, problem)
    return next(iter(forms.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rival")
    parser.add_argument("workload")
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (workload,) = chosen([args.workload])
    try:
        step = _step(args.rival, workload, args.memory)
        # A small problem first, for what a library loads or sets up once is not the gradient's.
        _step(args.rival, replace(workload, tasks=1, steps=1), args.memory)()
        print(_measure(step))
    except Unable as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
