"""What decides how fast metafast runs on this machine; results of training carry it too."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Versions, the instruction set in use, what was compiled for CUDA, and the devices that work."""
    native, problem = _native()
    compiled = f"compiled for {native.get('cuda_archs') or 'unnamed architectures'}" if native.get("cuda") else "no"
    return {
        "metafast": native.get("version", "unknown"),
        "native module": problem or f"loaded (built with {native.get('compiler', 'an unknown compiler')})",
        "instruction set": native.get("isa", "none"),
        "compiled for": list(native.get("isas", [])),
        "CUDA in metafast": compiled,
        "torch": torch.__version__,
        "CUDA in torch": torch.version.cuda or "no",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "devices": _devices(bool(native.get("cuda")) and not problem),
    }


def _native() -> tuple[dict[str, Any], str]:
    """The native module's own account, or why there is none: then everything runs on torch."""
    try:
        from metafast.engine.native import build_info

        return dict(build_info()), ""
    except Exception as error:  # a broken installation is just what a caller asks about
        return {}, f"not loaded ({type(error).__name__}: {error})"


def _devices(cuda: bool) -> list[str]:
    """Devices on which a small computation runs; native says that metafast has kernels for them."""
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            works = bool((torch.ones(2, device=f"cuda:{index}") + 1).sum().item() == 4)
        except RuntimeError as error:
            devices.append(f"cuda:{index} {name} (does not work: {str(error).splitlines()[0]})")
            continue
        kind = "" if cuda else " (on torch only)"
        devices.append(f"cuda:{index} {name}{kind}" if works else f"cuda:{index} {name} (computes wrongly)")
    return devices
