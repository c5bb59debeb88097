"""The native module below the public names: the error of its elementary functions, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metafast import _native

#: Bounds in units in the last place; csrc/core/scalar.h states them.
ULPS = {"exp": 2, "expm1": 2, "tanh": 2.5, "sigmoid": 2.5, "log1p01": 2}


def inputs(name: str, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    if name == "log1p01":
        return np.concatenate([rng.uniform(0, 1, 100_000), np.geomspace(1e-30, 1, 1000)]).astype(dtype)
    reach = {np.float32: 87.0, np.float64: 708.0}[dtype]
    near = np.concatenate([sign * np.geomspace(1e-30, 1, 2000) for sign in (-1, 1)])
    return np.concatenate([rng.uniform(-reach, reach, 100_000), rng.uniform(-3, 3, 100_000), near]).astype(dtype)


def exact(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-x))
    return {"exp": np.exp, "expm1": np.expm1, "tanh": np.tanh, "log1p01": np.log1p}[name](x)


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
    }.items():
        np.testing.assert_array_equal(evaluate(name, x), np.array(want, dtype), err_msg=name)
    assert np.signbit(evaluate("tanh", np.array([-0.0, 0.0], dtype))).tolist() == [True, False]


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
