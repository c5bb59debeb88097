"""What must not change a bit: what is kept of the steps, packs, threads, and which other tasks are there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

import metafast as mf
from covering import covering
from judge import Tensors, assert_same_bits, pull_back
from rule_cases import ESTIMATORS, Problem, adapt, executing, forward, learner, problem

#: Plain descent, one state, two, three, and every kind of link in one chain.
CHOSEN = ("sgd", "nesterov", "adam", "amsgrad", "clip_norm, proximal, adam, soft_threshold")
PACKED = ("alone", "whole packs", "small packs")
EMULATED = ("persistent", "batched")
DTYPES = (torch.float64, torch.float32)


def pairwise(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Every pair of values of the axes in one ``case``, a dict."""
    rows = covering({name: tuple(values) for name, values in axes.items()})
    return pytest.mark.parametrize("case", rows, ids=lambda case: "-".join(map(str, case.values())))


def memories(steps: int) -> list[Any]:
    return ["recompute", "auto", mf.Checkpoint(), *[mf.Checkpoint(n) for n in (1, 2, 3, steps, steps + 3)]]


def everything(p: Problem, rule: str, form: str, **options: Any) -> Tensors:
    """Outputs, and the gradients of the loss, of the other outputs and of the adapted parameters for all that there is,
    hyper-parameters included."""
    maml = learner(p, rule, form, **options)
    out, adapted = forward(maml, p), adapt(maml, p)
    random = torch.Generator().manual_seed(5)
    kinds: dict[str, tuple[Tensors, Tensors]] = {"loss": (out, {"loss": torch.ones_like(out["loss"])})}
    for kind, of, names in (("outputs", out, ("task_loss", "logits")), ("adapted", adapted, tuple(adapted))):
        kinds[kind] = of, {n: torch.randn(of[n].shape, generator=random).to(of[n]) for n in names}
    found = {n: v.detach() for n, v in (out | adapted).items()}
    for kind, (of, cotangents) in kinds.items():
        pulled = pull_back(of, p.leaves, cotangents, retain_graph=True)
        found |= {f"{kind}: {n}": v for n, v in pulled.items()}
    return found


#: How and what: execution, model, form of hyper-parameters, steps, dtype.
KEPT = (
    ("alone", "conv", "[]", 7, torch.float32),
    ("alone", "weighted", "per_step element", 5, torch.float64),
    ("alone", "mlp", "numbers", 7, torch.float64),
    ("whole packs", "stepwise", "tensor", 7, torch.float64),
    ("small packs", "mlp", "element", 5, torch.float32),
    ("2 threads", "head", "[steps]", 7, torch.float64),
    ("persistent", "frozen", "tensor", 7, torch.float64),
    ("batched", "mlp", "[]", 5, torch.float32),
)


@pairwise(how=KEPT, rule=CHOSEN, estimator=ESTIMATORS)
def test_memory_changes_no_bit(case: dict[str, Any]) -> None:
    """K is not divisible by most of the intervals."""
    execution, model, form, steps, dtype = case["how"]
    p = problem(case["rule"], model, form, steps, "tasks", dtype, tasks=2)
    options = dict(estimator=ESTIMATORS[case["estimator"]][0])
    with executing(execution):
        kept = everything(p, case["rule"], form, memory="keep", **options)
        for memory in memories(steps):
            assert_same_bits(everything(p, case["rule"], form, memory=memory, **options), kept)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_checkpoints_of_every_interval(rule: str, steps: int) -> None:
    p = problem(rule, "mlp", "tensor", steps, "model")
    kept = everything(p, rule, "tensor", memory="keep")
    for every in range(1, steps + 2):
        assert_same_bits(everything(p, rule, "tensor", memory=mf.Checkpoint(every)), kept)


#: Two and a half registers of float64, or more than one of float32, at every width.
TASKS = 19


