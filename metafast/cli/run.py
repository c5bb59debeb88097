"""One training run and the folder it lives in; and what a command must know to use a run that is there."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metafast import report
from metafast.cli import options
from metafast.experiments import EXPERIMENTS, settings
from metafast.experiments.experiment import Experiment
from metafast.run_folder import RunFolder
from metafast.training import checkpoint as checkpoints
from metafast.training.checkpoint import Checkpoint, CheckpointError
from metafast.training.history import History
from metafast.training.meta_train import meta_train
from metafast.training.processes import processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for checkpoints, results and pictures (default: a new one in runs/, or that of the resumed run)",
    )
    parser.add_argument("--overwrite", action="store_true", help="let --out be a folder that holds another run")
    parser.add_argument(
        "--resume", type=Path, metavar="PATH", help="go on with the run in this folder, or from this checkpoint"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write scalars for TensorBoard too")
    add_machine_arguments(parser)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default %(default)s)")
    parser.add_argument(
        "--threads", type=options.at_least(1), metavar="N", help="threads to use (default: torch's choice)"
    )
    parser.add_argument("--backend", choices=("auto", "native", "torch"), default="auto", help=argparse.SUPPRESS)


def prepare(args: argparse.Namespace) -> torch.device:
    """Apply what the command line says of the machine."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:  # under torchrun each process has a device of its own
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch finds no usable CUDA device (see `metafast info`)")
    return device


def load(path: Path) -> tuple[Path, Checkpoint, type[Experiment]]:
    """The checkpoint at ``path``, or the best one of the run in that folder; where it lies, and its experiment."""
    if path.is_dir():
        path = path / "best.pt" if (path / "best.pt").exists() else path / "checkpoint.pt"
    stored = checkpoints.load(path)
    return path, stored, kind_of(path, stored.task)


def kind_of(path: Path, task: Mapping[str, Any]) -> type[Experiment]:
    name = task.get("name")
    if name not in EXPERIMENTS:
        raise CheckpointError(f"{path} was trained on {name!r}; this metafast knows {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


class Run:
    """A run, new or resumed, as ``args`` ask, with the settings ``given`` by flags and a configuration file."""

    def __init__(self, args: argparse.Namespace, kind: type[Experiment], given: Mapping[str, Any]) -> None:
        self.device = prepare(args)
        self.processes = processes(self.device)
        self.args = args
        self.name = f"train {kind.NAME}"
        stored = self._stored(args.resume, kind) if args.resume else None
        self.experiment = settings.resumed(kind, stored.run, given) if stored else settings.build(kind, given)
        self.experiment.check_budget()
        if stored:
            self.folder = RunFolder(args.out or self._folder(args.resume))
        else:
            self.folder = self.processes.from_first(lambda: self._new_folder(args))
        self.prepared = self.experiment.prepare()
        self.described = self.experiment.describe(self.prepared)
        if stored:
            for part in ("network", "arguments", "task", "learner"):
                if getattr(stored, part) != getattr(self.described, part):
                    raise CheckpointError(f"checkpoint's {part} does not follow from its settings: it was altered")
        torch.manual_seed(self.experiment.seed)
        self.learner = self.described.build(self.device, args.backend)
        if not stored and self.is_first:
            self.folder.clear()  # of the run that --overwrite gives up, now that nothing else can be wrong

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that tests, writes and speaks."""
        return self.processes.rank == 0

    @property
    def out(self) -> Path:
        return self.folder.path

    def train(self) -> History:
        """Train, and say what to do where it was interrupted."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "training stopped", RuntimeWarning)  # an error here
            history = meta_train(
                self.learner,
                self.prepared.tasks.train,
                out=self.out,
                resume=self.args.resume or False,
                name=self.name,
                settings=settings.plain(self.experiment),
                describe=self.described,
                tensorboard=self.args.tensorboard,
                **self.experiment.training(self.prepared),
            )
        if self.is_first and "command" not in self.folder.read():
            self.folder.update(command=self.args.command)
        if self.is_first and history.stopped in ("diverged", "interrupted"):
            report.leave(self.out)
        if history.stopped == "diverged":
            raise RuntimeError(f"training stopped: {history.reason}; {self.folder.checkpoint} holds it")
        if history.stopped == "interrupted" and self.is_first:
            print(
                f"interrupted after {history.meta_steps} meta-steps; {self.folder.checkpoint} is whole. To go on:\n"
                f"  metafast {self.name} --resume {self.out}",
                file=sys.stderr,
            )
        return history

    def leave_report(self) -> Path:
        """The run's page, with some test tasks before and after adaptation."""
        experiment = self.experiment
        steps = max(1, *experiment.curve())
        examples = report.examples(self.learner, self.prepared.tasks.test, experiment.seed, steps=steps)
        report.leave(self.out, examples)
        return self.folder.report

    def write_results(self, results: dict[str, Any]) -> None:
        self.folder.update(results=results)

    def draw(self, history: History) -> None:
        """The pictures of the run; a line instead, without matplotlib."""
        try:
            history.plot(self.out / "curves.png")
            self.experiment.draw(self.out, self.learner, history)
        except ImportError as error:
            print(f"no picture: {error}", file=sys.stderr)

    def _new_folder(self, args: argparse.Namespace) -> RunFolder:
        """The folder asked for if it holds no run yet; unasked, the first of runs/x, runs/x-2, ... that does not."""
        if args.out is None:
            base = Path("runs") / self.name.split()[-1]
            names = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in itertools.count(1))
            return next(folder for folder in map(RunFolder, names) if not folder.holds_a_run())
        folder = RunFolder(args.out)
        if folder.holds_a_run() and not args.overwrite:
            raise ValueError(f"{args.out} holds a run already: go on with --resume {args.out}, or say --overwrite")
        return folder

    @staticmethod
    def _folder(resume: Path) -> Path:
        return resume if resume.is_dir() else resume.parent

    @staticmethod
    def _stored(resume: Path, kind: type[Experiment]) -> Checkpoint:
        stored = checkpoints.load(resume / "checkpoint.pt" if resume.is_dir() else resume)
        if stored.task.get("name") != kind.NAME:
            raise CheckpointError(
                f"{resume} is a run on {stored.task.get('name')!r}, not of `metafast train {kind.NAME}`"
            )
        return stored
