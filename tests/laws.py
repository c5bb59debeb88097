"""The one list of laws: what must hold for every row, dtype, device and backend.

A law is a function of one :class:`Case`. It raises AssertionError where it is broken, and says beside its name (in
``@law``) which rows it speaks about.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metafast as mf
import oracle
from judge import (
    COTANGENTS,
    Case,
    Tensors,
    adapt,
    assert_close,
    assert_same_bits,
    forward,
    gradients,
    learner,
    norm,
    part,
    pull_back,
    run,
    run_oracle,
    truth,
)
from metafast.engine import static
from problems import Problem, make
from rows import Row


@dataclass(frozen=True)
class Law:
    check: Callable[[Case], None]
    applies: Callable[[Row], bool]
    backends: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def name(self) -> str:
        return self.check.__name__

    def cases(self, rows: list[Row], device: str) -> Iterator[Case]:
        for row in filter(self.applies, rows):
            for backend in self.backends:
                if row.native or backend == "torch":
                    yield from (Case(row, dtype, device, backend) for dtype in self.dtypes)


LAWS: list[Law] = []
BOTH, NATIVE = ("native", "torch"), ("native",)
FLOAT64, EITHER = (torch.float64,), (torch.float64, torch.float32)


def law(
    applies: Callable[[Row], bool] = lambda row: True,
    backends: tuple[str, ...] = NATIVE,
    dtypes: tuple[torch.dtype, ...] = FLOAT64,
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
        LAWS.append(Law(check, applies, backends, dtypes))
        return check

    return register


# ------------------------------------------------------------------------------------------- laws: equal to the oracle


@law(backends=BOTH)
def outputs_equal_the_oracle(case: Case) -> None:
    assert_close(run(case, case.problem()), truth(case.row)[0])


@law(backends=BOTH)
def gradient_of_loss_equals_the_oracle(case: Case) -> None:
    problem = case.problem()
    assert_close(gradients(forward(case, problem), problem), truth(case.row)[1]["loss"])


@law(backends=BOTH)
def gradient_of_adapted_equals_the_oracle(case: Case) -> None:
    problem = case.problem()
    assert_close(gradients(adapt(case, problem), problem, "adapted"), truth(case.row)[1]["adapted"])


@law()
def gradient_of_task_loss_equals_the_oracle(case: Case) -> None:
    problem = case.problem()
    assert_close(gradients(forward(case, problem), problem, "task_loss"), truth(case.row)[1]["task_loss"])


@law()
def gradient_of_logits_equals_the_oracle(case: Case) -> None:
    problem = case.problem()
    assert_close(gradients(forward(case, problem), problem, "logits"), truth(case.row)[1]["logits"])


@law(backends=BOTH)
def cotangents_on_all_outputs_add_up(case: Case) -> None:
    problem = case.problem()
    assert_close(gradients(forward(case, problem), problem, "together"), truth(case.row)[1]["together"])


@law(lambda row: row.static, backends=BOTH)
def a_static_prefix_run_once_changes_nothing(case: Case) -> None:
    """Where it is run once although that may not pay, and where it is run at every step although it might."""
    expected, pulled = truth(case.row)
    for use in ("always", "never"):
        with mock.patch.object(static, "use", use):
            assert_close(run(case, case.problem()), expected)
            for kind in COTANGENTS:
                problem = case.problem()
                outputs = adapt(case, problem) if kind == "adapted" else forward(case, problem)
                assert_close(gradients(outputs, problem, kind), pulled[kind])


@law()
def gradient_of_parameters_alone_equals_the_oracle(case: Case) -> None:
    """The common case: nobody asks for the gradient of data or of step sizes, and shortcuts are taken."""
    problem = case.problem()
    for name, leaf in problem.leaves.items():
        leaf.requires_grad_(name.startswith("model."))
    for kind in ("loss", "task_loss"):
        expected = part(truth(case.row)[1][kind], "model.")
        assert_close(gradients(forward(case, problem), problem, kind), expected)


@law(lambda row: row.smooth and not row.first_order and row.lr <= 1)
def passes_gradcheck(case: Case) -> None:
    problem = case.problem()
    maml, leaves = learner(case, problem), problem.leaves

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(leaves, values, strict=True))

        def batch(tensors: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Tensor, ...]:
            return tuple(given.get(name, tensor) for name, tensor in zip(names, tensors, strict=False))

        lr = given.get("lr", {name.removeprefix("lr."): value for name, value in part(given, "lr.").items()})
        data = batch(problem.support, ("xs", "ys", "ws")), batch(problem.query, ("xq", "yq", "wq"))
        call = dict(lr=lr, stepwise=case.row.stepwise)
        out = torch.func.functional_call(maml, part(given, "model."), data, call)
        return out.loss, out.task_loss, out.logits

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), atol=1e-7, rtol=1e-5, fast_mode=True)


def median_errors(row: Row, device: str, attempt: Callable[[Problem], Tensors]) -> Tensors:
    """Per quantity, the median over five seeds of the relative error against the float64 oracle."""
    errors: dict[str, list[float]] = {}
    for seed in range(5):
        outputs, pulled = truth(row, seed, ("loss",))
        expected = outputs | {f"d.{name}": value for name, value in pulled["loss"].items()}
        gradient_scale = norm(pulled["loss"])
        for name, value in attempt(make(row, torch.float32, seed, device)).items():
            scale = norm({name: expected[name]}) + (1e-3 * gradient_scale if name.startswith("d.") else 1e-30)
            errors.setdefault(name, []).append(norm({name: value.double().cpu() - expected[name]}) / max(scale, 1e-30))
    return {name: torch.tensor(values).median() for name, values in errors.items()}


def with_gradients(outputs: Tensors, problem: Problem) -> Tensors:
    pulled = gradients({name: value for name, value in outputs.items() if name == "loss"}, problem)
    return outputs | {f"d.{name}": value for name, value in pulled.items()}


@cache
def torch_errors(row: Row, device: str) -> Tensors:
    return median_errors(row, device, lambda problem: with_gradients(run_oracle(row, problem), problem))


@law(lambda row: row.smooth, dtypes=(torch.float32,))
def float32_errs_little_more_than_torch(case: Case) -> None:
    """At most four times torch's own error, or a few units in the last place where torch is exact by luck."""
    ours = median_errors(case.row, case.device, lambda problem: with_gradients(run(case, problem), problem))
    theirs, floor = torch_errors(case.row, case.device), 8 * torch.finfo(torch.float32).eps
    for name, error in ours.items():
        assert error <= 4 * theirs[name] + floor, f"{name}: error {error:.3g}, torch's own {theirs[name]:.3g}"


