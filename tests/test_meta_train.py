"""Meta-training: its steps are those of the hand-written loop, and it stops when and as it should."""

from __future__ import annotations

import pytest
import torch

import metafast as mf
from metafast.tasks import Sinusoids, Splits
from metafast.training.networks import mlp

TASKS = Sinusoids(shots=4, queries=3)


def learner(seed: int = 0) -> mf.MAML:
    torch.manual_seed(seed)
    return mf.MAML(mlp([1, 6, 1], "tanh"), lr=0.05, steps=2, loss="mse")


def train(maml: mf.MAML, tasks: object = TASKS, **how: object) -> object:
    return mf.meta_train(maml, tasks, **{"meta_batch": 3, "progress": False, "max_iters": 5, **how})


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "schedule", "clip"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01), None, None),
        (lambda p: torch.optim.Adam(p, 0.01), lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5), 0.5),
        (lambda p: torch.optim.AdamW(p, 0.01), None, 0.1),
        (lambda p: torch.optim.RMSprop(p, 0.01), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9), None),
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
    losses = []
    for _, (support, query) in zip(range(7), TASKS.stream(3, seed=3), strict=False):
        optimizer.zero_grad()
        out = theirs(support, query)
        out.loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(out.loss.item())
    assert same(ours, theirs)
    assert history.train[-1]["after"] == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert history.meta_steps == 7 and history.stopped == "max_iters"


def test_the_best_weights_are_kept():
    maml = learner()
    seen = {}
    splits = Splits(TASKS, TASKS, TASKS)
    note = mf.training.Every(
        2, lambda s: seen.update({s.meta_step: [p.detach().clone() for p in s.learner.parameters()]})
    )
    history = train(maml, splits, meta_lr=0.3, max_iters=12, validate_every=2, validation_tasks=10, callbacks=[note])
    means = {row["meta_step"]: row["mean"] for row in history.validation}
    best = min(means, key=means.get)
    assert list(means) == [2, 4, 6, 8, 10, 12] and best != 12
    assert history.best == {"meta_step": best, "value": means[best], "metric": "loss"}
    assert all(torch.equal(a, b) for a, b in zip(maml.parameters(), seen[best], strict=True))
