"""What is kept of the inner steps for the reverse sweep."""

from __future__ import annotations

from dataclasses import dataclass

from metafast.estimators.estimator import whole


@dataclass(frozen=True)
class Checkpoint:
    """``memory=Checkpoint(every)``: keep parameters and states after every ``every`` steps, and make the steps between
    two checkpoints again when the reverse sweep comes to them (Griewank 1992). None: every sqrt(K) steps, so that
    memory grows as sqrt(K).

    The results have the same bits as those of ``"keep"``. On torch, which always keeps, it changes nothing.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            whole("every of Checkpoint", self.every, 1, ", or None")
