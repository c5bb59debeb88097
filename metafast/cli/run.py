"""One training run and the folder it lives in."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metafast import report
from metafast.cli import options
from metafast.run_folder import RunFolder
from metafast.tasks import Tasks
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
        help="folder for checkpoint, results and picture (default: a new one in runs/, or that of the resumed run)",
    )
    parser.add_argument("--overwrite", action="store_true", help="let --out be a folder that holds another run")
    parser.add_argument(
        "--resume", type=Path, metavar="PATH", help="go on with the run in this folder, or from this checkpoint"
    )
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


class Run:
    """A run, new or resumed, as ``args`` ask.

    ``describe(settings)`` makes the checkpoint of an untrained learner from settings; it decides all that a run
    depends on.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        name: str,
        choices: options.Options,
        describe: Callable[[dict[str, Any]], Checkpoint],
    ) -> None:
        self.device = prepare(args)
        self.processes = processes(self.device)
        self.name = name
        self.command: list[str] = args.command
        self.resumed: Path | None = args.resume
        stored = self._stored(args.resume) if args.resume else None
        self.settings = options.resolve(choices, args, stored.run if stored else None)
        self.described = describe(self.settings)
        self.begun = stored.step if stored else 0
        if stored:
            for part in ("network", "arguments", "task", "learner"):
                if getattr(stored, part) != getattr(self.described, part):
                    raise CheckpointError(f"checkpoint's {part} does not follow from its settings: it was altered")
            self.folder = RunFolder(args.out or self._folder(args.resume))
        else:
            self.folder = self.processes.from_first(lambda: self._new_folder(args))
            torch.manual_seed(self.settings["seed"])
        self.learner = self.described.build(self.device, args.backend)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that tests, writes and speaks."""
        return self.processes.rank == 0

    @property
    def out(self) -> Path:
        return self.folder.path

    def train(self, tasks: Any, **how: Any) -> History:
        """Train as ``how`` tells :func:`metafast.meta_train`, and say what to do where it was interrupted."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "training stopped", RuntimeWarning)  # an error here
            history = meta_train(
                self.learner,
                tasks,
                meta_batch=self.settings["tasks"],
                meta_lr=self.settings["meta_lr"],
                seed=self.settings["seed"],
                out=self.out,
                resume=self.resumed or False,
                name=self.name,
                settings=self.settings,
                describe=self.described,
                **how,
            )
        if "command" not in self.folder.read():
            self.folder.update(command=self.command)
        if history.stopped in ("diverged", "interrupted"):
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

    def leave_report(self, tasks: Tasks, *, steps: int) -> None:
        """The run's page, with a few of ``tasks`` before and after so many inner steps."""
        report.leave(self.out, report.examples(self.learner, tasks, self.settings["seed"], steps=steps))

    def write_results(self, results: dict[str, Any]) -> None:
        self.folder.update(results=results)

    def _new_folder(self, args: argparse.Namespace) -> RunFolder:
        """The folder asked for if it holds no run yet; unasked, the first of runs/x, runs/x-2, ... that does not."""
        if args.out is None:
            base = Path("runs") / self.name.split()[-1]
            names = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in itertools.count(1))
            return next(folder for folder in map(RunFolder, names) if not folder.holds_a_run())
        folder = RunFolder(args.out)
        if folder.holds_a_run() and not args.overwrite:
            raise ValueError(f"{args.out} holds a run already: go on with --resume {args.out}, or say --overwrite")
        folder.clear()
        return folder

    @staticmethod
    def _folder(resume: Path) -> Path:
        return resume if resume.is_dir() else resume.parent

    def _stored(self, resume: Path) -> Checkpoint:
        stored = checkpoints.load(resume / "checkpoint.pt" if resume.is_dir() else resume)
        if stored.task.get("name") != self.name.split()[-1]:
            raise CheckpointError(f"{resume} is a run on {stored.task.get('name')!r}, not of `metafast {self.name}`")
        return stored
