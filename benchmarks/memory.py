"""How much memory one meta-gradient takes at its peak: growth of the resident set, in a process of its own.

``python -m benchmarks.memory RIVAL WORKLOAD [--policy POLICY] [--steps K]`` prints the growth in bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.rivals import OURS, SEGMENTED, Step, Unable, prepare
from benchmarks.rivals import metafast as ours
from benchmarks.workloads import Problem, Workload, chosen

#: A rival and metafast's policy or the rival's form; "" is its first.
CONTESTANTS = (
    (OURS, "keep"),
    (OURS, "recompute"),
    (OURS, "checkpoint"),
    ("torch loop", ""),
    ("torch.func", ""),
    ("jax", ""),
    ("jax", SEGMENTED),
)
#: On so many steps torch is asked on demand only, and keeping everything is not for metafast.
MANY_STEPS = 1000
WITH_MANY = tuple(c for c in CONTESTANTS if c != (OURS, "keep"))


def contestants(workload: Workload, slow: bool) -> tuple[tuple[str, str], ...]:
    """Whose memory is measured; ``slow`` for those too that take minutes."""
    if workload.steps < MANY_STEPS:
        return tuple(c for c in CONTESTANTS if c[1] != SEGMENTED)
    return tuple(c for c in WITH_MANY if slow or not c[0].startswith("torch"))


def of_all(workload: Workload, slow: bool = False, limit: float = 120.0) -> list[dict[str, Any]]:
    """A row for each: side by side, for it is not time that is measured, each in a process of its own."""

    def row(rival: str, policy: str) -> dict[str, Any]:
        try:
            return {"rival": rival, "policy": policy, "bytes": growth(rival, workload, policy, limit)}
        except Unable as reason:
            return {"rival": rival, "policy": policy, "skipped": str(reason)}

    with ThreadPoolExecutor(torch.get_num_threads()) as at_once:
        return [*at_once.map(row, *zip(*contestants(workload, slow), strict=True))]


def growth(rival: str, workload: Workload, policy: str = "", limit: float = 120.0) -> int:
    """Bytes, measured in a fresh process; Unable says why not. ``workload`` is one of the table, of any ``steps``."""
    command = [sys.executable, "-m", "benchmarks.memory", rival, workload.name, "--policy", policy]
    command += ["--steps", str(workload.steps), "--threads", str(torch.get_num_threads())]
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


def _step(rival: str, problem: Problem, policy: str) -> Step:
    forms = ours.meta_gradient(problem, policy) if rival == OURS else prepare(rival, problem)
    return forms.get(policy) or next(iter(forms.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rival")
    parser.add_argument("workload")
    parser.add_argument("--policy", default="")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (workload,) = chosen([args.workload])
    workload = replace(workload, steps=workload.steps if args.steps is None else args.steps)
    try:
        step = _step(args.rival, workload.problem(), args.policy)
        # A small problem first, for what a library loads or sets up once is not the gradient's.
        _step(args.rival, replace(workload, tasks=1, steps=1).problem(), args.policy)()
        print(_measure(step))
    except Unable as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