# --------------------------------------------------------------------------- laws: gradients and Hessians at any point


def spread(problem: Problem, seed: int = 1) -> Tensors:
    """Parameters that differ from task to task, one of them left shared by all."""
    random, tasks = torch.Generator().manual_seed(seed), problem.row.tasks
    names = oracle.learnt_names(problem.model)
    own = {name: value for name, value in problem.model.named_parameters() if value.requires_grad}
    moved = {
        n: v + 0.1 * torch.randn(tasks, *v.shape, generator=random).to(v) for n, v in own.items() if n != names[-1]
    }
    return {name: moved.get(name, own[name]).detach().clone().requires_grad_() for name in names}


def vectors(problem: Problem, seed: int) -> Tensors:
    random, learnt = torch.Generator().manual_seed(seed), oracle.learnt_names(problem.model)
    parameters = dict(problem.model.named_parameters())
    lead = problem.row.tasks
    return {n: torch.randn(lead, *parameters[n].shape, generator=random).to(parameters[n]) for n in learnt}


def batch_of(problem: Problem) -> tuple[Tensor, ...]:
    """A support set as one batch: the first minibatch of a stepwise one."""
    return tuple(tensor[:, 0] for tensor in problem.support) if problem.row.stepwise else problem.support


def mf_hvp(case: Case, problem: Problem, v: Tensors) -> Tensors:
    settings = dict(loss=case.row.loss, backend=case.backend, reduction=case.row.reduction)
    return mf.hvp(problem.model, spread(problem), batch_of(problem), v, **settings)


