"""Meta-training: its steps are those of the hand-written loop, and it stops when and as it should."""

from __future__ import annotations

import json
import os
import signal
from itertools import islice

import pytest
import torch
from torch import nn

import metafast as mf
from metafast.run_folder import RunFolder
from metafast.training import Every
from metafast.training.guard import BLOCKS
from training_runs import SPLITS, TASKS, learner, same, train

schedules = torch.optim.lr_scheduler


# ---- What a meta-step is -----------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "schedule", "clip"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01), None, None),
        (lambda p: torch.optim.Adam(p, 0.01), lambda o: schedules.StepLR(o, 2, 0.5), 0.5),
        (lambda p: torch.optim.AdamW(p, 0.01), None, 0.1),
        (lambda p: torch.optim.RMSprop(p, 0.01), lambda o: schedules.CosineAnnealingLR(o, 9), None),
        (lambda p: torch.optim.Adagrad(p, 0.01), None, None),
    ],
    ids=["sgd", "adam", "adamw", "rmsprop", "adagrad"],
)
def test_it_is_the_loop_written_by_hand(make, schedule, clip):
    """Bit for bit: autograd's backward, torch's optimiser, schedule and clipping."""
    ours, theirs = learner(), learner()
    history = train(ours, optimizer=make, scheduler=schedule, clip_norm=clip, max_iters=7, seed=3)
    optimizer = make(theirs.parameters())
    scheduler = schedule and schedule(optimizer)
    before, after = [], []
    for support, query in islice(TASKS.stream(3, seed=3), 7):
        optimizer.zero_grad()
        out = theirs(support, query)
        out.loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        before.append(out.support_loss[:, 0].mean().item())
        after.append(out.loss.item())
    assert same(ours, theirs)
    (row,) = history.train
    assert row["before"] == pytest.approx(sum(before) / 7, rel=1e-5)
    assert row["after"] == pytest.approx(sum(after) / 7, rel=1e-5)
    assert row["lr"] == optimizer.param_groups[0]["lr"]
    assert (history.meta_steps, history.stopped) == (7, "max_iters")
    assert all(p.grad is None for p in ours.parameters())


def test_blocks_change_no_bit():
    runs = [learner() for _ in range(3)]
    rows = [len(train(maml, max_iters=7, block=block).train) for maml, block in zip(runs, (1, 3, 200), strict=True)]
    assert rows == [7, 3, 1]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def test_the_names_of_optimisers_and_weight_decay():
    ours, theirs = learner(), learner()
    train(ours, optimizer="adamw", meta_lr=0.02, weight_decay=0.3)
    train(theirs, optimizer=torch.optim.AdamW(theirs.parameters(), 0.02, weight_decay=0.3))
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-6, atol=1e-7)
    assert not same(ours, learner())


def test_a_cosine_schedule_ends_at_zero():
    rates = []
    train(learner(), scheduler="cosine", meta_lr=0.4, max_iters=4, callbacks=[lambda s: rates.append(s)], block=1)
    lr = [row["lr"] for row in rates[-1].history.train]
    assert lr == pytest.approx([0.4 * (1 + x) / 2 for x in (2**0.5 / 2, 0, -(2**0.5) / 2, -1)])


def test_a_plateau_schedule_goes_by_validation():
    """A rate so small that nothing improves by the tenth that the schedule asks for."""
    history = train(
        learner(), SPLITS, meta_lr=1e-6, scheduler=lambda o: schedules.ReduceLROnPlateau(o, patience=0, threshold=0.1),
        max_iters=6, validate_every=2, validation_tasks=4, block=2,
    )  # fmt: skip
    assert [row["lr"] for row in history.train] == pytest.approx([1e-6, 1e-6, 1e-7])


def test_a_learnt_learning_rate_is_trained():
    maml = learner(learn_lr=True)
    train(maml, meta_lr=0.01)
    assert maml.hyper("lr").item() != pytest.approx(0.05)


# ---- Where tasks come from ---------------------------------------------------------------
def pairs(count: int, start: int = 0):
    return list(islice(TASKS.stream(3, start=start), count))


