"""The derivative of MAML."""

from __future__ import annotations

from dataclasses import dataclass

from metafast.estimators.estimator import Estimator


@dataclass(frozen=True)
class Exact(Estimator):
    """The exact derivative through all K steps, second-order terms included (Finn et al. 2017)."""

    @property
    def spec(self) -> tuple[str, int]:
        return "exact", 0
