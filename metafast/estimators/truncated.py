"""Truncated back-propagation."""

from __future__ import annotations

from dataclasses import dataclass

from metafast.estimators.estimator import Estimator, whole


@dataclass(frozen=True)
class Truncated(Estimator):
    """The derivative through the last ``steps`` inner steps alone (Shaban et al. 2019, truncated back-propagation).

    What stands before them is taken for the initial parameters: lambda_{K - steps} is the meta-gradient. States of the
    rule, hyper-parameters and data of earlier steps receive nothing. Memory grows with ``steps`` and not with K.
    """

    steps: int

    def __post_init__(self) -> None:
        whole("steps of Truncated", self.steps, 1)

    @property
    def spec(self) -> tuple[str, int]:
        return "truncated", self.steps

    def sweeps(self, k: int, steps: int) -> bool:
        return k >= steps - self.steps
