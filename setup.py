"""Builds ``metafast._native``: setuptools asks, CMake and Ninja compile. CMakeLists.txt says what and how.

Environment: ``MAX_JOBS`` (parallel compilations), ``METAFAST_CUDA=0`` (no CUDA even where nvcc is found),
``FORCE_CUDA=1`` (fail without nvcc), ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST``, ``METAFAST_ISAS=native`` (CPU kernels
for this processor alone, in half the time; or names of instruction sets), ``METAFAST_SANITIZE`` (for instance
``address,undefined``), ``METAFAST_EMULATE=1`` (also ``metafast._emulated``, which runs the CUDA code on the CPU: for
tests).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
EMULATE = os.environ.get("METAFAST_EMULATE") == "1"


def tool(name: str) -> str:
    """The program from this environment if it has one, else the system's."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"metafast needs {name} to compile its native module: pip install {name}")
    return found


class CMakeBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        import pybind11

        # Not build_temp, which an editable install throws away: here a second build compiles only what changed.
        build = ROOT / self.get_finalized_command("build").build_base / f"native-{sys.implementation.cache_tag}"
        cuda = "REQUIRED" if os.environ.get("FORCE_CUDA") == "1" else os.environ.get("METAFAST_CUDA", "AUTO")
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "METAFAST_VERSION": self.distribution.get_version(),
            "METAFAST_CUDA": cuda,
            "METAFAST_EMULATE": "ON" if EMULATE else "OFF",
            "METAFAST_ISAS": os.environ.get("METAFAST_ISAS", ""),
            "METAFAST_SANITIZE": os.environ.get("METAFAST_SANITIZE", ""),
        }
        configure = [f"-D{name}={value}" for name, value in definitions.items()]
        subprocess.check_call([tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *configure])
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.check_call([tool("cmake"), "--build", str(build), *jobs])

        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A fresh inode: a process that has the old module loaded keeps it, instead of crashing on the new bytes.
        target.unlink(missing_ok=True)
        shutil.copy2(build / target.name, target)


modules = ["metafast._native", "metafast._emulated"] if EMULATE else ["metafast._native"]
setup(ext_modules=[Extension(name, sources=[]) for name in modules], cmdclass={"build_ext": CMakeBuild})
