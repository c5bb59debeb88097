"""Between the exact derivative and that of first order."""

from __future__ import annotations

from dataclasses import dataclass

from metafast.estimators.estimator import Estimator, whole


@dataclass(frozen=True)
class Annealed(Estimator):
    """Exact through the last ``steps`` inner steps; before them every inner gradient is taken for a constant.

    lambda goes back through all K steps, by the rule's own derivative alone where gradients are constants. 0 steps are
    :class:`metafast.FirstOrder`, K or more :class:`metafast.Exact`. Raising ``steps`` from 0 to K during training is
    the derivative-order annealing of MAML++ (Antoniou et al. 2019, section 4), step by step. A reverse step without
    second-order terms costs next to nothing.
    """

    steps: int

    def __post_init__(self) -> None:
        whole("steps of Annealed", self.steps, 0)

    @property
    def spec(self) -> tuple[str, int]:
        return "annealed", self.steps

    def second_order(self, k: int, steps: int) -> bool:
        return k >= steps - self.steps
