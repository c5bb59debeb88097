"""Every law on a GPU, the native engine in both of its styles; one skip where there is none."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from judge import Case, assert_same_bits
from law import Law
from laws import LAWS
from laws_of_bits import all_bits
from metafast import _native
from metafast.engine import device
from problems import lowered
from row import Row
from rows import BY_NAME, ROWS

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device", allow_module_level=True)

STYLES = ("persistent", "batched")


@functools.cache
def obstacle(row: Row) -> str:
    """Why the device cannot run the row natively, or ""."""
    if row.by_torch:  # of which the device is given no more than a linear layer
        return ""
    program = lowered(row)
    return str(_native.device_obstacle(device.describe(_native, program)))


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def cases() -> Iterator[object]:
    for law in LAWS:
        for case in law.cases(ROWS, "cuda"):
            for style in STYLES if case.backend == "native" else ("",):
                kind = str(case.dtype).removeprefix("torch.")
                name = f"{law.name}-{case.row.name}-{kind}-{case.backend}{'-' * bool(style)}{style}"
                yield pytest.param(law, case, style, id=name)


@pytest.mark.parametrize(("law", "case", "style"), list(cases()))
def test_law(law: Law, case: Case, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if style:
        if why := obstacle(case.row):
            pytest.skip(why)
        monkeypatch.setenv("METAFAST_CUDA_STYLE", style)
    law.check(case)


@pytest.mark.parametrize("row", [row for row in ROWS if row.native], ids=str)
def test_only_the_program_decides_bits(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the style, not how many tasks are done at a time, not the run."""
    if why := obstacle(row):
        pytest.skip(why)
    case = Case(row, torch.float32, "cuda", "native")
    monkeypatch.setenv("METAFAST_CUDA_STYLE", "persistent")
    expected = all_bits(case, case.problem())
    assert_same_bits(all_bits(case, case.problem()), expected)
    monkeypatch.setenv("METAFAST_CUDA_STYLE", "batched")
    monkeypatch.setenv("METAFAST_CUDA_TASKS", "1")
    assert_same_bits(all_bits(case, case.problem()), expected)


def test_a_stream_of_the_users_gives_the_same_bits() -> None:
    case = Case(BY_NAME["option/tasks-3"], torch.float32, "cuda", "native")
    expected = all_bits(case, case.problem())
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        actual = all_bits(case, case.problem())
    stream.synchronize()
    assert_same_bits(actual, expected)
