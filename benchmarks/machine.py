"""The machine, as it is described beside every figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from metafast.engine.native import build_info

PACKAGES = ("torch", "numpy", "jax", "jaxlib", "learn2learn", "higher", "torchopt")


def confine(threads: int) -> None:
    """This process and its children: so many threads, on as many cores. Affinity is what XLA goes by."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        first_of_core = {_core(cpu): cpu for cpu in reversed(allowed)}
        chosen = sorted(first_of_core.values())[:threads]
        os.sched_setaffinity(0, chosen if len(chosen) == threads else allowed[:threads])


def describe() -> dict[str, Any]:
    native = build_info()
    return {
        "cpu": _cpu(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "metafast": native["version"],
        "instruction set": native["isa"],
        "compiler": native["compiler"],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def stolen() -> float | None:
    """Seconds that a virtual machine's processors were ready to run and its host ran others, since boot, of all of them
    together; None where the system does not say."""
    try:
        # cpu user nice system idle iowait irq softirq steal
        total = Path("/proc/stat").read_text().splitlines()[0].split()
        return int(total[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _core(cpu: int) -> str:
    """Which core a processor belongs to: the list of its siblings."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
