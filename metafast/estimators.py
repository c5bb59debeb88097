"""Which derivative of the unrolled inner loop a learner takes, and what it keeps of the steps on the way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exact:
    """The exact derivative through all K steps, second-order terms included (Finn et al. 2017)."""

    @property
    def spec(self) -> tuple[str, int]:
        """What the native engine is told."""
        return "exact", 0


@dataclass(frozen=True)
class FirstOrder:
    """Every inner gradient is taken for a constant (FOMAML; Finn et al. 2017, section 5.2).

    Hyper-parameters and the initial parameters keep the derivatives that do not go through inner gradients; that of
    support data is zero.
    """

    @property
    def spec(self) -> tuple[str, int]:
        return "first_order", 0


@dataclass(frozen=True)
class Truncated:
    """The derivative through the last ``steps`` inner steps alone (Shaban et al. 2019, truncated back-propagation).

    What stands before them is taken for the initial parameters: lambda_{K - steps} is the meta-gradient. States of the
    rule, hyper-parameters and data of earlier steps receive nothing. Memory grows with ``steps`` and not with K.
    """

    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps of Truncated must be a whole number >= 1; it is {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps of Truncated must be >= 1; it is {self.steps}")

    @property
    def spec(self) -> tuple[str, int]:
        return "truncated", self.steps


Estimator = Exact | FirstOrder | Truncated
#: What is told when a Hessian-vector product is asked for instead.
HESSIAN_VECTOR = ("hessian_vector", 0)


@dataclass(frozen=True)
class Checkpoint:
    """``memory=Checkpoint(every)``: keep parameters and states after every ``every`` steps, and make the steps between
    two checkpoints again when the reverse sweep comes to them (Griewank 1992). None: every sqrt(K) steps, so that
    memory grows as sqrt(K).

    The results have the same bits as those of ``"keep"``. On torch, which always keeps, it changes nothing.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is None:
            return
        if isinstance(self.every, bool) or not isinstance(self.every, int):
            raise TypeError(f"every of Checkpoint must be a whole number >= 1, or None; it is {self.every!r}")
        if self.every < 1:
            raise ValueError(f"every of Checkpoint must be >= 1, or None; it is {self.every}")
