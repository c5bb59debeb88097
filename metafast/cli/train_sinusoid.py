"""Meta-train the regression experiment of the MAML paper (Finn et al. 2017, section 5.1).

An MLP learns to fit a sine wave of unknown amplitude and phase from 10 points by one gradient step. Then it is
evaluated on fresh tasks after 0, 1, 5 and 10 steps, and one meta-step is timed against torch.func.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from metafast.cli import comparison, options, pictures
from metafast.cli import run as runs
from metafast.cli.options import Option
from metafast.learner import MAML
from metafast.tasks import TEST, Sinusoids, generator
from metafast.training.checkpoint import Checkpoint
from metafast.training.evaluation import Estimate, evaluate

NAME = "train sinusoid"
STEPS = (0, 1, 5, 10)
#: Fresh points on which an adapted network is judged: more than its 10 of support, so that each task's error is well
#: known and the interval is about the tasks alone.
QUERIES = 100

OPTIONS: options.Options = {
    "meta_steps": Option(70_000, "meta-steps to train, those of a resumed run included", least=0, fixed=False),
    "tasks": Option(25, "tasks per meta-step", least=1),
    "shots": Option(10, "support points of a task, and as many query points in training", least=1),
    "steps": Option(1, "inner steps", least=0),
    "lr": Option(0.01, "learning rate of the inner steps", least=0),
    "meta_lr": Option(0.001, "learning rate of the meta-steps (Adam)", least=0),
    "width": Option(40, "units of each of the two hidden layers", least=1),
    "first_order": Option(False, "ignore second derivatives (FOMAML)"),
    "seed": Option(0, "seed of weights and tasks", least=0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add(parser, OPTIONS)
    parser.add_argument(
        "--test-tasks",
        type=options.at_least(2),
        default=600,
        metavar="N",
        help="fresh tasks to evaluate on (default %(default)s)",
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check and time a meta-step against torch.func (default yes)",
    )
    runs.add_arguments(parser)


def describe(settings: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        network="mlp",
        arguments={"sizes": [1, settings["width"], settings["width"], 1], "activation": "relu"},
        task={"name": "sinusoid", "shots": settings["shots"]},
        learner={
            "lr": settings["lr"],
            "steps": settings["steps"],
            "loss": "mse",
            "first_order": settings["first_order"],
        },
        state={},
    )


def errors(learner: MAML, tasks: Sinusoids, *, count: int, steps: Sequence[int], seed: int) -> dict[int, Estimate]:
    """Mean squared error on query points after each number of inner steps, all tasks at once."""
    return evaluate(learner, tasks, steps, count=count, batch=count, metrics=["loss"], seed=seed).estimates["loss"]


def run(args: argparse.Namespace) -> int:
    this = runs.Run(args, NAME, OPTIONS, describe)
    settings, seed = this.settings, this.settings["seed"]
    training = Sinusoids(shots=settings["shots"], queries=settings["shots"])

    history = this.train(training, max_iters=settings["meta_steps"])
    if history.stopped == "interrupted":
        return 130
    if not this.is_first:
        return 0
    if done := history.meta_steps - this.begun:
        print(f"{done} meta-steps; training took {history.seconds:.1f} s in all")

    test = Sinusoids(shots=settings["shots"], queries=QUERIES)
    estimates = errors(this.learner, test, count=args.test_tasks, steps=STEPS, seed=seed)
    print(f"mean squared error on {QUERIES} fresh points of {args.test_tasks} fresh tasks (95 % confidence):")
    for steps, estimate in estimates.items():
        print(f"  after {steps:2d} gradient steps  {estimate}")
    results: dict[str, Any] = {"error_after_steps": {str(steps): asdict(e) for steps, e in estimates.items()}}
    this.write_results(results)

    pictures.sinusoid(this.out / "sinusoid.png", this.learner, test, history.train, generator(seed, TEST, 1))
    if args.compare:
        results["torch_func"] = comparison.against_torch_func(
            this.learner, next(training.stream(settings["tasks"], seed=seed, device=this.device))
        )
        this.write_results(results)
    this.leave_report(test, steps=STEPS[-1])
    print(f"checkpoint, results and picture: {this.out}; all on one page: {this.folder.report}")
    return 0
