"""Exact resume: interrupted, killed or both, a run ends with the bits of one that nothing happened to."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metafast as mf
from metafast.run_folder import RunFolder
from metafast.training import checkpoint as checkpoints
from metafast.training.checkpoint import CheckpointError
from training_runs import SPLITS, TASKS, learner, same, train

schedules = torch.optim.lr_scheduler


def interrupted_at(*steps: int) -> Callable[[int], Any]:
    """The tasks, with a Ctrl-C while those of these meta-steps are drawn."""

    def tasks(start: int) -> Any:
        for step, pair in enumerate(TASKS.stream(3, start=start), start + 1):
            if step in steps:
                os.kill(os.getpid(), signal.SIGINT)
            yield pair

    return tasks


def dropping() -> mf.MAML:
    """A learner that draws random numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))
    return mf.MAML(model, lr=0.05, steps=1, loss="mse", backend="torch")


#: Pairwise: each optimiser with a schedule.
RUNS: dict[str, tuple[Any, Any]] = {
    "adam": ("adam", None),
    "adamw": ("adamw", "cosine"),
    "sgd": (lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True), lambda o: schedules.StepLR(o, 3, 0.5)),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True), lambda o: schedules.OneCycleLR(o, 0.1, 14),
    ),
    "adagrad": ("adagrad", lambda o: schedules.MultiStepLR(o, [3, 6])),
    "amsgrad": (
        lambda p: torch.optim.Adam(p, 0.01, amsgrad=True), lambda o: schedules.CosineAnnealingWarmRestarts(o, 4),
    ),
    "plateau": (
        lambda p: torch.optim.AdamW(p, 0.02), lambda o: schedules.ReduceLROnPlateau(o, patience=0, threshold=0.2),
    ),
    "sequence": (
        "sgd",
        lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o, 0.1, 3), schedules.ExponentialLR(o, 0.9)], [4]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", [learner, dropping], ids=["", "dropout"])
@pytest.mark.parametrize("name", RUNS)
def test_interrupted_runs_go_on_exactly(tmp_path, name, make):
    optimizer, scheduler = RUNS[name]
    how = {
        "optimizer": optimizer, "scheduler": scheduler, "max_iters": 12, "block": 4, "validation": TASKS,
        "validate_every": 3, "validation_tasks": 5, "restore_best": False,
    }  # fmt: skip
    whole = make()
    uninterrupted = train(whole, **how)
    assert train(make(), interrupted_at(5), out=tmp_path, **how).stopped == "interrupted"
    later = make()
    assert train(later, interrupted_at(9), out=tmp_path, resume=True, **how).meta_steps == 9
    last = make()
    torch.manual_seed(99)
    history = train(last, out=tmp_path, resume=True, **how)
    assert same(last, whole) and not same(last, later)
    assert history.validation == uninterrupted.validation and history.best == uninterrupted.best
    assert all(torch.equal(history.best_state[k], v) for k, v in uninterrupted.best_state.items())
    assert history.train[-1]["lr"] == uninterrupted.train[-1]["lr"]
    assert history.stopped == "max_iters" and history.meta_steps == 12


# ---- Killed ------------------------------------------------------------------------------
WHOLE = 60


def long_run(out: Path, **how: Any) -> mf.MAML:
    maml = learner()
    train(maml, SPLITS, max_iters=WHOLE, block=5, validate_every=10, validation_tasks=5, save_interval=7, out=out,
          resume=True, restore_best=False, **how)  # fmt: skip
    return maml


