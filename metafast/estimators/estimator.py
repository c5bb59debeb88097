"""What both engines ask of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

#: What the native engine is told when a Hessian-vector product is asked for instead.
HESSIAN_VECTOR = ("hessian_vector", 0)


class Estimator(ABC):
    """Which derivative of K inner steps is taken. What is not overridden is that of the exact one."""

    @property
    @abstractmethod
    def spec(self) -> tuple[str, int]:
        """What the native engine is told: the name in csrc/estimators/list.h, and its argument or 0."""

    def sweeps(self, k: int, steps: int) -> bool:
        """Whether the reverse sweep goes back through step k of ``steps``. Those that it goes through are the last."""
        return True

    def second_order(self, k: int, steps: int) -> bool:
        """Whether the gradient of step k of ``steps`` is differentiated; otherwise it is a constant."""
        return True


def whole(name: str, value: Any, least: int, otherwise: str = "") -> None:
    """Check that a setting is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number >= {least}{otherwise}; it is {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}{otherwise}; it is {value}")
