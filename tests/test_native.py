"""The native module below the public names: the error of its elementary functions, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from metafast import _native
from metafast.call import Batch, Call
from metafast.engine import native
from metafast.model.lowering import lower
from small import mlp

#: Bounds in units in the last place; csrc/core/scalar.h states them.
ULPS = {"exp": 2, "expm1": 2, "log1p01": 2, "log": 2, "tanh": 2.5, "sigmoid": 2.5, "log1p": 2.5}
ULPS |= {"sin": 2, "cos": 2, "erf": 2}


def inputs(name: str, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    if name == "log1p01":
        return np.concatenate([rng.uniform(0, 1, 100_000), np.geomspace(1e-30, 1, 1000)]).astype(dtype)
    if name in ("log", "log1p"):
        ends = np.geomspace(1e-30, 1e30, 100_000)
        near = 1 + np.linspace(-0.5, 0.5, 100_001)
        return np.concatenate([ends, near, -near / 2]).astype(dtype)[: -100_001 if name == "log" else None]
    if name in ("sin", "cos"):
        turns = np.arange(-650_000, 650_000, 13) * (np.pi / 2)  # where they, or their slopes, vanish
        return np.concatenate([rng.uniform(-100, 100, 200_000), turns, np.geomspace(1e-30, 1e6, 9000)]).astype(dtype)
    if name == "erf":
        return np.concatenate([np.linspace(-5, 5, 400_001), np.geomspace(1e-30, 1, 2000)]).astype(dtype)
    reach = {np.float32: 87.0, np.float64: 708.0}[dtype]
    near = np.concatenate([sign * np.geomspace(1e-30, 1, 2000) for sign in (-1, 1)])
    return np.concatenate([rng.uniform(-reach, reach, 100_000), rng.uniform(-3, 3, 100_000), near]).astype(dtype)


def exact(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if name == "erf":
        return np.vectorize(math.erf, otypes=[np.longdouble])(x)  # type: ignore[no-any-return]
    return getattr(np, "log1p" if name == "log1p01" else name)(x)  # type: ignore[no-any-return]


def evaluate(name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    _native.elementary(name, x.dtype == np.float64, x.ctypes.data, y.ctypes.data, x.size)
    return y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ULPS)
def test_elementary_functions_err_by_few_ulps(name: str, dtype: type) -> None:
    x = inputs(name, dtype)
    want = exact(name, x)
    normal = np.abs(want) >= np.finfo(dtype).tiny
    error = np.abs(evaluate(name, x).astype(np.longdouble) - want)
    ulps = (error / np.spacing(np.abs(want.astype(dtype))).astype(np.longdouble))[normal]
    assert ulps.max() <= ULPS[name], f"{name}: {ulps.max()} ulp at {x[normal][ulps.argmax()]!r}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elementary_functions_at_the_ends(dtype: type) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0], dtype)
    nan, one, zero = np.nan, 1.0, 0.0
    for name, want in {
        "exp": [nan, np.inf, zero, one],
        "expm1": [nan, np.inf, -one, zero],
        "tanh": [nan, one, -one, zero],
        "sigmoid": [nan, one, zero, 0.5],
        "log": [nan, np.inf, nan, -np.inf],
        "log1p": [nan, np.inf, nan, zero],
        "sin": [nan, nan, nan, zero],
        "cos": [nan, nan, nan, one],
        "erf": [nan, one, -one, zero],
    }.items():
        np.testing.assert_array_equal(evaluate(name, x), np.array(want, dtype), err_msg=name)
    assert np.signbit(evaluate("tanh", np.array([-0.0, 0.0], dtype))).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms_below_the_normal_numbers_and_of_negative_ones(dtype: type) -> None:
    x = np.array([np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny / 3], dtype)
    np.testing.assert_allclose(evaluate("log", x), np.log(x.astype(np.longdouble)), rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(evaluate("log", np.array([-1e-30, -1.0], dtype))).all()
    assert evaluate("log1p", np.array([-1.0, -2.0], dtype)).tolist()[0] == -np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sines_beyond_their_stated_range_err_like_the_angle(dtype: type) -> None:
    x = np.geomspace(1e6, 1e14, 50_000).astype(dtype)
    for name in ("sin", "cos"):
        error = np.abs(evaluate(name, x).astype(np.longdouble) - exact(name, x))
        assert (error <= x.astype(np.longdouble) * 2.0**-53 + 2 * np.finfo(dtype).eps).all(), name
    assert (np.abs(evaluate("sin", np.array([1e30, -1e38], dtype))) <= 1).all()


def linear(values: list[list[int]], inputs: list[int], parameters: list[int]) -> _native.Program:
    weights = [([2, 3], "adapted"), ([2], "adapted")]
    return _native.Program(values, weights, [("linear", inputs, 1, parameters, {}, [], [])], "mse", {}, "weighted_mean")


def test_a_program_that_fits_together_is_accepted() -> None:
    linear([[3], [2]], [0], [0, 1])


@pytest.mark.parametrize(
    ("values", "inputs", "parameters", "message"),
    [
        ([[3], [4]], [0], [0, 1], "wrong size"),
        ([[5], [2]], [0], [0, 1], "wrong size"),
        ([[3], [2]], [1], [0, 1], "no earlier node"),
        ([[3], [2]], [7], [0, 1], "no earlier node"),
        ([[3], [2]], [0], [0, 9], "out of range"),
        ([[3], [2]], [0, 0], [0, 1], "number of inputs"),
        ([[3], []], [0], [0, 1], "dimensions"),
        ([[3], [0]], [0], [0, 1], "empty"),
    ],
)
def test_a_program_that_does_not_is_refused(
    values: list[list[int]], inputs: list[int], parameters: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        linear(values, inputs, parameters)


def test_what_was_built_is_told() -> None:
    info = _native.build_info()
    assert info["isa"] in info["isas"] and torch.__version__


def test_a_workspace_that_is_not_kept_lives_as_long_as_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []

    class Watched(native.Workspace):
        def __del__(self) -> None:
            freed.append(self.bytes)

    monkeypatch.setattr(native, "Workspace", Watched)
    monkeypatch.setattr(native, "KEEP_WORKSPACE_BYTES", 0)
    monkeypatch.setattr(native._thread, "workspace", None, raising=False)  # what an earlier call left
    model = mlp()
    program, x = lower(model, (4,), dtype=torch.float64), torch.randn(1, 3, 4).double()
    run = native.run(program, Call([*model.parameters()], (), None, Batch(x, None, None))).run
    session = run.prepared.session

    class Session:
        def run(self, tensors: Sequence[Tensor], address: int) -> list[Tensor]:
            assert not freed
            return session.run(tensors, address)

    freed.clear()
    run.prepared.session = Session()
    run.prepared.run([*run.inputs.values()])
    assert freed == [session.bytes]
