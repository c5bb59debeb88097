"""The one list of laws: what must hold for every row, dtype, device and backend.

A law says beside its name, in ``@law``, which rows it speaks about. The list begins with those of laws_of_bits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
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
from law import BOTH, Law, joining
from laws_of_bits import LAWS_OF_BITS
from metafast.engine import static
from problems import Problem, make
from row import Row

LAWS: list[Law] = [*LAWS_OF_BITS]
law = joining(LAWS)


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

        def batch(tensors: tuple[Any, ...], names: tuple[str, ...]) -> tuple[Any, ...]:
            return tuple(of(tensor, name) for name, tensor in zip(names, tensors, strict=False))

        def of(tensor: Any, name: str) -> Any:
            if isinstance(tensor, tuple):
                return tuple(of(part, f"{name}[{i}]") for i, part in enumerate(tensor))
            return given.get(name, tensor)

        lr = given.get("lr", {name.removeprefix("lr."): value for name, value in part(given, "lr.").items()})
        data = batch(problem.support, ("xs", "ys", "ws")), batch(problem.query, ("xq", "yq", "wq"))
        call = dict(lr=lr, stepwise=case.row.stepwise)
        out = torch.func.functional_call(maml, part(given, "model."), data, call)
        return out.loss, out.task_loss, *oracle.named("logits", out.logits).values()

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
    first = [oracle.each(part, lambda tensor: tensor[:, 0]) for part in problem.support]
    return tuple(first) if problem.row.stepwise else problem.support


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
        data = {name: t for i, given in enumerate(batch) for name, t in oracle.named(f"data{i}", given).items()}
        leaves = at | {name: tensor for name, tensor in data.items() if tensor.requires_grad}
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
    logits = oracle.named("logits", maml.predict(adapted, problem.query[0]))
    expected, pulled = truth(case.row)
    assert_close(logits, part(expected, "logits"))
    assert_close(gradients(logits, problem, "logits"), pulled["logits"])


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
    where = "[0]" * bool(case.row.inputs)
    for name in (parameter, f"xs{where}", f"xq{where}") if case.row.steps else (parameter, f"xq{where}"):
        problem = case.problem()
        out = forward(case, problem)
        sets = {"xs": problem.support, "xq": problem.query}
        edited = problem.leaves | {f"{x}{where}": batch[0][0] if where else batch[0] for x, batch in sets.items()}
        with torch.no_grad():
            edited[name].add_(1)
        if not name.startswith("model.") and case.row.copied:
            assert_close(gradients(out, problem, "task_loss"), truth(case.row)[1]["task_loss"])
            continue
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
