"""Evaluation: each number is that of a task adapted by hand, on tasks that a seed decides."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import metafast as mf
from metafast.tasks import TEST, ImageTasks, Splits, generator
from metafast.training.evaluation import Estimate, Evaluation
from training_runs import SPLITS, TASKS, learner

IMAGES = ImageTasks(
    torch.randint(256, (7, 6, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    ways=3, shots=2, queries=3,
)  # fmt: skip


def classifier(*more: nn.Module) -> mf.MAML:
    torch.manual_seed(0)
    return mf.MAML(nn.Sequential(nn.Flatten(), *more, nn.Linear(9, 3)), lr=0.3, steps=1)


def by_hand(maml: mf.MAML, tasks, steps: int, count: int, batch: int, seed: int):
    """Outputs and targets of every task's query set, after gradient descent written out."""
    for done in range(0, count, batch):
        support, query = tasks.sample(min(batch, count - done), generator(seed, TEST, done))
        for xs, ys, xq, yq in zip(*support, *query, strict=True):
            weights = {name: p.detach().clone().requires_grad_() for name, p in maml.model.named_parameters()}
            loss = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}[maml.loss]
            for _ in range(steps):
                found = loss(torch.func.functional_call(maml.model, weights, (xs,)), ys)
                gradients = torch.autograd.grad(found, list(weights.values()))
                weights = {
                    name: (p - maml.lr * g).detach().requires_grad_()
                    for (name, p), g in zip(weights.items(), gradients, strict=True)
                }
            yield torch.func.functional_call(maml.model, weights, (xq,)).detach(), yq


def test_regression():
    maml = learner()
    found = mf.evaluate(maml, TASKS, (0, 3), count=7, batch=3, seed=4)
    assert list(found.per_task) == ["loss", "rmse", "mae", "r2"] and found.steps == (0, 3)
    for row, steps in enumerate(found.steps):
        for task, (output, y) in enumerate(by_hand(maml, TASKS, steps, 7, 3, 4)):
            error = (output - y).double()
            wanted = {
                "loss": (error**2).mean(),
                "rmse": (error**2).mean().sqrt(),
                "mae": error.abs().mean(),
                "r2": 1 - (error**2).sum() / ((y - y.mean()).double() ** 2).sum(),
            }
            for name, value in wanted.items():
                assert found.per_task[name][row, task] == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


def test_classification():
    maml = classifier()
    found = mf.evaluate(maml, IMAGES, (0, 1, 2), count=5, batch=2)
    assert list(found.per_task) == ["loss", "accuracy"]
    for row, steps in enumerate(found.steps):
        for task, (output, y) in enumerate(by_hand(maml, IMAGES, steps, 5, 2, 0)):
            assert found.per_task["accuracy"][row, task] == pytest.approx(
                (output.argmax(-1) == y).double().mean().item()
            )
            loss = nn.functional.cross_entropy(output, y).item()
            assert found.per_task["loss"][row, task] == pytest.approx(loss, rel=1e-4)


def test_two_classes_with_one_output():
    torch.manual_seed(0)
    maml = mf.MAML(nn.Linear(2, 1), lr=0.5, steps=1, loss="bce_with_logits")
    x = torch.randn(4, 6, 2)
    y = (x.sum(-1, keepdim=True) > 0).float()
    found = mf.evaluate(maml, [((x, y), (x, y))], (0, 5))
    for row, steps in enumerate(found.steps):
        logits = maml((x, y), (x, y), steps=steps).logits
        right = ((logits > 0) == (y > 0.5)).double().mean((1, 2))
        torch.testing.assert_close(found.per_task["accuracy"][row], right, rtol=1e-6, atol=0)


def test_weights_of_examples_count():
    """What has no weight might as well not be there; and whole weights are repetitions."""
    maml = learner(steps=1)
    (support, (x, y)) = TASKS.sample(5, generator(0, TEST))
    weights = torch.tensor([2.0, 0.0, 1.0]).expand(5, 3)
    weighted = mf.evaluate(maml, [(support, (x, y, weights))], (1,))
    repeated = [t[:, [0, 0, 2]] for t in (x, y)]
    plain = mf.evaluate(maml, [(support, tuple(repeated))], (1,))
    for name, values in weighted.per_task.items():
        torch.testing.assert_close(values, plain.per_task[name], rtol=1e-5, atol=1e-6)


def test_r2_of_targets_that_are_all_the_same_is_no_number():
    (support, (x, y)) = TASKS.sample(2, generator(0, TEST))
    found = mf.evaluate(learner(), [(support, (x, torch.ones_like(y)))], (0,))
    assert found.per_task["r2"].isnan().all() and math.isnan(found.estimates["r2"][0].mean)
    assert json.loads(json.dumps(found.as_dict()))["estimates"]["r2"]["0"]["mean"] is None


