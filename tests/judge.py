"""How a learner is run, how the oracle is run, and how their results are compared.

Gradients are compared as vectors, by relative L2 distance, in the same floating point numbers: a tolerance is never an
excuse for a formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import metafast as mf
import oracle
from problems import Problem, make
from row import Row

Tensors = dict[str, Tensor]

#: float64 against float64: what remains is rounding, amplified by at most a few thousand.
EXACT = 1e-9
#: What a gradient that is zero in exact arithmetic (a bias in front of a norm) may hold, relative to all gradients.
NOISE = 1e-13


@dataclass(frozen=True)
class Case:
    row: Row
    dtype: torch.dtype
    device: str
    backend: str

    def problem(self, seed: int = 0) -> Problem:
        return make(self.row, self.dtype, seed, self.device)


# --------------------------------------------------------------------------------------------------------- comparing


def home(tensors: Tensors) -> Tensors:
    """The same values on the CPU, where all of them are compared."""
    return {name: value.detach().cpu() for name, value in tensors.items()}


def norm(tensors: Tensors) -> float:
    return float(torch.cat([value.double().flatten() for value in home(tensors).values()] or [torch.zeros(1)]).norm())


def assert_close(actual: Tensors, expected: Tensors, tolerance: float = EXACT) -> None:
    """Each tensor as a vector: |a - e| <= tolerance |e|, and rounding noise where e is zero."""
    actual, expected = home(actual), home(expected)
    assert actual.keys() == expected.keys()
    noise = NOISE * norm(expected)
    for name, value in expected.items():
        assert actual[name].shape == value.shape, f"{name}: shape {tuple(actual[name].shape)}, not {tuple(value.shape)}"
        assert actual[name].dtype == value.dtype, f"{name}: {actual[name].dtype}, not {value.dtype}"
        error = norm({name: actual[name] - value})
        limit = tolerance * norm({name: value}) + noise
        assert error <= limit, f"{name}: off by {error:.3g} of {norm({name: value}):.3g}, where {limit:.3g} is allowed"


def assert_same_bits(actual: Tensors, expected: Tensors) -> None:
    actual, expected = home(actual), home(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(torch.nan_to_num(actual[name], 7.0), torch.nan_to_num(value, 7.0))
        assert same, f"{name}: differs by up to {(actual[name] - value).abs().max():.3g} where the bits must be equal"


# ------------------------------------------------------------------------------------------------ running either side


def learner(case: Case, problem: Problem, **options: Any) -> mf.MAML:
    row = case.row
    settings = dict(lr=row.lr, steps=row.steps, loss=row.loss, first_order=row.first_order, backend=case.backend)
    settings |= dict(adapt_params=row.adapt_params, reduction=row.reduction)
    return mf.MAML(problem.model, **{**settings, **options})


def flat(loss: Tensor, task_loss: Tensor, logits: Any, support_loss: Tensor, adapted: Tensors) -> Tensors:
    outputs = dict(loss=loss, task_loss=task_loss, **oracle.named("logits", logits), support_loss=support_loss)
    return outputs | {f"adapted.{name}": value for name, value in adapted.items()}


def forward(case: Case, problem: Problem, **options: Any) -> Tensors:
    """What the learner's forward returns."""
    call = dict(stepwise=case.row.stepwise, lr=problem.lr)
    out = learner(case, problem, **options)(problem.support, problem.query, **call)
    return flat(out.loss, out.task_loss, out.logits, out.support_loss, {})


def adapt(case: Case, problem: Problem, **options: Any) -> Tensors:
    """What the learner's adapt returns."""
    call = dict(stepwise=case.row.stepwise, lr=problem.lr)
    adapted = learner(case, problem, **options).adapt(problem.support, **call)
    names = oracle.adapted_names(problem.model, case.row.adapt_params)
    return {f"adapted.{name}": adapted[name] for name in names}


def run(case: Case, problem: Problem, **options: Any) -> Tensors:
    return forward(case, problem, **options) | adapt(case, problem, **options)


def run_oracle(row: Row, problem: Problem, **options: Any) -> Tensors:
    settings = dict(lr=problem.lr, steps=row.steps, adapt_params=row.adapt_params, first_order=row.first_order)
    settings |= dict(stepwise=row.stepwise, reduction=row.reduction)
    return flat(*oracle.unroll(problem.model, row.loss, problem.support, problem.query, **{**settings, **options}))


# ----------------------------------------------------------------------------------------------------------- gradients

#: Which outputs a cotangent is put on. "loss" is the case that costs one native call (the eager sweep); the others run
#: the sweep in backward (the deferred sweep).
COTANGENTS = ("loss", "task_loss", "logits", "adapted", "together")


def cotangents(outputs: Tensors, kind: str) -> Tensors:
    """Random cotangents (ones for the loss itself) for the outputs that ``kind`` names."""
    logits, adapted = (tuple(part(outputs, prefix)) for prefix in ("logits", "adapted."))
    chosen = {"together": ("loss", "task_loss", *logits), "logits": logits, "adapted": adapted}.get(kind, (kind,))
    random = torch.Generator().manual_seed(len(kind))
    ones = torch.ones_like(outputs["loss"]) if "loss" in outputs else None
    draw = {n: torch.randn(outputs[n].shape, generator=random).to(outputs[n]) for n in chosen if n != "loss"}
    return draw | ({"loss": ones} if "loss" in chosen else {})


def pull_back(outputs: Tensors, leaves: Tensors, cotangent: Tensors, **options: Any) -> Tensors:
    """The gradient of sum_i <cotangent_i, output_i> for every leaf; zero where a leaf has no part in it."""
    used = [name for name in cotangent if outputs[name].requires_grad]
    values, seeds = [outputs[name] for name in used], [cotangent[name] for name in used]
    if not used:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(values, list(leaves.values()), seeds, materialize_grads=True, **options)
    return dict(zip(leaves, gradients, strict=True))


def gradients(outputs: Tensors, problem: Problem, kind: str = "loss", **options: Any) -> Tensors:
    return pull_back(outputs, problem.leaves, cotangents(outputs, kind), **options)


@cache
def truth(row: Row, seed: int = 0, kinds: tuple[str, ...] = COTANGENTS) -> tuple[Tensors, dict[str, Tensors]]:
    """The oracle's outputs, and its gradients for each kind of cotangent, in float64."""
    problem = make(row, torch.float64, seed)
    outputs = run_oracle(row, problem)
    pulled = {kind: gradients(outputs, problem, kind, retain_graph=True) for kind in kinds}
    return {name: value.detach() for name, value in outputs.items()}, pulled


def part(tensors: Tensors, *prefixes: str) -> Tensors:
    return {name: value for name, value in tensors.items() if name.startswith(prefixes)}
