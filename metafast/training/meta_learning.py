"""Meta-training in the plain form of the literature: a model, tasks in three parts, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafast.learner import MAML
from metafast.run_folder import RunFolder
from metafast.tasks import TEST, Splits, Tasks, generator
from metafast.training.evaluation import evaluate
from metafast.training.meta_train import meta_train


def meta_learning(
    model: nn.Module,
    tasks: Splits,
    learning_rate: float = 0.01,
    max_iters: int = 50,
    save_interval: int = 10,
    *,
    steps: int = 1,
    loss: Any = None,
    out: str | Path | None = None,
    test_tasks: int = 600,
    progress: bool = True,
    **more: Any,
) -> dict[str, Tensor]:
    """Meta-train ``model`` by MAML and return its best weights, which are also left in it.

    Every ``save_interval`` meta-steps, and after the last, the weights are judged on the validation part of ``tasks``;
    those that do best there are returned. With ``out`` they are judged on the test part at the end, which
    ``run.json`` tells.

    Args:
        model: any module that :class:`metafast.MAML` takes.
        tasks: three distributions that share no class, group or user.
        learning_rate: of the inner steps and, by Adam, of the meta-steps; ``meta_lr=...`` sets the latter apart.
        max_iters: meta-steps.
        save_interval: meta-steps between two validations, and between two checkpoints.
        steps, loss: inner steps, and the loss as of :class:`metafast.MAML`; default: cross-entropy for classes, else
            the mean squared error.
        out: the run's folder.
        test_tasks: how many tasks of the test part.
        more: further arguments of :func:`metafast.meta_train`.

    Returns:
        name -> tensor, a state_dict of ``model``.
    """
    if not isinstance(tasks, Splits):
        raise TypeError(
            f"tasks: expected metafast.tasks.Splits(train, validation, test), got {type(tasks).__name__}; "
            "metafast.meta_train takes tasks without parts"
        )
    learner = MAML(model, lr=learning_rate, steps=steps, loss=_usual_loss(tasks.train) if loss is None else loss)
    made_here = more.get("optimizer") is None or isinstance(more["optimizer"], str)
    rate = {"meta_lr": learning_rate} if made_here else {}
    meta_train(
        learner,
        tasks,
        max_iters=max_iters,
        validate_every=save_interval,
        save_interval=save_interval,
        out=out,
        progress=progress,
        **{"name": "meta_learning", **rate, **more},
    )
    if out is not None:
        found = evaluate(learner, tasks.test, (0, steps), count=test_tasks, seed=more.get("seed", 0))
        RunFolder(out).update(results=found.as_dict())
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _usual_loss(tasks: Tasks) -> str:
    targets = tasks.sample(1, generator(0, TEST)).query[1]
    return "mse" if torch.is_floating_point(targets) else "cross_entropy"
