"""Whether a rival's result is the exact one, before anybody looks at how long it took."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.rivals import Forms, loop
from benchmarks.workloads import DISTINCT_TASKS, HESSIAN_VECTOR, Workload

Vector = np.ndarray[Any, np.dtype[np.float64]]

#: float64 results agree to this relative error (L2, all parameters as one vector), whatever the network.
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
        #: Relative distance to the result of the other order, which leaves out (or adds) the second-order term.
        self.second_order_term: float | None = None
        if workload.kind != HESSIAN_VECTOR:
            other = _loop(replace(workload, first_order=not workload.first_order))
            self.second_order_term = distance(other, self.exact)
            if not self.second_order_term > 1e-3:
                raise Wrong(f"{workload.name} cannot tell first from second order: {self.second_order_term:.1e} apart")

    def single(self, result: Sequence[Any]) -> float:
        """The float32 result's error; Wrong if it is not near, or lacks the second-order term."""
        error = distance(vector(result), self.exact)
        limit = CLOSE if self.second_order_term is None else NEAR * min(1.0, self.second_order_term)
        if not error <= limit:
            raise Wrong(f"float32 result is off by {error:.1e}, more than {limit:.1e}")
        return error

    def double(self, result: Sequence[Any]) -> float:
        """The float64 result's error; Wrong if it is more than rounding."""
        error = distance(vector(result), self.exact)
        if not error <= EXACT:
            raise Wrong(f"float64 result is off by {error:.1e}")
        return error

    def is_judged_by(self, rival: str) -> bool:
        """Whether the rival's float64 result is this judge's own, so that comparing them would say nothing."""
        return rival == LOOP and self.workload.tasks <= DISTINCT_TASKS


def vector(result: Sequence[Any]) -> Vector:
    """Arrays of torch, NumPy or JAX, as one float64 vector."""
    arrays = [part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part) for part in result]
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays])


def distance(a: Vector, b: Vector) -> float:
    """|a - b| / |b|."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _loop(workload: Workload) -> Vector:
    """The loop's float64 result; tasks that only repeat earlier ones are left out, for they do not change the mean."""
    return _loop_of(replace(workload, name="", title="", tasks=min(workload.tasks, DISTINCT_TASKS)))


@functools.cache  # both orders judge W3 and its first order, and some sizes of W6 are the same
def _loop_of(workload: Workload) -> Vector:
    problem = workload.problem(torch.float64)
    forms: Forms = loop.hessian_vector(problem) if workload.kind == HESSIAN_VECTOR else loop.meta_gradient(problem)
    return vector(forms[""]())
