"""Meta-training, as users call it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from metafast.learner import MAML
from metafast.run_folder import RunFolder
from metafast.tasks import VALIDATION, Splits, Tasks
from metafast.training import checkpoint as checkpoints
from metafast.training import metrics, random_state
from metafast.training.checkpoint import Checkpoint, CheckpointError
from metafast.training.evaluation import Estimate, evaluate
from metafast.training.guard import Divergence
from metafast.training.history import History
from metafast.training.outer import Budget, Outer
from metafast.training.processes import processes
from metafast.training.records import FolderRecords, Records
from metafast.training.sources import described, source
from metafast.training.trainer import Plan, Trainer, Validation

#: Settings that decide which tasks a meta-step has: a resumed run must have the same.
FIXED = ("seed", "meta_batch")


def meta_train(
    learner: MAML,
    tasks: Any,
    *,
    optimizer: Any = None,
    meta_lr: float | None = None,
    weight_decay: float = 0.0,
    scheduler: Any = None,
    clip_norm: float | None = None,
    meta_batch: int = 16,
    max_iters: int | None = 1000,
    seconds: float | None = None,
    seed: int = 0,
    validation: Any = None,
    validate_every: int | None = None,
    validation_tasks: int = 200,
    validation_steps: int | None = None,
    metric: Any = None,
    target: float | None = None,
    patience: int | None = None,
    restore_best: bool = True,
    save_interval: int | None = None,
    out: str | Path | None = None,
    resume: bool | str | Path = False,
    progress: bool = True,
    tensorboard: bool = False,
    callbacks: Iterable[Any] = (),
    block: int = 200,
    name: str = "meta_train",
    settings: Mapping[str, Any] | None = None,
    describe: Checkpoint | None = None,
) -> History:
    """Train ``learner``'s initial parameters, and all that it learns besides, over tasks::

        phi <- optimizer(phi, d/d phi mean_t L(theta_K(phi); Q_t)),    t over the tasks of a meta-batch

    one meta-step after the other, until a budget is spent, a target reached, validation stalls, the loss is no longer
    finite, a callback asks for it, or Ctrl-C or SIGTERM does. The learner is left with the weights of the best
    validation, where there is any, and else with the last.

    Under ``torchrun`` every process takes its part of each meta-batch (:mod:`metafast.training.processes`), and the
    first writes.

    Args:
        tasks: a :class:`metafast.tasks.Tasks`; a :class:`metafast.tasks.Splits`, whose validation part is used unless
            ``validation`` is given; a function start -> iterator of ``(support, query)`` that begins with those of
            meta-step ``start``; or a collection of such pairs, such as a DataLoader, gone through again and again.
        optimizer: a ``torch.optim`` optimiser of ``learner.parameters()``, a function that makes one from parameters,
            or ``"adam"`` (default), ``"adamw"``, ``"sgd"``, ``"rmsprop"`` or ``"adagrad"`` with rate ``meta_lr``
            (default 0.001) and ``weight_decay``.
        scheduler: a scheduler of ``torch.optim.lr_scheduler``, a function that makes one from the optimiser, or
            ``"cosine"``, to zero over the budget. Stepped after every meta-step; ``ReduceLROnPlateau`` after every
            validation.
        clip_norm: the largest norm of a meta-gradient (``torch.nn.utils.clip_grad_norm_``).
        meta_batch: tasks of a meta-step, where ``tasks`` does not say.
        max_iters, seconds: the budget, that of the runs that this one resumes included; None: no limit.
        seed: of the tasks, of training and of validation.
        validation: held-out tasks: a Tasks, or a collection of ``(support, query)``.
        validate_every: meta-steps between two validations; default: a twentieth of ``max_iters``, or 100.
        validation_tasks, validation_steps: how many tasks, the same each time, and the inner steps (the learner's).
        metric: what the best weights are chosen by: ``"loss"``, ``"accuracy"``, ``"rmse"``, ``"mae"``, ``"r2"`` or a
            :class:`metafast.Metric`. Default: accuracy for classes, else the loss.
        target: stop when validation reaches it.
        patience: stop after so many validations without improvement.
        restore_best: leave the learner with the best weights, not the last.
        save_interval: meta-steps between two checkpoints; default: a minute. One is written at the end in any case.
        out: the run's folder (:mod:`metafast.run_folder`); None: nothing is written.
        resume: go on with the run in ``out`` if there is one; or with that of another folder, or of a checkpoint file,
            which is then written on unless ``out`` is given. With the same arguments the weights come out bit for bit
            as those of a run that was never interrupted.
        progress: show a bar with rate, losses and the time left (tqdm).
        tensorboard: write scalars for TensorBoard into ``out`` as well.
        callbacks: functions of a :class:`metafast.training.TrainingState`, called after every block of meta-steps, or
            :class:`metafast.training.Every`.
        block: meta-steps between two looks at the losses, each a row of the history.
        name, settings: what the run's files say of it, beside the arguments.
        describe: what checkpoints say of network and learner, so that a file alone rebuilds them.

    Returns:
        The rows of losses and validations, the best weights, and why it stopped.

    Raises:
        CheckpointError: of a folder that holds another run, a damaged checkpoint, one of another model, optimiser or
            seed, and of a disk that is full: then the former checkpoint is whole.
    """
    _check_limits(max_iters, seconds)
    counts = {"meta_batch": meta_batch, "block": block, "validate_every": validate_every,
              "validation_tasks": validation_tasks, "patience": patience, "save_interval": save_interval}  # fmt: skip
    _check_counts(counts)
    held_out = tasks.validation if validation is None and isinstance(tasks, Splits) else validation
    if held_out is None and (target is not None or patience is not None):
        raise ValueError("target, patience: they are about validation; give validation=..., tasks held out")
    device = next(learner.parameters()).device
    budget = Budget(max_iters, seconds)
    outer = Outer(
        learner,
        optimizer,
        scheduler,
        rate=meta_lr,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        budget=budget,
    )
    judged = None
    if held_out is not None:
        every = validate_every or (max(1, max_iters // 20) if max_iters else 100)
        judged = _validation(learner, held_out, metric, every, validation_tasks, validation_steps, seed)
    plan = Plan(budget, block, judged, target, patience, save_interval, tuple(callbacks))
    here = processes(device)
    facts = _facts(learner, tasks, outer, here.size)
    facts |= {"seed": seed, "meta_batch": meta_batch, "max_iters": max_iters, "budget_seconds": seconds}
    facts |= {"clip_norm": clip_norm, **(settings or {})}
    folder = _folder(out, resume)
    stored, history = here.from_first(lambda: _stored(folder, out, resume, facts))
    divergence = _restore(stored, learner, outer)
    here.agree(learner)
    records = Records()
    if folder is not None and here.rank == 0:
        template = replace(describe or Checkpoint(), run=facts)
        records = FolderRecords(folder, learner, outer, template, name=name, settings=facts, tensorboard=tensorboard)
    elif tensorboard and folder is None:
        raise ValueError("tensorboard=True writes into the run's folder; give out=...")
    trainer = Trainer(learner, outer, source(tasks, meta_batch, seed, device), plan, history, records, here, divergence)
    trainer.run(name, progress and here.rank == 0)
    if restore_best and history.best_state is not None:
        learner.load_state_dict(history.best_state)
    return history


def _check_limits(max_iters: int | None, seconds: float | None) -> None:
    if max_iters is None and seconds is None:
        raise ValueError("max_iters, seconds: at least one must limit the training")
    for label, limit in {"max_iters": max_iters, "seconds": seconds}.items():
        if limit is not None and not limit >= 0:
            raise ValueError(f"{label}: expected at least 0, got {limit}")


def _check_counts(counts: Mapping[str, Any]) -> None:
    for label, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{label}: expected a whole number of at least 1, got {value!r}")


def _facts(learner: MAML, tasks: Any, outer: Outer, size: int) -> dict[str, Any]:
    """What a run's files say of how it was trained, beside the arguments."""
    return {
        "optimizer": type(outer.optimizer).__name__,
        "meta_lr": outer.rate,
        "scheduler": None if outer.scheduler is None else type(outer.scheduler).__name__,
        "weight_decay": outer.optimizer.param_groups[0].get("weight_decay"),
        "learner": learner.extra_repr(),
        **described(tasks),
        "model": type(learner.model).__name__,
        "parameters": sum(p.numel() for p in outer.parameters),
        "processes": size,
    }


def _restore(stored: Checkpoint | None, learner: MAML, outer: Outer) -> Divergence:
    """Put the run's state back, if there is one to go on from; what is known of its losses."""
    if stored is None:
        return Divergence()
    stored.restore(learner)
    stored.restore_outer(outer)
    random_state.restore(stored.random_state)
    return Divergence(stored.progress.get("first_loss"), stored.progress.get("high_blocks", 0))


def _validation(
    learner: MAML, tasks: Any, metric: Any, every: int, count: int, steps: int | None, seed: int
) -> Validation:
    if not isinstance(tasks, Tasks) and iter(tasks) is tasks:
        raise ValueError("validation: an iterator is gone after the first; give Tasks or a list of (support, query)")
    if metric is None:
        metric = _usual_metric(learner, tasks, seed)
    name, higher = metrics.direction(metric)

    def run(learner: MAML) -> Estimate:
        k = learner.steps if steps is None else steps
        found = evaluate(learner, tasks, (k,), count=count, metrics=[metric], seed=seed, stream=VALIDATION)
        return found.estimates[name][k]

    return Validation(run, name, higher, every)


def _usual_metric(learner: MAML, tasks: Any, seed: int) -> str:
    found = evaluate(learner, tasks, (0,), count=1, batch=1, seed=seed, stream=VALIDATION)
    return "accuracy" if "accuracy" in found.per_task else metrics.LOSS


def _folder(out: str | Path | None, resume: bool | str | Path) -> RunFolder | None:
    if out is not None:
        return RunFolder(out)
    if isinstance(resume, bool):
        if resume:
            raise ValueError("resume=True goes on with the run in out; give out=..., or resume=PATH")
        return None
    path = Path(resume)
    return RunFolder(path if path.is_dir() else path.parent)


def _stored(
    folder: RunFolder | None, out: str | Path | None, resume: bool | str | Path, facts: Mapping[str, Any]
) -> tuple[Checkpoint | None, History]:
    """The checkpoint to go on from, None for a run that begins, and what happened until then."""
    begins = None, History()
    if folder is None:
        return begins
    if resume is False or resume is True:
        if not folder.holds_a_run():
            return begins
        if not resume:
            raise CheckpointError(f"{folder.path} holds a run already: go on with resume=True, or give another folder")
        if not folder.checkpoint.exists():  # killed before the first
            return begins
        path = folder.checkpoint
    else:
        path = Path(resume)
        path = path / "checkpoint.pt" if path.is_dir() else path
        if (
            path.exists()
            and out is not None
            and folder.holds_a_run()
            and path.resolve().parent != folder.path.resolve()
        ):
            raise CheckpointError(f"{folder.path} holds a run already: give another folder than out={out}")
    stored = checkpoints.load(path)
    if not stored.optimizer:
        raise CheckpointError(f"{path} holds weights alone; a run is resumed from its checkpoint.pt")
    for key in FIXED:
        if key in stored.run and stored.run[key] != facts[key]:
            raise CheckpointError(
                f"{path} was trained with {key}={stored.run[key]}, which {key}={facts[key]} contradicts"
            )
    return stored, _history(folder, stored, resume)


def _history(folder: RunFolder, stored: Checkpoint, resume: bool | str | Path) -> History:
    """Rows and the best weights are those of the folder that the checkpoint lies in."""
    origin = folder if isinstance(resume, bool) else _folder(None, resume)
    assert origin is not None
    history = History(meta_steps=stored.step, seconds=float(stored.progress.get("seconds", 0.0)))
    for row in origin.rows():
        if row["meta_step"] <= stored.step:
            history.add(row)
    if stored.progress.get("best") is not None and origin.best.exists():
        best = checkpoints.load(origin.best)
        history.best, history.best_state = best.progress.get("best"), best.state
    return history