# ---- Which tasks -------------------------------------------------------------------------
def test_a_seed_gives_the_same_tasks_and_another_others():
    maml = learner()
    runs = [mf.evaluate(maml, TASKS, (1,), count=9, seed=seed).per_task["loss"] for seed in (2, 2, 3)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_a_number_of_steps_is_judged_as_alone():
    """Tasks are drawn once for all numbers of steps."""
    maml = learner()
    together = mf.evaluate(maml, TASKS, (0, 2, 5), count=6)
    for row, steps in enumerate(together.steps):
        alone = mf.evaluate(maml, TASKS, (steps,), count=6)
        assert torch.equal(alone.per_task["loss"][0], together.per_task["loss"][row])


def test_parts_and_collections():
    maml = learner()
    other = Splits(TASKS, TASKS, type(TASKS)(shots=2, queries=5))
    assert torch.equal(mf.evaluate(maml, SPLITS, (1,), count=4).per_task["loss"],
                       mf.evaluate(maml, TASKS, (1,), count=4).per_task["loss"])  # fmt: skip
    assert not torch.equal(mf.evaluate(maml, other, (1,), count=4).per_task["loss"],
                           mf.evaluate(maml, TASKS, (1,), count=4).per_task["loss"])  # fmt: skip
    pairs = [TASKS.sample(3, generator(0, TEST, i)) for i in range(4)]
    assert mf.evaluate(maml, pairs, (1,)).per_task["loss"].shape == (1, 12)
    assert mf.evaluate(maml, iter(pairs), (1,), count=5).per_task["loss"].shape == (1, 5)


def test_it_leaves_everything_as_it_was():
    """Dropout is off meanwhile, whatever draws is undone, and no gradient is kept."""
    maml = classifier(nn.Dropout(0.5))
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in maml.state_dict().items()}
    found = mf.evaluate(maml, IMAGES, (1,), count=4)
    assert torch.equal(found.per_task["loss"], mf.evaluate(maml, IMAGES, (1,), count=4).per_task["loss"])
    without = classifier()
    without.load_state_dict(
        {k.replace(".1.", ".x.").replace(".2.", ".1.").replace(".x.", ".2."): v for k, v in weights.items()}
    )
    torch.testing.assert_close(found.per_task["loss"], mf.evaluate(without, IMAGES, (1,), count=4).per_task["loss"])
    assert torch.equal(torch.get_rng_state(), state) and maml.model[1].training
    assert all(torch.equal(v, weights[k]) and v.grad is None for k, v in maml.state_dict().items())


# ---- What it gives -----------------------------------------------------------------------
def test_metrics_of_ones_own():
    def worst(outputs, targets):
        return (outputs - targets).abs().amax((1, 2))

    best = mf.Metric("best", lambda outputs, targets: (outputs - targets).abs().amin((1, 2)), False)
    found = mf.evaluate(learner(), TASKS, (1,), count=4, metrics=["mae", worst, best]).per_task
    assert list(found) == ["mae", "worst", "best"]
    assert (found["worst"] >= found["mae"]).all() and (found["best"] <= found["mae"]).all()


def test_estimates_and_table():
    found = mf.evaluate(learner(), TASKS, (0, 10), count=8)
    estimate = found.estimates["loss"][10]
    assert estimate == Estimate.of(found.per_task["loss"][1]) and estimate.tasks == 8
    lines = str(found).splitlines()
    assert lines[0].split() == ["steps", "loss", "rmse", "mae", "r2"]
    assert lines[2].split()[:4] == ["10", f"{estimate.mean:.3f}", "+-", f"{estimate.interval:.3f}"]
    assert lines[-1] == "mean over 8 tasks +- 95 % confidence"
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["steps"] == [0, 10]
    assert plain["estimates"]["loss"]["10"] == {"mean": estimate.mean, "interval": estimate.interval, "tasks": 8}


def test_one_task_has_no_interval(tmp_path):
    pytest.importorskip("matplotlib")
    found = mf.evaluate(learner(), TASKS, (0, 1), count=1)
    assert math.isnan(found.estimates["loss"][1].interval)
    found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": ()}, "steps: expected numbers of inner steps"),
        ({"steps": (1, -1)}, "none negative"),
        ({"count": 0}, "count, batch: expected at least 1, got 0 and 25"),
        ({"metrics": ["f1"]}, "metrics: expected loss, accuracy, rmse"),
        ({"metrics": [lambda o, t: o.mean()]}, r"metric <lambda>: expected one number for each task, \[4\], got \[\]"),
        ({"tasks": []}, "tasks: there are none to evaluate on"),
    ],
)
def test_wrong_arguments_are_named(how, message):
    with pytest.raises(ValueError, match=message):
        mf.evaluate(learner(), **{"tasks": TASKS, "count": 4, **how})


def test_the_table_counts_tasks_that_diverge() -> None:
    found = Evaluation((0, 9), {"loss": torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.inf, torch.nan]])})
    assert str(found).splitlines()[-1] == "2 of 3 tasks diverge within 9 steps"
    assert "within 0 steps" not in str(found)
