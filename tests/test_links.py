"""A link's adjoint is the transposed Jacobian of its step (csrc/rules), on random elements: what is written by hand,
dual numbers, and central differences of the step itself."""

from __future__ import annotations

import math
import random

import pytest

from metafast._native import link_bars, link_step, links

#: Of elements: those that scale a whole gradient are judged by the laws of rules.
LINKS = {name: (states, hypers) for name, (states, hypers, scales) in links().items() if not scales}
FLAGS = range(4)
STEPS = (0, 1, 7)


def numbers(link: str, draw: random.Random) -> tuple[list[float], list[float], list[float]]:
    """Hyper-parameters, an element and bars. Second moments are positive, and nothing is near a kink."""
    states, hypers = LINKS[link]
    element = [draw.gauss(0, 1) for _ in range(3)] + [0.5 + draw.random() for _ in range(states)]
    return [draw.uniform(0.1, 0.9) for _ in range(hypers)], element, [draw.gauss(0, 1) for _ in range(3 + states)]


def distance(a: list[float], b: list[float]) -> float:
    return math.hypot(*(x - y for x, y in zip(a, b, strict=True))) / (1 + max(map(abs, b)))


@pytest.mark.parametrize("k", STEPS)
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("link", LINKS)
def test_the_adjoint_by_hand_is_that_of_dual_numbers(link: str, flags: int, k: int) -> None:
    draw = random.Random(17)
    for _ in range(50):
        hypers, element, bars = numbers(link, draw)
        by_hand = link_bars(link, flags, k, hypers, element, bars, False)
        assert distance(by_hand, link_bars(link, flags, k, hypers, element, bars, True)) < 1e-14


#: Detached derivatives are no derivatives of the step.
DETACHED = {("adam", 2), ("adam", 3), ("amsgrad", 2), ("amsgrad", 3)}


@pytest.mark.parametrize("k", STEPS)
@pytest.mark.parametrize(("link", "flags"), [(x, f) for x in LINKS for f in FLAGS if (x, f) not in DETACHED])
def test_dual_numbers_are_the_jacobian(link: str, flags: int, k: int) -> None:
    draw = random.Random(3)
    for _ in range(20):
        hypers, element, bars = numbers(link, draw)
        found = link_bars(link, flags, k, hypers, element, bars, True)
        inputs = element + hypers

        def pairing(values: list[float], n: int = len(element), bars: list[float] = bars) -> float:
            """<bars, what the step leaves>; theta_0 is passed on unchanged, so its bar is among them."""
            return sum(b * v for b, v in zip(bars, link_step(link, flags, k, values[n:], values[:n]), strict=True))

        step = 1e-6
        truth = []
        for i in range(len(inputs)):
            above, below = ([v + d * (i == j) for j, v in enumerate(inputs)] for d in (step, -step))
            truth.append((pairing(above) - pairing(below)) / (2 * step))
        assert distance(found, truth) < 3e-8


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("link", ["adam", "amsgrad"])
def test_adam_has_finite_derivatives_where_all_gradients_were_zero(link: str, flags: int) -> None:
    states, _ = LINKS[link]
    for eps in (1e-8, 0.0):
        hypers = [0.1, 0.9, 0.99, eps, 0.0]
        element = [0.5, 0.0, 0.5, *[0.0] * states]
        assert link_step(link, flags, 0, hypers, element)[0] == 0.5
        for by_duals in (False, True):
            bars = link_bars(link, flags, 0, hypers, element, [1.0] * (3 + states), by_duals)
            assert all(abs(bar) < 1e9 for bar in bars), bars
