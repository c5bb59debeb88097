"""What CMake is asked to compile, without compiling it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import which

import pytest

from metafast import _native

pybind11 = pytest.importorskip("pybind11")
ROOT = Path(__file__).parents[1]
CMAKE, NINJA = (which(tool, path=sysconfig.get_path("scripts")) or which(tool) for tool in ("cmake", "ninja"))

pytestmark = [
    pytest.mark.skipif(not (CMAKE and NINJA), reason="CMake and Ninja are not installed"),
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="not a source checkout"),
]


def configure(folder: Path, isas: str) -> subprocess.CompletedProcess[str]:
    definitions = {
        "CMAKE_MAKE_PROGRAM": NINJA,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "METAFAST_CUDA": "0",
        "METAFAST_ISAS": isas,
    }
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    command = [str(CMAKE), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif("METAFAST_ISA" in os.environ, reason="METAFAST_ISA chooses instead")
def test_native_is_what_is_chosen_on_this_processor(tmp_path: Path) -> None:
    built = _native.build_info()
    if len(built["isas"]) < 2:
        pytest.skip("this module was compiled for one instruction set alone")
    configured = configure(tmp_path, "native")
    assert configured.returncode == 0, configured.stderr
    assert f"CPU kernels for {built['isa']}; CUDA: none" in configured.stdout


def test_an_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    configured = configure(tmp_path, "avx3")
    assert configured.returncode != 0
    assert "METAFAST_ISAS: avx3 is not one of native" in configured.stderr