@pytest.mark.parametrize(
    "tasks",
    [SPLITS, pairs(5), pairs(3), lambda start: TASKS.stream(3, start=start), iter(pairs(5))],
    ids=["splits", "list", "short list", "function", "iterator"],
)
def test_sources_of_tasks(tasks):
    ours, theirs = learner(), learner()
    wanted = [*pairs(3), *pairs(2)] if isinstance(tasks, list) and len(tasks) == 3 else TASKS
    train(ours, tasks, restore_best=False)
    train(theirs, wanted)
    assert same(ours, theirs)


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        (3, TypeError, "tasks: expected a metafast Tasks or Splits, a function .* got int"),
        ([], ValueError, "the collection holds no"),
        ([torch.zeros(3)], TypeError, r"expected pairs \(\(xs, ys\), \(xq, yq\)\) of tensors, got Tensor"),
        (iter(pairs(2)), ValueError, "they ended after 2 meta-steps"),
        ([tuple(pairs(1)[0]), (1, 2)], TypeError, "expected pairs .* got tuple of 2"),
    ],
)
def test_what_is_no_source_of_tasks(tasks, error, message):
    with pytest.raises(error, match=message):
        train(learner(), tasks)


# ---- Validation --------------------------------------------------------------------------
def test_the_best_weights_are_kept(tmp_path):
    maml, seen = learner(), {}
    note = Every(2, lambda s: seen.update({s.meta_step: [p.detach().clone() for p in s.learner.parameters()]}))
    history = train(
        maml, SPLITS, meta_lr=0.3, max_iters=12, validate_every=2, validation_tasks=10, callbacks=[note], out=tmp_path
    )
    means = {row["meta_step"]: row["mean"] for row in history.validation}
    best = min(means, key=means.get)
    assert list(means) == [2, 4, 6, 8, 10, 12] and best != 12
    assert history.best == {"meta_step": best, "value": means[best], "metric": "loss"}
    assert all(torch.equal(a, b) for a, b in zip(maml.parameters(), seen[best], strict=True))
    stored = torch.load(RunFolder(tmp_path).best, weights_only=True)
    assert stored["step"] == best and all(torch.equal(stored["state"][k], v) for k, v in maml.state_dict().items())
    last = torch.load(RunFolder(tmp_path).checkpoint, weights_only=True)["state"]
    assert all(
        torch.equal(last[f"model.{n}"], v) for (n, _), v in zip(maml.model.named_parameters(), seen[12], strict=True)
    )


def test_validation_is_evaluate_on_the_same_tasks_each_time():
    maml = learner()
    history = train(
        maml, SPLITS, meta_lr=0.0, optimizer="sgd", max_iters=4, validate_every=2, validation_tasks=7, seed=5
    )
    a, b = history.validation
    found = mf.evaluate(maml, TASKS, (2,), count=7, seed=5, stream=1).estimates["loss"][2]
    assert a["mean"] == b["mean"] == found.mean and a["interval"] == found.interval and a["tasks"] == 7


def test_the_last_weights_are_validated_too():
    history = train(learner(), SPLITS, max_iters=5, validate_every=3, validation_tasks=4)
    assert [row["meta_step"] for row in history.validation] == [3, 5]


def test_validation_uses_up_no_random_number():
    ours, theirs = learner(), learner()
    train(ours, SPLITS, validate_every=1, validation_tasks=3, restore_best=False)
    state = torch.get_rng_state()
    train(theirs)
    assert same(ours, theirs) and torch.equal(state, torch.get_rng_state())


# ---- Why it stops ------------------------------------------------------------------------
def test_a_target_is_enough():
    history = train(learner(), SPLITS, max_iters=50, validate_every=2, validation_tasks=4, target=1e9)
    assert history.stopped == "target" and history.meta_steps == 2 and "loss reached" in history.reason


def test_a_metric_of_ones_own_where_more_is_better():
    metric = mf.Metric("hits", lambda outputs, targets: ((outputs - targets).abs() < 1).double().mean((1, 2)), True)
    history = train(learner(), SPLITS, max_iters=9, validate_every=1, validation_tasks=9, metric=metric, target=0.0)
    assert history.stopped == "target" and history.validation[0]["metric"] == "hits"
    history = train(learner(), SPLITS, max_iters=3, validate_every=1, validation_tasks=9, metric=metric, target=1.1)
    assert history.stopped == "max_iters" and history.best["value"] == max(r["mean"] for r in history.validation)


def test_patience_ends():
    history = train(
        learner(), SPLITS, optimizer="sgd", meta_lr=0.0, max_iters=50, validate_every=2, validation_tasks=4, patience=3
    )
    assert history.stopped == "patience" and history.meta_steps == 8 and history.best["meta_step"] == 2


def test_seconds_are_a_budget():
    history = train(learner(), max_iters=None, seconds=0.1, block=10**6)
    assert history.stopped == "seconds" and history.meta_steps > 0 and 0.1 <= history.seconds < 5


def test_callbacks():
    blocks, exact = [], []

    def stop(state):
        exact.append(state.meta_step)
        if state.meta_step == 9:
            state.stop("seen enough")

    history = train(
        learner(),
        max_iters=50,
        block=4,
        callbacks=[lambda s: blocks.append(s.history.train[-1]["meta_step"]), Every(3, stop)],
    )
    assert exact == [3, 6, 9] and blocks == [3, 4, 6, 8, 9]
    assert (history.stopped, history.reason, history.meta_steps) == ("callback", "seen enough", 9)