def in_a_child(work: Callable[..., Any], *arguments: Any) -> int:
    """The exit code of a forked process that does ``work``; that of one killed by a signal is negative."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def dying_at_the_nth(count: int, name: str, out: Path) -> None:
    """The run, killed before its ``count``-th call of os.``name``."""
    calls, real = 0, getattr(os, name)

    def mortal(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, name, mortal)
    long_run(out)


def dying_after(seconds: float, out: Path) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    long_run(out)
    os._exit(0)


def assert_same_run(out: Path, reference: Path) -> None:
    """Weights, optimiser, best weights and rows but for their times."""
    for name in ("checkpoint.pt", "best.pt"):
        a, b = (checkpoints.load(folder / name) for folder in (out, reference))
        assert a.step == b.step and all(torch.equal(a.state[key], value) for key, value in b.state.items())
    moments = [run.optimizer["state"]["state"][0]["exp_avg_sq"] for run in (a, b) if run.optimizer]
    assert not moments or torch.equal(*moments)
    rows = [[{k: v for k, v in row.items() if k not in ("seconds", "rate")} for row in RunFolder(folder).rows()]
            for folder in (out, reference)]  # fmt: skip
    validations = [[row for row in of if row["kind"] == "validation"] for of in rows]
    assert validations[0] == validations[1]
    assert RunFolder(out).read()["best"] == RunFolder(reference).read()["best"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_killed_at_every_write(tmp_path, call):
    """Each time a little later; what was written before is what the next one goes on from."""
    long_run(tmp_path / "whole")
    out, count = tmp_path / "killed", 1
    while (code := in_a_child(dying_at_the_nth, count, call, out)) != 0:
        assert code == -signal.SIGKILL
        count += 1
        assert count < 60
    assert count > 5
    assert_same_run(out, tmp_path / "whole")


def test_killed_at_random_moments(tmp_path):
    long_run(tmp_path / "whole")
    out, generator = tmp_path / "killed", torch.Generator().manual_seed(0)
    codes = [in_a_child(dying_after, float(torch.rand((), generator=generator)) * 0.12, out) for _ in range(12)]
    assert -signal.SIGKILL in codes
    assert in_a_child(long_run, out) == 0
    assert_same_run(out, tmp_path / "whole")


def test_a_line_that_was_cut_short_does_not_count(tmp_path):
    long_run(tmp_path / "whole")
    long_run(tmp_path / "cut", callbacks=[lambda state: state.stop("enough") if state.meta_step >= 20 else None])
    folder = RunFolder(tmp_path / "cut")
    rows = folder.rows()
    folder.append({"kind": "train", "meta_step": 25, "before": 1.0, "after": 1.0})  # after the checkpoint
    with open(folder.metrics, "ab") as file:
        file.write(b'{"kind": "train", "meta_st')
    assert folder.rows()[:-1] == rows
    long_run(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert [row["meta_step"] for row in folder.rows()].count(25) == 1


def test_a_damaged_line_is_named(tmp_path):
    train(learner(), max_iters=4, block=2, out=tmp_path)
    RunFolder(tmp_path).metrics.write_bytes(b"nonsense\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1, is damaged"):
        train(learner(), max_iters=8, out=tmp_path, resume=True)


# ---- A full disk -------------------------------------------------------------------------
def on_a_full_disk(out: Path, report: Path) -> None:
    """Every file may have as many bytes as the checkpoint and no more, and the weights need more now."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    try:
        train(learner(), max_iters=20, out=out, resume=True)
    except CheckpointError as error:
        report.write_text(str(error))


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    out = tmp_path / "run"
    train(learner(), max_iters=4, out=out)
    before = (out / "checkpoint.pt").read_bytes()
    assert in_a_child(on_a_full_disk, out, tmp_path / "report") == 0
    assert "checkpoint.pt could not be written (" in (tmp_path / "report").read_text()
    assert "the one that was there is whole" in (tmp_path / "report").read_text()
    assert (out / "checkpoint.pt").read_bytes() == before
    assert sorted(os.listdir(out)) == ["checkpoint.pt", "metrics.jsonl", "report.html", "run.json"]
    whole, resumed = learner(), learner()
    train(whole, max_iters=20)
    train(resumed, max_iters=20, out=out, resume=True)
    assert same(whole, resumed)


# ---- What is and is not resumed ----------------------------------------------------------
def test_a_folder_is_not_taken_by_accident(tmp_path):
    train(learner(), out=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already: go on with resume=True, or give another folder"):
        train(learner(1), out=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_resuming_into_another_folder_leaves_the_first(tmp_path):
    whole, parts = learner(), learner()
    train(whole, SPLITS, max_iters=9, validate_every=3, validation_tasks=4, out=tmp_path / "whole")
    train(parts, SPLITS, max_iters=6, validate_every=3, validation_tasks=4, out=tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    how = {"max_iters": 9, "validate_every": 3, "validation_tasks": 4}
    history = train(learner(), SPLITS, resume=tmp_path / "a" / "checkpoint.pt", out=tmp_path / "b", **how)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert_same_run(tmp_path / "b", tmp_path / "whole")
    assert [row["meta_step"] for row in history.validation] == [3, 6, 9]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seed": 3}, "was trained with seed=0, which seed=3 contradicts"),
        ({"meta_batch": 4}, "was trained with meta_batch=3, which meta_batch=4 contradicts"),
        ({"optimizer": "sgd"}, "optimiser: expected SGD, found Adam"),
        ({"scheduler": "cosine"}, "scheduler: expected Cosine, found none"),
        ({"resume": "nowhere"}, "no checkpoint at nowhere"),
    ],
)
def test_another_run_is_refused(tmp_path, how, message):
    train(learner(), out=tmp_path)
    maml, untouched = learner(1), learner(1)
    with pytest.raises(CheckpointError, match=message):
        train(maml, **{"out": tmp_path, "resume": True, **how})
    assert how.keys() & {"optimizer", "scheduler"} or same(maml, untouched)


def test_weights_alone_are_not_resumed(tmp_path):
    train(learner(), SPLITS, validate_every=2, validation_tasks=4, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"best\.pt holds weights alone"):
        train(learner(), resume=tmp_path / "best.pt")


def test_the_budget_of_a_resumed_run_may_be_larger_or_spent(tmp_path):
    whole, parts = learner(), learner()
    train(whole, max_iters=9)
    train(parts, max_iters=5, out=tmp_path)
    assert train(learner(), max_iters=5, out=tmp_path, resume=True).stopped == "max_iters"
    resumed = learner()
    train(resumed, max_iters=9, resume=tmp_path)
    assert same(resumed, whole)
    assert checkpoints.load(tmp_path / "checkpoint.pt").step == 9
