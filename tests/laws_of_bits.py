"""Laws of the one list (laws.py) about what may not change a result: threads, other tasks, strides, a NaN elsewhere."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

import oracle
from judge import Case, Tensors, assert_close, assert_same_bits, forward, gradients, part, pull_back, run, run_oracle
from law import EITHER, Law, joining
from problems import Problem

LAWS_OF_BITS: list[Law] = []
law = joining(LAWS_OF_BITS)

# -------------------------------------------------------------------------------------------------- laws: determinism


def all_bits(case: Case, problem: Problem) -> Tensors:
    """Outputs and gradients of both sweeps."""
    out = run(case, problem)
    kinds = ("loss", "together", "adapted")
    pulled = {kind: gradients(out, problem, kind, retain_graph=True) for kind in kinds}
    return out | {f"{kind}:{name}": value for kind in kinds for name, value in pulled[kind].items()}


@law(lambda row: not row.by_torch, dtypes=EITHER)
def threads_do_not_change_bits(case: Case) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = all_bits(case, case.problem())
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same_bits(all_bits(case, case.problem()), expected)
    finally:
        torch.set_num_threads(threads)


def take(problem: Problem, tasks: list[int]) -> Problem:
    """The problem of these tasks only, in this order."""
    chosen = copy.copy(problem)
    chosen.support, chosen.query = (
        tuple(
            oracle.each(part, lambda tensor: tensor.detach()[tasks].requires_grad_(tensor.requires_grad))
            for part in batch
        )
        for batch in (problem.support, problem.query)
    )
    return chosen


PER_TASK = ("task_loss", "logits", "support_loss", "adapted.")


@law(lambda row: row.tasks > 1, dtypes=EITHER)
def tasks_at_once_equal_tasks_one_by_one(case: Case) -> None:
    """Bit for bit, in outputs and in the gradient that each task contributes."""
    problem = case.problem()
    together = run(case, problem)
    for task in range(case.row.tasks):
        single = take(problem, [task])
        alone = run(case, single)
        assert_same_bits(
            {n: v[0] for n, v in part(alone, *PER_TASK).items()},
            {n: v[task] for n, v in part(together, *PER_TASK).items()},
        )
        pick = torch.nn.functional.one_hot(torch.tensor(task), case.row.tasks).to(together["task_loss"])
        of_many = pull_back(together, problem.leaves, {"task_loss": pick}, retain_graph=True)
        of_one = pull_back(alone, single.leaves, {"task_loss": pick.new_ones(1)}, retain_graph=True)
        shared = tuple(name for name in of_one if name.startswith(("model.", "lr")))
        assert_same_bits({name: of_many[name] for name in shared}, {name: of_one[name] for name in shared})
        data = [name for name in of_one if name not in shared]
        assert_same_bits({name: of_many[name][task] for name in data}, {name: of_one[name][0] for name in data})


@law(lambda row: row.tasks > 1)
def place_among_tasks_does_not_matter(case: Case) -> None:
    problem = case.problem()
    backwards = list(reversed(range(case.row.tasks)))
    reordered = take(problem, backwards)
    expected, actual = run(case, problem), run(case, reordered)
    assert_same_bits({n: v[backwards] for n, v in part(actual, *PER_TASK).items()}, part(expected, *PER_TASK))
    data = ("xs", "ys", "ws", "xq", "yq", "wq")
    assert_same_bits(
        {name: value[backwards] for name, value in part(gradients(actual, reordered), *data).items()},
        part(gradients(expected, problem), *data),
    )


# -------------------------------------------------------------------------------------------------- laws: awkward data


def awkward(tensor: Tensor) -> Tensor:
    """The same values, seen through strides that no kernel expects: last axis outermost, and every second element."""
    holder = tensor.new_zeros(*reversed(tensor.shape), 2)
    view = holder[..., 0].permute(list(reversed(range(tensor.dim()))))
    view.copy_(tensor.detach())
    return view.detach().requires_grad_(tensor.requires_grad)


@law(lambda row: not row.by_torch, dtypes=EITHER)
def strides_do_not_matter(case: Case) -> None:
    assert_same_bits(*at_other_strides(case))


@law(lambda row: row.by_torch)
def strides_matter_to_rounding_alone(case: Case) -> None:
    """torch multiplies other layouts in another order."""
    assert_close(*at_other_strides(case), tolerance=1e-12)


def at_other_strides(case: Case) -> tuple[Tensors, Tensors]:
    problem, strided = case.problem(), case.problem()
    strided.support, strided.query = (
        tuple(oracle.each(part, awkward) for part in batch) for batch in (strided.support, strided.query)
    )
    strided.lr = {n: awkward(v) for n, v in strided.lr.items()} if isinstance(strided.lr, dict) else awkward(strided.lr)
    for parameter in strided.model.parameters():
        parameter.data = awkward(parameter.data)
    return all_bits(case, strided), all_bits(case, problem)


def clone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


@law(lambda row: row.tasks > 1)
def expanded_inputs_are_right(case: Case) -> None:
    """One task's data, expanded over tasks without a copy; and the stride-0 cotangents that sum().backward() makes."""
    problem = case.problem()
    expanded, copied = copy.copy(problem), copy.copy(problem)
    for batch in ("support", "query"):

        def view(tensor: Tensor) -> Tensor:
            value = tensor.detach()[:1].expand(case.row.tasks, *tensor.shape[1:])
            return value.requires_grad_(value.is_floating_point())

        views = [oracle.each(part, view) for part in getattr(problem, batch)]
        setattr(expanded, batch, tuple(views))
        setattr(copied, batch, tuple(oracle.each(part, clone) for part in views))
    first, second = forward(case, expanded), forward(case, copied)
    assert_same_bits(first, second)
    seeds = {name: torch.ones_like(value) for name, value in part(second, "logits").items()}
    stretched = {name: seed.new_ones(()).expand(seed.shape) for name, seed in seeds.items()}
    actual = pull_back(first, expanded.leaves, stretched)
    assert_same_bits(actual, pull_back(second, copied.leaves, seeds))


@law(lambda row: row.tasks > 1 and not row.vocabulary and any(not kind for _, kind in row.inputs or [((), 0)]))
def nan_stays_in_its_task(case: Case) -> None:
    clean, spoilt = case.problem(), case.problem()
    with torch.no_grad():
        for batch in (spoilt.support, spoilt.query):
            real = next(x for x in (batch[0] if case.row.inputs else batch[:1]) if x.is_floating_point())
            real[1, ..., 0] = float("nan")
    expected, actual = run(case, clean), run(case, spoilt)
    others = [task for task in range(case.row.tasks) if task != 1]
    assert_same_bits(
        {name: value[others] for name, value in part(actual, *PER_TASK).items()},
        {name: value[others] for name, value in part(expected, *PER_TASK).items()},
    )
    assert actual["loss"].isnan()
    assert actual["task_loss"][1].isnan()
    told = run_oracle(case.row, spoilt)
    for name in (*part(told, "logits"), "support_loss", *part(told, "adapted.")):
        assert (actual[name].isnan() >= told[name].isnan()).all(), f"{name}: a number where the oracle has NaN"
