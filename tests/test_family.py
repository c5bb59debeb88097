"""Families of functions: what is drawn, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from metafast.tasks import VALIDATION, RegressionFamily, generator


def plane(x, slope, offset):
    return (x * slope).sum(-1, keepdim=True) + offset


def normal(shape, generator):
    return torch.randn(*shape, 1, 2, generator=generator)


PLANES = RegressionFamily(
    plane, {"slope": normal, "offset": (2.0, 3.0)}, [(0.0, 1.0), (-4.0, -2.0)], shots=3, queries=5, chunk=4
)


def test_tasks_of_several_inputs():
    (xs, ys), (xq, yq) = PLANES.sample(50, generator(0))
    assert (xs.shape, ys.shape, xq.shape, yq.shape) == ((50, 3, 2), (50, 3, 1), (50, 5, 2), (50, 5, 1))
    assert xs[..., 0].min() >= 0 and xs[..., 0].max() <= 1 and xs[..., 1].min() >= -4 and xs[..., 1].max() <= -2
    # A task is one plane: the three numbers that fit its support points fit its query points, and the last is offset.
    ones = torch.ones(50, 3, 1).double()
    fitted = torch.linalg.solve(torch.cat([xs.double(), ones], -1), ys.double())
    conditions = torch.linalg.cond(torch.cat([xs.double(), ones], -1))
    error = (torch.cat([xq.double(), torch.ones(50, 5, 1)], -1) @ fitted - yq).abs().amax((1, 2))
    assert (error < 1e-5 * conditions).all()
    assert (fitted[conditions < 100, 2] > 1.9).all() and (fitted[conditions < 100, 2] < 3.1).all()


def test_points_drawn_by_the_user():
    def integers(shape, generator):
        return torch.randint(0, 9, (*shape, 1), generator=generator).double()

    tasks = RegressionFamily(lambda x: x**2, {}, integers, shots=2, queries=2)
    (xs, ys), _ = tasks.sample(20, generator(0))
    assert xs.dtype == torch.float64 and torch.equal(ys, xs**2) and set(xs.unique().tolist()) <= set(range(9))


def test_noise_has_its_deviation():
    tasks = RegressionFamily(lambda x: 0 * x, {}, (0.0, 1.0), shots=100, queries=1, noise=0.5)
    y = tasks.sample(1000, generator(0)).support[1]
    assert abs(y.mean()) < 5 * 0.5 / math.sqrt(y.numel())
    assert abs(y.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * y.numel())


def test_a_stream_starts_anywhere():
    stream = PLANES.stream(6, seed=5, stream=VALIDATION)
    whole = [next(stream) for _ in range(10)]
    for start in (0, 3, 4, 9):
        again = next(PLANES.stream(6, seed=5, stream=VALIDATION, start=start))
        assert all(
            torch.equal(a, b) for p, q in zip(whole[start], again, strict=True) for a, b in zip(p, q, strict=True)
        )
    assert len({float(episode.support[0].sum()) for episode in whole}) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": lambda x, a: x.sum((-1, -2))}, r"function: expected .* beginning with \[2, 20\] .*, got \[2\]"),
        ({"parameters": {"a": (2.0, 1.0)}}, r"a: expected \(low, high\) with low <= high, .* got \(2\.0, 1\.0\)"),
        ({"parameters": {"a": 1.0}}, r"a: expected \(low, high\)"),
        ({"x": (1.0,)}, r"x: expected \(low, high\)"),
        ({"x": lambda shape, generator: torch.zeros(3, 1)}, r"x: expected .* beginning with \[2, 20\], got \[3, 1\]"),
        ({"noise": -1.0}, "noise: expected a standard deviation >= 0, got -1.0"),
        ({"shots": 0}, "shots: expected a whole number of at least 1"),
        ({"chunk": 0}, "chunk: expected a whole number of at least 1"),
    ],
)
def test_unfit_families_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        family = RegressionFamily(
            **{"function": lambda x, a: a * x, "parameters": {"a": (0, 1)}, "x": (0, 1)} | settings
        )
        family.sample(2, generator(0))