@pairwise(rule=CHOSEN, form=("numbers", "[]", "element", "per_step tensor"), estimator=ESTIMATORS, dtype=DTYPES)
def test_packs_and_threads_change_no_bit(case: dict[str, Any]) -> None:
    rule, form = case["rule"], case["form"]
    p = problem(rule, "mlp", form, 3, "model", case["dtype"], tasks=TASKS)
    options = dict(estimator=ESTIMATORS[case["estimator"]][0])
    with executing("alone"):
        alone = everything(p, rule, form, **options)
    for how in ("whole packs", "small packs", "1 threads", "2 threads", "3 threads"):
        with executing(how):
            assert_same_bits(everything(p, rule, form, **options), alone)


def of_task(p: Problem, t: int) -> Problem:
    """The problem of one task."""
    support, query = (
        tuple(v.detach()[t : t + 1].requires_grad_(v.requires_grad) for v in batch) for batch in (p.support, p.query)
    )
    start = {n: v.detach()[t : t + 1].requires_grad_() for n, v in p.start.items()}
    return Problem(p.row, p.model, support, query, p.hypers, start, p.names)


PER_TASK = ("xs", "ys", "ws", "xq", "yq", "wq", "start.")


@pairwise(
    rule=CHOSEN,
    form=("[]", "element"),
    model=("mlp", "conv", "weighted"),
    execution=(*PACKED, "2 threads", *EMULATED),
)
def test_a_task_among_others_is_the_task_alone(case: dict[str, Any]) -> None:
    """Also in what it contributes to the gradients of hyper-parameters."""
    rule, form = case["rule"], case["form"]
    p = problem(rule, case["model"], form, 3, "tasks", tasks=3)
    with executing(case["execution"]):
        maml = learner(p, rule, form)
        together = forward(maml, p)
        for t in (0, 2):
            single = of_task(p, t)
            alone = forward(learner(single, rule, form), single)
            for n in ("task_loss", "logits", "support_loss"):
                assert torch.equal(together[n][t], alone[n][0]), n
            pick = torch.nn.functional.one_hot(torch.tensor(t), 3).to(together["task_loss"])
            of_many = pull_back(together, p.leaves, {"task_loss": pick}, retain_graph=True)
            of_one = pull_back(alone, single.leaves, {"task_loss": pick[t : t + 1]})
            shared = [n for n in of_one if not n.startswith(PER_TASK)]
            assert any(n.startswith("lr") for n in shared)
            assert_same_bits({n: of_many[n] for n in shared}, {n: of_one[n] for n in shared})
            data = [n for n in of_one if n not in shared]
            assert_same_bits({n: of_many[n][t] for n in data}, {n: of_one[n][0] for n in data})


@pytest.mark.parametrize("execution", [*PACKED, *EMULATED, "torch"])
@pytest.mark.parametrize("rule", CHOSEN)
def test_nan_stays_in_its_task(rule: str, execution: str) -> None:
    clean, spoilt = (problem(rule, "mlp", "[]", 3, "tasks", tasks=3) for _ in range(2))
    with torch.no_grad():
        for x in (spoilt.support[0], spoilt.query[0]):
            x[1, 0] = float("nan")
    backend = "torch" if execution == "torch" else "native"
    with executing(execution):
        found, expected = [], []
        for p, made in ((clean, expected), (spoilt, found)):
            maml = learner(p, rule, "[]", backend=backend)
            outputs = forward(maml, p) | adapt(maml, p)
            others = torch.tensor([1.0, 0.0, 1.0]).to(outputs["task_loss"])
            pulled = pull_back(outputs, p.leaves, {"task_loss": others})
            made += [outputs, {n: v for n, v in pulled.items() if n.startswith(PER_TASK)}]
    for ours, theirs in zip(found, expected, strict=True):
        rows = [0, 2]
        assert_same_bits(
            {n: v[rows] for n, v in ours.items() if v.dim()}, {n: v[rows] for n, v in theirs.items() if v.dim()}
        )
    assert found[0]["task_loss"][1].isnan() and found[0]["loss"].isnan()
    assert all(v[1].isnan().any() for n, v in found[0].items() if n.startswith("adapted."))
