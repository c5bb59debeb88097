"""Evaluate a run on fresh test tasks, after several numbers of inner steps, with 95 % confidence intervals.

The network, the tasks and the inner loop are those of the run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from metafast.cli import options
from metafast.cli import run as runs
from metafast.experiments import settings
from metafast.training.evaluation import evaluate

NAME = "evaluate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the folder of a run (its best weights), or a checkpoint file")
    parser.add_argument("--data", type=Path, metavar="PATH", help="where the data lies now (default: where it lay)")
    parser.add_argument(
        "--steps",
        type=options.at_least(0),
        nargs="+",
        metavar="N",
        help="inner steps (default: 0 1 5 10 and the run's)",
    )
    parser.add_argument(
        "--test-tasks",
        type=options.at_least(2),
        metavar="N",
        help="how many tasks (default: as many as the run tested)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the test tasks (default: the run's)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    runs.add_machine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    device = runs.prepare(args)
    path, stored, kind = runs.load(args.checkpoint)
    experiment = settings.resumed(kind, stored.run, {} if args.data is None else {"data": args.data})
    learner = stored.build(device, args.backend)
    found = evaluate(
        learner,
        experiment.prepare().tasks.test,
        args.steps or experiment.curve(),
        count=args.test_tasks or experiment.test_tasks,
        seed=experiment.seed if args.seed is None else args.seed,
    )
    if args.json:
        print(json.dumps({"checkpoint": str(path), "meta_steps": stored.step, **found.as_dict()}, indent=2))
    else:
        print(f"{path}, after {stored.step} meta-steps, on new tasks after so many inner steps:\n{found}")
    return 0
