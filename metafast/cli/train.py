"""``metafast train NAME``: one command for each experiment, all of them the same but for their settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from metafast.cli import comparison
from metafast.cli import run as runs
from metafast.experiments import EXPERIMENTS, settings
from metafast.experiments.experiment import Experiment
from metafast.experiments.settings import SettingsError
from metafast.training.evaluation import evaluate

#: The key of a TOML file that says which experiment it is.
KEY = "experiment"


class Train:
    """The command of one kind of experiment."""

    def __init__(self, kind: type[Experiment]) -> None:
        self.kind = kind
        self.NAME = f"train {kind.NAME}"
        self.__doc__ = sys.modules[kind.__module__].__doc__

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_settings(parser, self.kind)
        if self.kind.COMPARED:
            parser.add_argument(
                "--compare",
                action=argparse.BooleanOptionalAction,
                default=True,
                help="check and time a meta-step against torch.func (default yes)",
            )
        runs.add_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        this = runs.Run(args, self.kind, read_settings(self.kind, args))
        history = this.train()
        if history.stopped == "interrupted":
            return 130
        if not this.is_first:
            return 0
        print(f"{history.meta_steps} meta-steps; training took {duration(history.seconds)} in all; {history.reason}")
        tested = history.meta_steps
        if history.best is not None:
            tested = history.best["meta_step"]
            print(f"best validation {history.best['metric']} {history.best['value']:.4g} after {tested} meta-steps")
        experiment = this.experiment
        found = evaluate(
            this.learner,
            this.prepared.tasks.test,
            experiment.curve(),
            count=experiment.test_tasks,
            seed=experiment.seed,
        )
        print(f"test tasks, after so many inner steps:\n{found}")
        results: dict[str, Any] = {**found.as_dict()["estimates"], "tested_meta_step": tested}
        this.write_results(results)
        this.draw(history)
        if self.kind.COMPARED and args.compare:
            stream = this.prepared.tasks.train.stream(experiment.tasks, seed=experiment.seed, device=this.device)
            results["torch_func"] = comparison.against_torch_func(this.learner, next(stream))
            this.write_results(results)
        print(f"checkpoint, results and pictures: {this.out}\nreport: {this.leave_report()}")
        if self.kind.TAKES_FILES:
            print(f"to adapt it to a task of your own: metafast adapt {this.out} --data PATH")
        return 0


def add_settings(parser: argparse.ArgumentParser, kind: type[Experiment]) -> None:
    """What :func:`read_settings` reads."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of settings, named as the flags; a flag goes before it"
    )
    settings.add_flags(parser, kind)


def read_settings(kind: type[Experiment], args: argparse.Namespace) -> dict[str, Any]:
    """Of the configuration file and the flags, which go before it."""
    found = dict(settings.read_toml(args.config)) if args.config else {}
    named = found.pop(KEY, kind.NAME)
    if named != kind.NAME:
        raise SettingsError(f"{args.config} is a configuration of {named!r}, not of `metafast train {kind.NAME}`")
    settings.check_names(kind, found, where=str(args.config))
    return found | settings.given(kind, args)


COMMANDS = tuple(Train(kind) for kind in EXPERIMENTS.values())


def with_config(argv: list[str]) -> list[str]:
    """``train FILE.toml ...`` as ``train NAME --config FILE.toml ...``, by the experiment that the file names."""
    if len(argv) < 2 or argv[0] != "train" or not argv[1].endswith(".toml"):
        return argv
    path = argv[1]
    named = settings.read_toml(Path(path)).get(KEY)
    if named not in EXPERIMENTS:
        known = ", ".join(f"{KEY} = {name!r}" for name in EXPERIMENTS)
        raise SettingsError(f"{path} must say which experiment it is, by one of {known}; found {named!r}")
    return ["train", named, "--config", *argv[1:]]


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"
