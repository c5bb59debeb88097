"""Whether a rival's result is the exact one, before anybody looks at how long it took."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.rivals import Forms, loop
from benchmarks.workloads import HESSIAN_VECTOR, LEARNT, Workload

Vector = np.ndarray[Any, np.dtype[np.float64]]

#: float64 results agree to this relative error, whatever the network: L2, all parameters as one vector and learnt rates
#: as another.
EXACT = 1e-9
#: A float32 result may be this much of the way to the result of the other order. A rounding that flips a ReLU or a
#: max-pool moves it further than rounding elsewhere, which is why float64 decides about the formula.
NEAR = 0.25
#: The rival that the judge goes by.
LOOP = "torch loop"
#: Hessian-vector products have no other order to compare with.
CLOSE = 1e-2


class Wrong(Exception):
    """A result that is not the exact one."""


class Judge:
    """Holds the results of the float64 loop over tasks for one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.exact = _loop(workload)
        #: Relative distance to the result of the other order, which leaves out (or adds) the second-order term; of the
        #: parameters' gradients and, where rates are learnt, of theirs.
        self.terms: tuple[float, ...] = ()
        if workload.kind != HESSIAN_VECTOR:
            other = _loop(replace(workload, first_order=not workload.first_order))
            self.terms = tuple(map(distance, other, self.exact))
            if not min(self.terms) > 1e-3:
                raise Wrong(f"{workload.name} cannot tell first from second order: {min(self.terms):.1e} apart")

    @property
    def second_order_term(self) -> float | None:
        return self.terms[0] if self.terms else None

    def single(self, result: Sequence[Any]) -> float:
        """The float32 result's error; Wrong if it is not near, or lacks the second-order term."""
        limits = [NEAR * min(1.0, term) for term in self.terms] or [CLOSE]
        errors = self._errors(result)
        for error, limit in zip(errors, limits, strict=True):
            if not error <= limit:
                raise Wrong(f"float32 result is off by {error:.1e}, more than {limit:.1e}")
        return max(errors)

    def double(self, result: Sequence[Any]) -> float:
        """The float64 result's error; Wrong if it is more than rounding."""
        errors = self._errors(result)
        for error in errors:
            if not error <= EXACT:
                raise Wrong(f"float64 result is off by {error:.1e}")
        return max(errors)

    def _errors(self, result: Sequence[Any]) -> list[float]:
        return list(map(distance, vectors(self.workload, result), self.exact))

    def is_judged_by(self, rival: str) -> bool:
        """Whether the rival's float64 result is this judge's own, so that comparing them would say nothing."""
        return rival == LOOP and self.workload.tasks <= self.workload.distinct


def vectors(workload: Workload, result: Sequence[Any]) -> list[Vector]:
    """The gradients of all parameters as one vector and, where rates are learnt, theirs as another."""
    if workload.rates != LEARNT:
        return [vector(result)]
    half = len(result) // 2
    return [vector(result[:half]), vector(result[half:])]


def vector(result: Sequence[Any]) -> Vector:
    """Arrays of torch, NumPy or JAX, as one float64 vector."""
    arrays = [part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part) for part in result]
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays])


def distance(a: Vector, b: Vector) -> float:
    """|a - b| / |b|."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _loop(workload: Workload) -> list[Vector]:
    """The loop's float64 result; tasks that only repeat earlier ones are left out, for they do not change the mean."""
    return _loop_of(replace(workload, name="", title="", tasks=workload.distinct))


@functools.cache  # both orders judge W3 and its first order, and some sizes of W6 are the same
def _loop_of(workload: Workload) -> list[Vector]:
    problem = workload.problem(torch.float64)
    forms: Forms = loop.hessian_vector(problem) if workload.kind == HESSIAN_VECTOR else loop.meta_gradient(problem)
    return vectors(workload, forms[""]())