def plain(row: Row) -> bool:
    """Rows whose options concern a single gradient: the same model and loss are not tried twice."""
    repeated = row.name.startswith("option/") and not (row.stepwise or "frozen" in row.name or "weighted" in row.name)
    return not repeated and not row.by_torch


@law(plain, backends=BOTH)
def hvp_equals_the_oracle(case: Case) -> None:
    problem = case.problem()
    v = vectors(problem, seed=2)
    expected = oracle.hvp(problem.model, case.row.loss, spread(problem), batch_of(problem), v, case.row.reduction)
    assert_close(mf_hvp(case, problem, v), expected)


@law(plain)
def hvp_is_symmetric_and_linear(case: Case) -> None:
    problem = case.problem()
    u, v = vectors(problem, seed=2), vectors(problem, seed=3)
    hu, hv = mf_hvp(case, problem, u), mf_hvp(case, problem, v)

    def dot(a: Tensors, b: Tensors) -> Tensor:  # [T]
        return sum((a[name] * b[name]).flatten(1).sum(1) for name in a)

    size = norm(u) * norm(hv) + norm(v) * norm(hu)
    assert ((dot(u, hv) - dot(v, hu)).abs() <= 1e-12 * size).all()
    both = mf_hvp(case, problem, {name: 2 * u[name] - 3 * v[name] for name in u})
    assert_close(both, {name: 2 * hu[name] - 3 * hv[name] for name in u})


@law(plain, backends=BOTH)
def grad_and_its_own_gradient_equal_the_oracle(case: Case) -> None:
    def both_orders(
        function: Callable[[Tensors, tuple[Tensor, ...]], tuple[Tensor, Tensors]],
    ) -> tuple[Tensors, Tensors]:
        problem = case.problem()
        at, batch = spread(problem), batch_of(problem)
        losses, slopes = function(at, batch)
        outputs = {"losses": losses} | slopes
        leaves = at | {f"data{i}": tensor for i, tensor in enumerate(batch) if tensor.requires_grad}
        random = torch.Generator().manual_seed(4)
        seeds = {name: torch.randn(value.shape, generator=random).to(value) for name, value in outputs.items()}
        return outputs, pull_back(outputs, leaves, seeds)

    model, loss, reduction = case.problem().model, case.row.loss, case.row.reduction
    settings = dict(loss=loss, reduction=reduction, backend=case.backend)
    actual = both_orders(lambda at, batch: mf.grad(model, at, batch, **settings))
    expected = both_orders(lambda at, batch: oracle.gradient(model, loss, at, batch, reduction))
    assert_close(actual[0], expected[0])
    assert_close(actual[1], expected[1])


@law(backends=BOTH)
def predict_undoes_adapt(case: Case) -> None:
    """predict(adapt(support), xq) are the forward's logits; and predictions are differentiable."""
    problem = case.problem()
    maml = learner(case, problem)
    adapted = maml.adapt(problem.support, lr=problem.lr, stepwise=case.row.stepwise)
    logits = maml.predict(adapted, problem.query[0])
    expected, pulled = truth(case.row)
    assert_close({"logits": logits}, part(expected, "logits"))
    assert_close(gradients({"logits": logits}, problem, "logits"), pulled["logits"])


# ---------------------------------------------------------------------------------------------- laws: limits and orders


def plain_gradient(case: Case) -> Tensors:
    """The gradient of the query loss at the initial parameters, for model, xq, yq and wq."""
    problem = case.problem()
    names = oracle.learnt_names(problem.model)
    at = {name: value for name, value in problem.model.named_parameters() if name in names}
    loss = oracle.gradient(problem.model, case.row.loss, at, problem.query, case.row.reduction)[0].mean()
    return part(pull_back({"loss": loss}, problem.leaves, {"loss": torch.ones_like(loss)}), "model.", "xq", "yq", "wq")


@law(lambda row: not row.stepwise, backends=BOTH)
def no_steps_give_the_plain_gradient(case: Case) -> None:
    problem = case.problem()
    out = learner(case, problem)(problem.support, problem.query, steps=0, lr=0.1)
    assert out.support_loss.shape == (case.row.tasks, 0)
    actual = gradients({"loss": out.loss}, problem)
    assert_close({name: actual[name] for name in plain_gradient(case)}, plain_gradient(case))