def poisoned(at: int, value: float):
    """The tasks, with a query target of meta-step ``at`` replaced."""

    def tasks(start: int):
        for step, (support, (x, y)) in enumerate(TASKS.stream(3, start=start), start + 1):
            yield support, (x, y.index_fill(0, torch.tensor([1]), value) if step == at else y)

    return tasks


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "at meta-step 8 the query loss is nan"), (1e20, "at meta-step 8 the query loss is inf")],
)
def test_what_is_not_finite_stops_before_it(tmp_path, value, message):
    maml, good = learner(), learner()
    with pytest.warns(RuntimeWarning, match=f"training stopped: {message}"):
        history = train(maml, poisoned(8, value), max_iters=50, block=5, out=tmp_path)
    train(good, max_iters=7)
    assert same(maml, good)
    assert (history.stopped, history.meta_steps) == ("diverged", 7) and message in history.reason
    assert RunFolder(tmp_path).read()["stopped"] == "diverged"
    stored = torch.load(RunFolder(tmp_path).checkpoint, weights_only=True)
    assert stored["step"] == 7 and all(torch.equal(stored["state"][k], v) for k, v in good.state_dict().items())


def test_a_gradient_that_is_not_finite_is_named():
    """That of a root at zero, whose loss is finite."""
    maml = learner(steps=0, backend="torch", loss=lambda output, target: (output * target).mean().abs().sqrt())
    with pytest.warns(RuntimeWarning, match=r"at meta-step 3 the meta-gradient of model\.0\.weight.* is not finite"):
        train(maml, poisoned(3, 0.0), max_iters=9)
    assert all(torch.isfinite(p).all() for p in maml.parameters())


def test_a_learnt_rate_that_is_not_finite_is_named_too():
    """The learner itself refuses it at the next meta-step, before the losses are looked at."""
    maml = learner(learn_lr=True)
    with pytest.warns(RuntimeWarning, match=r"at meta-step 4 the query loss is inf; the state is that after 3"):
        history = train(maml, poisoned(4, 1e20), max_iters=50)
    assert history.meta_steps == 3 and torch.isfinite(maml.hyper("lr"))


def test_divergence_stops_and_keeps_the_last_good_state():
    """A rate of descent far beyond 2 over the curvature: the loss grows as far as clipping lets it."""
    maml, states = learner(steps=0), {}
    note = Every(1, lambda s: states.update({s.meta_step: [p.detach().clone() for p in s.learner.parameters()]}))
    with pytest.warns(RuntimeWarning, match="above 100 times its first value"):
        history = train(
            maml, optimizer="sgd", meta_lr=100.0, clip_norm=1.0, max_iters=500, block=1, callbacks=[note], meta_batch=25
        )
    high = [row["meta_step"] for row in history.train if row["after"] > 100 * history.train[0]["after"]]
    assert history.stopped == "diverged" and len(high) >= BLOCKS - 1
    assert all(torch.equal(a, b) for a, b in zip(maml.parameters(), states[history.meta_steps], strict=True))
    assert history.meta_steps not in high


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_a_whole_state(tmp_path, which):
    def tasks(start: int):
        for step, pair in enumerate(TASKS.stream(3, start=start), start + 1):
            if step == 6:
                os.kill(os.getpid(), which)
            yield pair

    maml, whole = learner(), learner()
    before = signal.getsignal(which)
    history = train(maml, tasks, max_iters=50, out=tmp_path)
    assert (history.stopped, history.meta_steps) == ("interrupted", 6)
    assert signal.getsignal(which) is before
    train(whole, max_iters=6)
    assert same(maml, whole)
    assert RunFolder(tmp_path).read()["stopped"] == "interrupted"


def test_an_error_of_the_tasks_loses_no_block(tmp_path):
    def tasks(start: int):
        yield from islice(TASKS.stream(3, start=start), 7)
        raise OSError("the disk with the images is gone")

    maml, good = learner(), learner()
    with pytest.raises(OSError, match="the disk with the images is gone"):
        train(maml, tasks, max_iters=50, block=3, out=tmp_path)
    train(good, max_iters=6)
    assert same(maml, good)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6


