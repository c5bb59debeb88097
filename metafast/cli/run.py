"""One training run and the folder it lives in: checkpoint.pt, results.json and a picture."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metafast.cli import info, options
from metafast.cli.progress import bar
from metafast.files import replacing
from metafast.tasks import Episode
from metafast.training import checkpoint as checkpoints
from metafast.training.checkpoint import Checkpoint, CheckpointError
from metafast.training.loop import Budget, Report, Schedule, train
from metafast.training.outer_adam import Adam

#: Seconds between checkpoints while training, in case the machine dies.
SAVE_EVERY = 60


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
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch finds no usable CUDA device (see `metafast info`)")
    return device


class Run:
    """A run, new or resumed, as ``args`` ask.

    ``describe(settings)`` makes the checkpoint of an untrained learner from settings; it decides all that a run
    depends on. :attr:`checkpoint` is the state on disk or to be put there.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        name: str,
        choices: options.Options,
        describe: Callable[[dict[str, Any]], Checkpoint],
    ) -> None:
        self.device = prepare(args)
        self.name = name
        stored = self._stored(args.resume) if args.resume else None
        self.settings = options.resolve(choices, args, stored.run if stored else None)
        fresh = describe(self.settings)
        if stored:
            for part in ("network", "arguments", "task", "learner"):
                if getattr(stored, part) != getattr(fresh, part):
                    raise CheckpointError(f"checkpoint's {part} does not follow from its settings: it was altered")
            self.out = args.out or self._folder(args.resume)
            self.checkpoint = replace(stored, run=self.settings)
        else:
            self.out = self._new_folder(args)
            torch.manual_seed(self.settings["seed"])
            self.checkpoint = replace(fresh, run=self.settings, progress={"seconds": 0.0, "history": []})
        self.learner = self.checkpoint.build(self.device, args.backend)
        self.optimizer = Adam(self.learner.parameters())
        if stored:
            self.checkpoint.restore_optimizer(self.optimizer)
            if stored.random_state is not None:
                torch.set_rng_state(stored.random_state)

    @property
    def progress(self) -> dict[str, Any]:
        return self.checkpoint.progress

    def train(
        self,
        stream: Callable[[int], Iterator[Episode]],
        budget: Budget,
        *,
        block: int,
        schedule: Schedule = "constant",
        on_report: Callable[[Report], dict[str, str]] = lambda _: {},
    ) -> bool:
        """Train until the budget is spent (True) or someone interrupts (False), and leave a checkpoint in any case.

        ``stream(step)`` gives the episodes from that meta-step on; ``on_report`` may add to the progress bar.
        """
        saved = time.monotonic()

        def report(now: Report) -> None:
            nonlocal saved
            self.checkpoint = replace(self.checkpoint, step=now.step)
            self.progress["seconds"] = now.seconds
            self.progress["history"].append([now.step, now.before, now.after])
            show(now, on_report(now))
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()

        step = self.checkpoint.step
        begun = budget.fraction(step, self.progress["seconds"])
        with bar(self.name, begun) as show:
            step, seconds, interrupted = train(
                self.learner,
                self.optimizer,
                stream(step),
                rate=self.settings["meta_lr"],
                budget=budget,
                report=report,
                step=step,
                seconds=self.progress["seconds"],
                block=block,
                schedule=schedule,
            )
        self.progress["seconds"] = seconds
        self.checkpoint = replace(self.checkpoint, step=step)
        path = self.save()
        if interrupted:
            print(
                f"interrupted after {step} meta-steps; {path} is whole. To go on:\n"
                f"  metafast {self.name} --resume {self.out}",
                file=sys.stderr,
            )
        return not interrupted

    def save(self, name: str = "checkpoint.pt") -> Path:
        self.checkpoint = replace(
            self.checkpoint,
            state={key: value.detach().cpu().clone() for key, value in self.learner.state_dict().items()},
            optimizer=self.optimizer.state_dict(),
            random_state=torch.get_rng_state(),
        )
        path = self.out / name
        checkpoints.save(path, self.checkpoint)
        return path

    def write_results(self, results: dict[str, Any]) -> None:
        content = {
            "command": self.name,
            "settings": self.settings,
            "meta_steps": self.checkpoint.step,
            "training_seconds": round(self.progress["seconds"], 3),
            **results,
            "machine": info.gather(),
            "history": self.progress["history"],
        }
        with replacing(self.out / "results.json") as file:
            file.write(json.dumps(content, indent=2).encode())

    def _new_folder(self, args: argparse.Namespace) -> Path:
        """The folder asked for if it holds no run yet; unasked, the first of runs/x, runs/x-2, ... that does not."""
        if args.out is None:
            base = Path("runs") / self.name.split()[-1]
            folders = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in itertools.count(1))
            return next(folder for folder in folders if not (folder / "checkpoint.pt").exists())
        if (args.out / "checkpoint.pt").exists() and not args.overwrite:
            raise ValueError(f"{args.out} holds a run already: go on with --resume {args.out}, or say --overwrite")
        return Path(args.out)

    @staticmethod
    def _folder(resume: Path) -> Path:
        return resume if resume.is_dir() else resume.parent

    def _stored(self, resume: Path) -> Checkpoint:
        stored = checkpoints.load(resume / "checkpoint.pt" if resume.is_dir() else resume)
        if stored.task.get("name") != self.name.split()[-1]:
            raise CheckpointError(f"{resume} is a run on {stored.task.get('name')!r}, not of `metafast {self.name}`")
        history, seconds = stored.progress.get("history"), stored.progress.get("seconds")
        if not isinstance(history, list) or not isinstance(seconds, float):
            raise CheckpointError(f"{resume} cannot be resumed: it says nothing of the progress made")
        return stored
