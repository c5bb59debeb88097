"""The derivative of first-order MAML."""

from __future__ import annotations

from dataclasses import dataclass

from metafast.estimators.estimator import Estimator


@dataclass(frozen=True)
class FirstOrder(Estimator):
    """Every inner gradient is taken for a constant (FOMAML; Finn et al. 2017, section 5.2).

    Hyper-parameters and the initial parameters keep the derivatives that do not go through inner gradients; that of
    support data is zero.
    """

    @property
    def spec(self) -> tuple[str, int]:
        return "first_order", 0

    def second_order(self, k: int, steps: int) -> bool:
        return False
