"""Evaluate a checkpoint on fresh test tasks, with a 95 % confidence interval.

The network, the tasks and the inner loop are those of the run that wrote the checkpoint. A run on
Omniglot needs --data.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metafast.cli import options, train_omniglot, train_sinusoid
from metafast.cli import run as runs
from metafast.learner import MAML
from metafast.tasks import Omniglot, Sinusoids
from metafast.training import checkpoint as checkpoints
from metafast.training.checkpoint import Checkpoint, CheckpointError

NAME = "evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint file, or the folder of a run (its best checkpoint)")
    train_omniglot.add_data_arguments(parser, required=False)
    train_omniglot.add_test_arguments(parser)
    parser.add_argument(
        "--steps", type=options.at_least(0), metavar="N", help="inner steps (default: those the run tested with)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the test tasks (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    runs.add_machine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    device = runs.prepare(args)
    path = args.checkpoint
    if path.is_dir():
        path = path / "best.pt" if (path / "best.pt").exists() else path / "checkpoint.pt"
    stored = checkpoints.load(path)
    learner = stored.build(device, args.backend)
    kind = stored.task.get("name")
    if kind == "sinusoid":
        results = _sinusoid(stored, learner, args)
    elif kind == "omniglot":
        results = _omniglot(stored, learner, args)
    else:
        raise CheckpointError(f"{path} was trained on {kind!r}, which this metafast does not know")
    if args.json:
        print(json.dumps({"checkpoint": str(path), "meta_steps": stored.step, **results}, indent=2))
    return 0


def _sinusoid(stored: Checkpoint, learner: MAML, args: argparse.Namespace) -> dict[str, Any]:
    tasks = Sinusoids(shots=_setting(stored, "shots"), queries=train_sinusoid.QUERIES)
    steps = train_sinusoid.STEPS if args.steps is None else (args.steps,)
    estimates = train_sinusoid.errors(learner, tasks, count=args.test_tasks, steps=steps, seed=args.seed)
    if not args.json:
        for count, estimate in estimates.items():
            print(f"mean squared error after {count:2d} gradient steps on {estimate.tasks} tasks: {estimate}")
    return {"error_after_steps": {str(count): asdict(estimate) for count, estimate in estimates.items()}}


def _omniglot(stored: Checkpoint, learner: MAML, args: argparse.Namespace) -> dict[str, Any]:
    if args.data is None:
        raise ValueError("--data DIR is needed to evaluate an Omniglot checkpoint")
    ways, shots = _setting(stored, "ways"), _setting(stored, "shots")
    steps = _setting(stored, "test_steps") if args.steps is None else args.steps
    data = Omniglot.load(args.data, subset=args.subset)
    tasks = data.tasks("test", ways=ways, shots=shots, queries=args.test_queries)
    device = next(learner.parameters()).device
    estimate = train_omniglot.accuracy(learner, tasks.to(device), count=args.test_tasks, steps=steps, seed=args.seed)
    if not args.json:
        print(f"{ways}-way {shots}-shot accuracy on {estimate.tasks} meta-test tasks: {estimate.percent()}")
    return {"ways": ways, "shots": shots, "steps": steps, "accuracy": asdict(estimate)}


def _setting(stored: Checkpoint, name: str) -> int:
    value = stored.task.get(name)
    if not isinstance(value, int):
        raise CheckpointError(f"checkpoint's task has no valid {name}: found {value!r}")
    return value
