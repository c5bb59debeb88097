"""csrc/cuda/shim.h finds what is wrong with a kernel: planted faults, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

emulated = pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")

SANITIZER = emulated.sanitizer()
BLOCKS = 3


def planted(fault: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (  # the module alone: importing torch takes seconds
        "import json; from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('_emulated', {emulated.__file__!r})\n"
        f"e = module_from_spec(spec); spec.loader.exec_module(e)\n"
        f"print(json.dumps(e.planted({fault!r}, {BLOCKS})))"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"METAFAST_SHIM_THREADS": "64"} | environment,
        timeout=120,
    )


def values(fault: str, **environment: str) -> list[float]:
    run = planted(fault, **environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def mirrored() -> list[float]:
    return [float(64 * block + 64 - t) for block in range(BLOCKS) for t in range(64)]


@pytest.mark.parametrize("mode", ["fibres", "threads"])
def test_a_healthy_kernel_gives_one_result_whatever_the_order(mode: str) -> None:
    if SANITIZER == "thread" and mode == "fibres":
        pytest.skip("the thread sanitizer does not know fibres")
    for seed in "012":
        assert values("none", METAFAST_SHIM_SEED=seed, METAFAST_SHIM=mode) == mirrored()


@pytest.mark.parametrize("mode", ["fibres", "threads"])
def test_lanes_of_a_warp_exchange_values(mode: str) -> None:
    if SANITIZER == "thread" and mode == "fibres":
        pytest.skip("the thread sanitizer does not know fibres")
    sums = [sum(mirrored()[32 * warp : 32 * warp + 32]) for warp in range(2 * BLOCKS)]
    assert values("warp", METAFAST_SHIM=mode) == [total for total in sums for _ in range(32)]


def test_a_missing_barrier_is_caught() -> None:
    if SANITIZER == "thread":
        run = planted("missing barrier")
        assert run.returncode != 0 and "data race" in run.stderr
        return
    results = [values("missing barrier", METAFAST_SHIM_SEED=seed, METAFAST_SHIM="fibres") for seed in "0123"]
    assert any(result != mirrored() for result in results)  # NaN, where it read what was not yet written
    assert any(result != results[0] for result in results)


@pytest.mark.parametrize("mode", ["fibres", "threads"])
def test_barrier_divergence_is_caught(mode: str) -> None:
    if SANITIZER == "thread" and mode == "fibres":
        pytest.skip("the thread sanitizer does not know fibres")
    run = planted("divergence", METAFAST_SHIM=mode)
    assert run.returncode != 0 and "barrier divergence" in run.stderr


def test_a_write_past_shared_memory_is_caught() -> None:
    run = planted("past shared")
    expected = "heap-buffer-overflow" if SANITIZER == "address" else "wrote past the end of its 512 bytes"
    assert run.returncode != 0 and expected in run.stderr


@pytest.mark.skipif(SANITIZER != "address", reason="only the address sanitizer knows where the user's arrays end")
def test_a_write_past_an_array_is_caught() -> None:
    run = planted("past global")
    assert run.returncode != 0 and "heap-buffer-overflow" in run.stderr


def test_shared_memory_that_nobody_wrote_is_not_a_number() -> None:
    wrong = [i for i, value in enumerate(values("unwritten")) if value != value]
    assert wrong == [64 * block + 58 for block in range(BLOCKS)]


def test_tiles_that_depend_on_each_other_are_caught() -> None:
    results = [values("tiles depend", METAFAST_SHIM_SEED=seed) for seed in "0123"]
    assert any(result != results[0] for result in results)
