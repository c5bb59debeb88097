"""Meta-train Conv-4 on Omniglot, and test it on characters of alphabets never seen.

BatchNorm always uses the statistics of the batch at hand, in testing too, as MAML's published results do: query images
of a task are classified together.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metafast.cli import options, pictures
from metafast.cli import run as runs
from metafast.cli.options import Option
from metafast.learner import MAML
from metafast.tasks import ImageTasks, Omniglot
from metafast.training.checkpoint import Checkpoint
from metafast.training.evaluation import Estimate, evaluate

NAME = "train omniglot"

OPTIONS: options.Options = {
    "ways": Option(5, "classes of a task", least=2),
    "shots": Option(1, "support images of a class", least=1),
    "queries": Option(5, "query images of a class in training", least=1),
    "tasks": Option(16, "tasks per meta-step", least=1),
    "channels": Option(64, "channels of each convolution", least=1),
    "steps": Option(1, "inner steps in training", least=0),
    "test_steps": Option(1, "inner steps in validation and testing", least=0),
    "lr": Option(0.5, "learning rate of the inner steps", least=0),
    "meta_lr": Option(0.003, "learning rate of the meta-steps (Adam)", least=0),
    "schedule": Option(
        "cosine", "how the learning rate of the meta-steps goes over the budget", choices=("constant", "cosine")
    ),
    "learn_lr": Option(False, "meta-learn the learning rate of the inner steps too"),
    "first_order": Option(False, "ignore second derivatives (FOMAML)"),
    "minutes": Option(
        15.0, "train for so many minutes at most, validation included; 0: no limit", least=0, fixed=False
    ),
    "meta_steps": Option(0, "train for so many meta-steps at most; 0: no limit", least=0, fixed=False),
    "validate_every": Option(200, "meta-steps between two validations", least=1),
    "validation_tasks": Option(200, "tasks of each validation", least=2),
    "seed": Option(0, "seed of weights and tasks", least=0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, required=True)
    options.add(parser, OPTIONS)
    add_test_arguments(parser)
    runs.add_arguments(parser)


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        required=required,
        metavar="DIR",
        help="folder of Omniglot: images_background and images_evaluation, as folders or .zip files, in it or one "
        "level below",
    )
    parser.add_argument("--subset", action="store_true", help="accept a part of Omniglot, which else is an error")


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--test-tasks",
        type=options.at_least(2),
        default=1000,
        metavar="N",
        help="fresh tasks to test on (default %(default)s)",
    )
    parser.add_argument(
        "--test-queries",
        type=options.at_least(1),
        default=15,
        metavar="N",
        help="Omniglot's query images of a class in testing (default %(default)s)",
    )


def describe(settings: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        network="conv4",
        arguments={"channels": settings["channels"], "ways": settings["ways"], "in_channels": 1, "image_size": 28},
        task={
            "name": "omniglot",
            "ways": settings["ways"],
            "shots": settings["shots"],
            "test_steps": settings["test_steps"],
        },
        learner={
            "lr": settings["lr"],
            "steps": settings["steps"],
            "loss": "cross_entropy",
            "first_order": settings["first_order"],
            "learn_lr": settings["learn_lr"],
        },
        state={},
    )


def run(args: argparse.Namespace) -> int:
    this = runs.Run(args, NAME, OPTIONS, describe)
    settings = this.settings
    if not settings["minutes"] and not settings["meta_steps"]:
        raise ValueError("a budget is needed: --minutes, --meta-steps or both")
    data = Omniglot.load(args.data, subset=args.subset)
    ways, shots, steps = settings["ways"], settings["shots"], settings["test_steps"]
    training = data.tasks("train", ways=ways, shots=shots, queries=settings["queries"]).to(this.device)
    held_out = data.tasks("validation", ways=ways, shots=shots, queries=args.test_queries).to(this.device)
    unseen = data.tasks("test", ways=ways, shots=shots, queries=args.test_queries).to(this.device)
    history = this.train(
        training,
        max_iters=settings["meta_steps"] or None,
        seconds=60 * settings["minutes"] or None,
        scheduler="cosine" if settings["schedule"] == "cosine" else None,
        validation=held_out,
        validate_every=settings["validate_every"],
        validation_tasks=settings["validation_tasks"],
        validation_steps=steps,
        metric="accuracy",
        block=10,
    )
    if history.stopped == "interrupted":
        return 130
    if not this.is_first:
        return 0
    assert history.best is not None
    print(
        f"{history.meta_steps} meta-steps in {history.seconds / 60:.1f} minutes; "
        f"best validation accuracy {100 * history.best['value']:.2f} % after {history.best['meta_step']}"
    )
    test = accuracy(this.learner, unseen, count=args.test_tasks, steps=steps, seed=settings["seed"])
    print(f"{ways}-way {shots}-shot accuracy on {test.tasks} meta-test tasks (95 % confidence): {test.percent()}")
    this.write_results({"test_accuracy": asdict(test), "tested_meta_step": history.best["meta_step"]})
    title = f"Omniglot {ways}-way {shots}-shot: meta-test {test.percent()}"
    pictures.omniglot(this.out / "omniglot.png", history, title)
    this.leave_report(unseen, steps=steps)
    print(f"best and last checkpoint, results and picture: {this.out}; all on one page: {this.folder.report}")
    return 0


def accuracy(learner: MAML, tasks: ImageTasks, *, count: int, steps: int, seed: int) -> Estimate:
    """The part of query images classified rightly after so many inner steps."""
    found = evaluate(learner, tasks, (steps,), count=count, metrics=["accuracy"], seed=seed)
    return found.estimates["accuracy"][steps]
