"""Rules, estimators, memory and initial parameters: every pair of options against the oracle."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from judge import Tensors, assert_close, norm
from rule_cases import AXES, CASES, Case, by_metafast, by_oracle


def test_every_pair_of_options_stands_together() -> None:
    for a, b in combinations(AXES, 2):
        assert {(getattr(c, a), getattr(c, b)) for c in CASES} == {(x, y) for x in AXES[a] for y in AXES[b]}


def errors(found: Tensors, truth: Tensors) -> dict[str, float]:
    """Relative errors; of gradients that are nearly zero, relative to a thousandth of all."""
    scale = 1e-3 * norm(truth)
    return {n: norm({n: found[n].double() - v}) / (norm({n: v}) + scale) for n, v in truth.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_options_equal_the_oracle(case: Case) -> None:
    outputs, gradients = by_metafast(case)
    truth, slopes = by_oracle(case)
    if case.dtype == torch.float64:
        assert_close(outputs, truth)
        assert_close(gradients, slopes)
        return
    assert gradients.keys() == slopes.keys() and all(v.dtype == torch.float32 for v in gradients.values())
    single, slopes_single = by_oracle(case, torch.float32)
    for ours, theirs, right in ((outputs, single, truth), (gradients, slopes_single, slopes)):
        found, own = errors(ours, right), errors(theirs, right)
        worst = max(own.values())
        for name, error in found.items():
            assert error <= 4 * worst + 64 * torch.finfo(torch.float32).eps, f"{name}: {error:.3g}, torch's {worst:.3g}"
