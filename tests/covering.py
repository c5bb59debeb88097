"""Covering arrays: few rows of options in which every pair of values of any two axes stands together at least once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

Value = TypeVar("Value")
#: Two axes, by number, and a value of each, by number.
Pair = tuple[int, int, int, int]


def pairs_of(row: Sequence[int]) -> set[Pair]:
    return {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)}


def covering(axes: Mapping[str, Sequence[Value]], seed: int = 0, candidates: int = 12) -> list[dict[str, Value]]:
    """Rows until every pair is covered: each the best of some that are filled greedily around an uncovered pair (Cohen
    et al., The AETG system, 1997)."""
    draw = random.Random(seed)
    sizes = [len(values) for values in axes.values()]
    missing = {
        (i, a, j, b) for i, j in combinations(range(len(sizes)), 2) for a in range(sizes[i]) for b in range(sizes[j])
    }

    def candidate() -> list[int]:
        i, a, j, b = draw.choice(ordered)
        row = [-1] * len(sizes)
        row[i], row[j] = a, b
        for axis in draw.sample(range(len(sizes)), len(sizes)):
            if row[axis] >= 0:
                continue
            gains = [(_gain(row, axis, value, missing), draw.random(), value) for value in range(sizes[axis])]
            row[axis] = max(gains)[2]
        return row

    rows = []
    while missing:
        ordered = sorted(missing)
        row = max((candidate() for _ in range(candidates)), key=lambda r: len(missing & pairs_of(r)))
        missing -= pairs_of(row)
        rows.append({name: values[at] for (name, values), at in zip(axes.items(), row, strict=True)})
    return rows


def _gain(row: Sequence[int], axis: int, value: int, missing: set[Pair]) -> int:
    """How many missing pairs the value makes with those that the row has."""
    met = ((i, a) for i, a in enumerate(row) if a >= 0)
    return sum(((i, a, axis, value) if i < axis else (axis, value, i, a)) in missing for i, a in met)