@law(lambda row: not row.stepwise, backends=BOTH)
def no_rate_gives_the_plain_gradient(case: Case) -> None:
    problem = case.problem()
    out = learner(case, problem)(problem.support, problem.query, lr=0.0)
    actual = gradients({"loss": out.loss}, problem)
    assert_close({name: actual[name] for name in plain_gradient(case)}, plain_gradient(case))


@law()
def eager_sweep_equals_deferred_sweep(case: Case) -> None:
    problem = case.problem()
    tasks = case.row.tasks
    eager = gradients(forward(case, problem), problem, "loss")
    out = forward(case, problem)
    deferred = pull_back(out, problem.leaves, {"task_loss": torch.full_like(out["task_loss"], 1 / tasks)})
    assert_close(deferred, eager, tolerance=1e-13)


@law()
def backward_scales(case: Case) -> None:
    problem = case.problem()
    out = forward(case, problem)
    tripled = pull_back(out, problem.leaves, {"loss": torch.full_like(out["loss"], -3.0)})
    expected = gradients(forward(case, problem), problem)
    assert_close(tripled, {name: -3 * value for name, value in expected.items()}, tolerance=1e-14)


@law(lambda row: row.steps > 0)
def memory_is_only_memory(case: Case) -> None:
    """Keeping and recomputing the inner loop's values give one result."""
    kept, recomputed = case.problem(), case.problem()
    first, second = forward(case, kept, memory="keep"), forward(case, recomputed, memory="recompute")
    assert_same_bits(first, second)
    assert_close(gradients(first, kept, "together"), gradients(second, recomputed, "together"), tolerance=1e-14)


@law(backends=BOTH)
def no_grad_gives_the_same_outputs(case: Case) -> None:
    problem = case.problem()
    expected = run(case, problem)
    with torch.no_grad():
        actual = run(case, problem)
    assert not any(value.requires_grad for value in actual.values())
    # not the same bits: what the cheapest order of sums is depends on whether a sweep follows
    assert_close(actual, {name: value.detach() for name, value in expected.items()}, tolerance=1e-13)


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
        tuple(tensor.detach()[tasks].requires_grad_(tensor.requires_grad) for tensor in batch)
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
    turned = take(problem, backwards)
    expected, actual = run(case, problem), run(case, turned)
    assert_same_bits({n: v[backwards] for n, v in part(actual, *PER_TASK).items()}, part(expected, *PER_TASK))
    data = ("xs", "ys", "ws", "xq", "yq", "wq")
    assert_same_bits(
        {name: value[backwards] for name, value in part(gradients(actual, turned), *data).items()},
        part(gradients(expected, problem), *data),
    )


# -------------------------------------------------------------------------------------------- laws: autograd's contract


@law()
def forwards_may_interleave_and_graphs_be_retained(case: Case) -> None:
    one, two = case.problem(0), case.problem(1)
    expected = gradients(forward(case, one), one), gradients(forward(case, two), two)
    first, second = forward(case, one), forward(case, two)
    again = gradients(first, one, retain_graph=True), gradients(second, two, retain_graph=True)
    assert_same_bits(again[0], expected[0])
    assert_same_bits(again[1], expected[1])
    assert_same_bits(gradients(first, one, retain_graph=True), expected[0])
    mixed = gradients(first, one, "together", retain_graph=True)
    assert_same_bits(gradients(first, one, "together"), mixed)


@law()
def an_edit_in_between_is_detected(case: Case) -> None:
    parameter = next(iter(case.problem().leaves))
    for name in (parameter, "xs", "xq") if case.row.steps else (parameter, "xq"):
        problem = case.problem()
        out = forward(case, problem)
        with torch.no_grad():
            problem.leaves[name].add_(1)
        if case.row.by_torch and name in ("xs", "xq"):  # torch may have kept something else than the inputs
            try:
                assert_close(gradients(out, problem, "task_loss"), truth(case.row)[1]["task_loss"])
            except RuntimeError as error:
                assert "modified inplace" in str(error) or "modified by an inplace operation" in str(error)
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(out, problem, "task_loss")


