"""The contestants: one module each, all computing the same gradient of the same :class:`~benchmarks.workloads.Problem`.

A module defines ``meta_gradient(problem)`` and, where it has one, ``hessian_vector(problem)``. Each returns its forms:
name -> step, a function of no arguments that computes the result once, completely, and returns it as arrays in the
order of ``problem.parameters``: d loss / d parameter [*shape], or H_t v_t [T, *shape]; behind them, where rates are
learnt, d loss / d rate [*shape] in the order of ``problem.rates``. Where there are several forms the fastest is the one
that counts. Preparation is not timed. :class:`Unable` says why there is no answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.workloads import HESSIAN_VECTOR, Problem

Step = Callable[[], Sequence[Any]]
Forms = dict[str, Step]

#: Name in the table -> module here. The first is the one that all others are compared with.
RIVALS = {
    "metafast": "metafast",
    "metafast autograd": "metafast_autograd",
    "torch loop": "loop",
    "learn2learn": "learn2learn",
    "higher": "higher",
    "torchopt": "torchopt",
    "torch.func": "torch_func",
    "torch.compile": "torch_compile",
    "jax": "jax",
}
OURS = "metafast"
#: JAX's forms of a long inner loop.
SCANNED, SEGMENTED = "scanned", "checkpoints of 40 steps"
#: Those whose module here can leave parameters out of the inner loop.
PARTIAL = (OURS, "metafast autograd", "torch loop")


def chosen(names: Sequence[str]) -> list[str]:
    """Rivals by name, in the table's order; ValueError for others. metafast itself always runs."""
    if unknown := [name for name in names if name not in RIVALS]:
        raise ValueError(f"no rival {', '.join(unknown)}; there are {', '.join(RIVALS)}")
    return [name for name in RIVALS if name in names and name != OURS]


class Unable(Exception):
    """The rival is not installed, or cannot do this workload; the message says which."""


def prepare(rival: str, problem: Problem) -> Forms:
    """The rival's forms of this problem, ready to run; Unable."""
    try:
        module = importlib.import_module(f"benchmarks.rivals.{RIVALS[rival]}")
    except ImportError as error:
        raise Unable(f"not installed ({error})") from None
    if problem.workload.adapts != "*" and rival not in PARTIAL:
        raise Unable("its form here moves every parameter")
    name = "hessian_vector" if problem.workload.kind == HESSIAN_VECTOR else "meta_gradient"
    function = getattr(module, name, None)
    if function is None:
        raise Unable(f"has no {problem.workload.kind} of its own")
    forms: Forms = function(problem)
    return forms
