"""Checkpoints: written whole or not at all, and read without executing anything from the file.

A checkpoint is a dictionary of plain values and tensors in torch's zip format, read with ``weights_only=True``. It says
which network it holds by name (:mod:`metafast.training.networks`), so no class is ever looked up by what a file says.
That of a network of the user's own has no name: its weights go into a learner that the user has made.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metafast.files import replacing
from metafast.learner import MAML
from metafast.training import inner_rules, networks
from metafast.training.outer import Outer

FORMAT = "metafast-checkpoint"
VERSION = 2
Settings = dict[str, Any]
#: The learner's keyword arguments that a file may set.
LEARNER_SETTINGS = {"lr", "steps", "loss", "first_order", "learn_lr", "adapt_params", "rule"}


class CheckpointError(Exception):
    """A file that is no checkpoint, is damaged, or does not fit what it is loaded into."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue, and an evaluation to begin."""

    network: str = ""  # a name of metafast.training.networks.NETWORKS; none for a network of the user's own
    arguments: Settings = field(default_factory=dict)  # its keyword arguments
    task: Settings = field(default_factory=dict)  # "name", and the settings of the task distribution
    learner: Settings = field(default_factory=dict)  # keyword arguments of the learner: lr, steps, loss, ...
    state: dict[str, Tensor] = field(default_factory=dict)  # the learner's state_dict
    step: int = 0  # meta-steps done
    optimizer: Settings = field(default_factory=dict)  # its class, shapes of its parameters, its state_dict
    scheduler: Settings = field(default_factory=dict)  # its class and state_dict; empty if there is none
    run: Settings = field(default_factory=dict)  # settings of the training run, seed among them
    progress: Settings = field(default_factory=dict)  # seconds spent, best validation, first loss
    random_state: Settings = field(default_factory=dict)  # of metafast.training.random_state

    def build(self, device: torch.device | str = "cpu", backend: str = "auto") -> MAML:
        """The learner it describes: with its weights if it holds any, else freshly initialised."""
        if not self.network:
            raise CheckpointError(
                "checkpoint of a network of your own code: make its learner, then load the weights by "
                "metafast.training.checkpoint.load(path).restore(learner)"
            )
        if unknown := self.learner.keys() - LEARNER_SETTINGS:
            raise CheckpointError(f"checkpoint has unknown learner settings: {', '.join(sorted(map(str, unknown)))}")
        try:
            settings = dict(self.learner)
            if settings.get("rule") is not None:
                settings["rule"] = inner_rules.build(settings["rule"])
            learner = MAML(networks.build(self.network, self.arguments), backend=backend, **settings)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint describes a learner that cannot be built: {error}") from None
        if self.state:
            self.restore(learner)
        return learner.to(device)

    def restore(self, learner: nn.Module) -> None:
        """Load the weights into ``learner``; CheckpointError, and nothing changed, if any name, shape or dtype
        differs."""
        own = learner.state_dict()
        if missing := sorted(own.keys() - self.state.keys()):
            raise CheckpointError(f"checkpoint of another architecture: it has no {', '.join(missing)}")
        if extra := sorted(self.state.keys() - own.keys()):
            raise CheckpointError(f"checkpoint of another architecture: it has {', '.join(extra)}, the model has not")
        for name, value in own.items():
            stored = self.state[name]
            if stored.shape != value.shape or stored.dtype != value.dtype:
                raise CheckpointError(
                    f"checkpoint of another architecture: {name} is {stored.dtype} {list(stored.shape)} in the file, "
                    f"{value.dtype} {list(value.shape)} in the model"
                )
        learner.load_state_dict(self.state)

    def restore_outer(self, outer: Outer) -> None:
        """Load the states of optimiser and schedule; CheckpointError, and nothing changed, if they are of others."""
        try:
            outer.load(self.optimizer, self.scheduler)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"checkpoint's optimiser state does not fit: {error}") from None


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``, replacing what was there only when the new file is safely on disk.

    CheckpointError if it cannot be written, for want of room for instance: what was there is whole then."""
    content = {"format": FORMAT, "version": VERSION}
    content.update((part.name, getattr(checkpoint, part.name)) for part in fields(checkpoint))
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns an error of the disk into its own
        reason = str(error.__context__ if isinstance(error.__context__, OSError) else error).split("\n")[0][:200]
        kept = "the one that was there is whole" if Path(path).exists() else "nothing was left behind"
        raise CheckpointError(f"{path} could not be written ({reason}); {kept}") from error


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. CheckpointError says what is wrong with a file that is not one."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a metafast checkpoint, or is truncated")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler meets damage with almost any exception
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"{path} is damaged, or holds more than plain values and tensors ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a metafast checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('version')!r}, this metafast reads version {VERSION}"
        )
    expected: dict[str, Any] = {
        "network": str, "arguments": dict, "task": dict, "learner": dict, "state": dict, "step": int,
        "optimizer": dict, "scheduler": dict, "run": dict, "progress": dict, "random_state": dict,
    }  # fmt: skip
    for name, kind in expected.items():
        if not isinstance(content.get(name), kind) or (name not in content):
            raise CheckpointError(f"{path} is damaged: its {name} is missing or of another type")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content["state"].items()):
        raise CheckpointError(f"{path} is damaged: its state is not a dictionary of tensors")
    return Checkpoint(**{name: content[name] for name in expected})