@law(lambda row: row.steps > 0)
def a_second_differentiation_is_refused(case: Case) -> None:
    problem = case.problem()
    for kind in ("loss", "task_loss"):
        with pytest.raises(RuntimeError, match='backend="torch"'):
            first = gradients(forward(case, problem), problem, kind, create_graph=True)
            total = sum((value**2).sum() for value in first.values())
            torch.autograd.grad(total, list(problem.leaves.values()), allow_unused=True)


@law(
    lambda row: (
        row.native
        and row.smooth
        and not (row.first_order or row.by_torch)
        and row.name.startswith(("linear/", "option/"))
    ),
    ("torch",),
)
def the_torch_backend_differentiates_twice(case: Case) -> None:
    def twice(run: Callable[[Problem], Tensors]) -> Tensors:
        problem = case.problem()
        first = gradients(run(problem), problem, create_graph=True)
        total = sum((value**2).sum() for value in first.values())
        return pull_back({"total": total}, problem.leaves, {"total": torch.ones_like(total)})

    found = twice(lambda problem: forward(case, problem))
    with mock.patch.object(F, "batch_norm", oracle.batch_norm):
        assert_close(found, twice(lambda problem: run_oracle(case.row, problem)))


@law(backends=BOTH)
def buffers_and_parameters_are_untouched(case: Case) -> None:
    problem = case.problem()
    before = {name: value.clone() for name, value in problem.model.state_dict().items()}
    gradients(run(case, problem), problem)
    assert_same_bits(problem.model.state_dict(), before)
    assert all(parameter.grad is None for parameter in problem.model.parameters())


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
    strided.support, strided.query = (tuple(map(awkward, batch)) for batch in (strided.support, strided.query))
    strided.lr = {n: awkward(v) for n, v in strided.lr.items()} if isinstance(strided.lr, dict) else awkward(strided.lr)
    for parameter in strided.model.parameters():
        parameter.data = awkward(parameter.data)
    return all_bits(case, strided), all_bits(case, problem)


@law(lambda row: row.tasks > 1)
def expanded_inputs_are_right(case: Case) -> None:
    """One task's data, expanded over tasks without a copy; and the stride-0 cotangents that sum().backward() makes."""
    problem = case.problem()
    expanded, copied = copy.copy(problem), copy.copy(problem)
    for batch in ("support", "query"):
        one = [tensor.detach()[:1] for tensor in getattr(problem, batch)]
        views = [value.expand(case.row.tasks, *value.shape[1:]) for value in one]
        setattr(expanded, batch, tuple(v.requires_grad_(v.is_floating_point()) for v in views))
        setattr(copied, batch, tuple(v.clone().detach().requires_grad_(v.is_floating_point()) for v in views))
    first, second = forward(case, expanded), forward(case, copied)
    assert_same_bits(first, second)
    seeds = torch.ones_like(second["logits"])
    stretched = seeds.new_ones(()).expand(seeds.shape)
    actual = pull_back(first, expanded.leaves, {"logits": stretched})
    assert_same_bits(actual, pull_back(second, copied.leaves, {"logits": seeds}))


@law(lambda row: row.tasks > 1)
def nan_stays_in_its_task(case: Case) -> None:
    clean, spoilt = case.problem(), case.problem()
    with torch.no_grad():
        for batch in (spoilt.support, spoilt.query):
            batch[0][1, ..., 0] = float("nan")
    expected, actual = run(case, clean), run(case, spoilt)
    others = [task for task in range(case.row.tasks) if task != 1]
    assert_same_bits(
        {name: value[others] for name, value in part(actual, *PER_TASK).items()},
        {name: value[others] for name, value in part(expected, *PER_TASK).items()},
    )
    assert actual["loss"].isnan()
    assert actual["task_loss"][1].isnan()
    told = run_oracle(case.row, spoilt)
    for name in ("logits", "support_loss", *part(told, "adapted.")):
        assert (actual[name].isnan() >= told[name].isnan()).all(), f"{name}: a number where the oracle has NaN"