# ---- What it leaves ----------------------------------------------------------------------
def test_the_folder_of_a_run(tmp_path):
    out = tmp_path / "new" / "run"
    train(learner(), SPLITS, max_iters=6, block=2, validate_every=3, validation_tasks=4, out=out, name="waves",
          settings={"shots": 4})  # fmt: skip
    assert sorted(os.listdir(out)) == ["best.pt", "checkpoint.pt", "metrics.jsonl", "report.html", "run.json"]
    facts = json.loads((out / "run.json").read_text())
    assert (facts["format"], facts["version"], facts["name"]) == ("metafast-run", 1, "waves")
    assert facts["meta_steps"] == 6 and facts["stopped"] == "max_iters" and facts["best"]["metric"] == "loss"
    assert facts["settings"]["shots"] == 4 and facts["settings"]["optimizer"] == "Adam" and facts["machine"]["torch"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["meta_step"]) for row in rows] == [
        ("train", 2), ("train", 3), ("validation", 3), ("train", 4), ("train", 6), ("validation", 6)
    ]  # fmt: skip
    assert rows[0].keys() == {"kind", "meta_step", "seconds", "rate", "before", "after", "lr"}
    assert rows[2].keys() == {"kind", "meta_step", "metric", "mean", "interval", "tasks"}


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = train(learner(), SPLITS, max_iters=4, block=2, validate_every=2, validation_tasks=4, out=tmp_path,
                    tensorboard=True)  # fmt: skip
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(e.step, pytest.approx(e.value)) for e in events.Scalars("train/after")]
    assert scalars == [(row["meta_step"], row["after"]) for row in history.train]
    assert [e.step for e in events.Scalars("validation/loss")] == [2, 4]


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    history = train(learner(), SPLITS, max_iters=6, block=1, validate_every=2, validation_tasks=4)
    history.plot(tmp_path / "a.png")
    train(learner()).plot(tmp_path / "b.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))
    assert "6 meta-steps" in str(history) and "best loss" in str(history)


def test_progress_names_what_a_user_waits_for(capsys):
    pytest.importorskip("tqdm")
    train(learner(), SPLITS, validate_every=5, validation_tasks=4, progress=True)
    shown = capsys.readouterr().err
    assert "meta-step 5, rate " in shown and "validation loss " in shown and "left" in shown


# ---- The plain form ----------------------------------------------------------------------
def test_the_plain_form_of_the_literature(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    best = mf.meta_learning(
        model, SPLITS, 0.02, 30, 10, out=tmp_path, progress=False, validation_tasks=20, test_tasks=30
    )
    assert best.keys() == before.keys() and not torch.equal(best["0.weight"], before["0.weight"])
    other = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    other.load_state_dict(best)
    facts, rows = RunFolder(tmp_path).read(), RunFolder(tmp_path).rows()
    assert [r["meta_step"] for r in rows if r["kind"] == "validation"] == [10, 20, 30]
    judged = mf.evaluate(mf.MAML(other, lr=0.02, steps=1, loss="mse"), TASKS, (0, 1), count=30)
    assert facts["results"] == judged.as_dict()


def test_the_plain_form_wants_parts():
    with pytest.raises(TypeError, match=r"tasks: expected metafast\.tasks\.Splits"):
        mf.meta_learning(nn.Linear(1, 1), TASKS)


# ---- Wrong arguments ---------------------------------------------------------------------
A_WEIGHT = [nn.Parameter(torch.ones(2, 5))]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_iters": None}, "max_iters, seconds: at least one must limit"),
        ({"meta_batch": 0}, "meta_batch: expected a whole number of at least 1, got 0"),
        ({"block": 1.5}, "block: expected a whole number of at least 1, got 1.5"),
        ({"max_iters": -1}, "max_iters: expected at least 0, got -1"),
        ({"target": 1.0}, "target, patience: they are about validation"),
        ({"clip_norm": 0}, "clip_norm: expected a positive norm, got 0"),
        ({"optimizer": "lion"}, "optimizer: expected one of adam, adamw, sgd"),
        ({"optimizer": lambda p: torch.optim.Adam(p), "weight_decay": 0.1}, "meta_lr, weight_decay: let the function"),
        ({"optimizer": torch.optim.Adam(A_WEIGHT)}, r"not the learner's, of shapes \[\[2, 5\]\]"),
        ({"scheduler": lambda o: schedules.StepLR(torch.optim.SGD(A_WEIGHT), 1)}, "another optimiser"),
        ({"validation": SPLITS.test, "metric": "f1"}, "metric: expected loss, accuracy, rmse"),
        ({"validation": iter([])}, "validation: an iterator is gone after the first"),
        ({"tensorboard": True}, "tensorboard=True writes into the run's folder; give out="),
        ({"resume": True}, "resume=True goes on with the run in out; give out="),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(how, message):
    with pytest.raises(ValueError, match=message):
        train(learner(), **how)


def test_a_learner_without_anything_to_train():
    maml = learner()
    for p in maml.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        train(maml)
