"""Makes ``benchmarks`` importable, which is not installed, and skips the module that asks where there is no checkout.

The folder is on sys.path for this one import only: tests run against the installed metafast, of which the checkout may
hold another build.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import metafast  # noqa: F401  the installed one, before the checkout is on the path

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "workloads.py").is_file():
    pytest.skip("benchmarks/ is in a source checkout only", allow_module_level=True)

sys.path.insert(0, str(ROOT))  # first, for other packages may have a module of this name too
try:
    importlib.import_module("benchmarks")
finally:
    sys.path.remove(str(ROOT))
