"""What a run writes: rows, checkpoints, the facts of run.json and TensorBoard's scalars."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metafast import report
from metafast.run_folder import RunFolder
from metafast.training import checkpoint as checkpoints
from metafast.training import random_state
from metafast.training.checkpoint import Checkpoint
from metafast.training.guard import Divergence
from metafast.training.history import History, Row
from metafast.training.machine import describe
from metafast.training.outer import Outer

#: Seconds between checkpoints where the user says no number of meta-steps, in case the machine dies.
SAVE_EVERY = 60.0


class Records:
    """Writes nothing: for runs without a folder, and for all ranks but the first."""

    def begin(self, history: History, divergence: Divergence) -> None:
        """Training begins, or goes on."""

    def add(self, row: Row) -> None:
        """A block or a validation is done."""

    def due(self, meta_step: int, interval: int | None) -> bool:
        """Whether it is time for a checkpoint."""
        return False

    def save(self, history: History, divergence: Divergence) -> None:
        """Write a checkpoint of the run's state."""

    def save_best(self, history: History) -> None:
        """Write the learner's weights as the best."""

    def finish(self, history: History, divergence: Divergence) -> None:
        """Training has stopped."""


class FolderRecords(Records):
    """Writes into a run's folder."""

    def __init__(
        self,
        folder: RunFolder,
        learner: nn.Module,
        outer: Outer,
        template: Checkpoint,
        *,
        name: str,
        settings: Mapping[str, Any],
        tensorboard: bool,
    ) -> None:
        self.folder, self.learner, self.outer, self.template = folder, learner, outer, template
        self.name, self.settings = name, settings
        self._board: Any = _writer(folder.path / "tensorboard") if tensorboard else None
        self._saved = time.monotonic()
        self._first = 0  # meta-steps done before

    def begin(self, history: History, divergence: Divergence) -> None:
        self._first = history.meta_steps
        self.folder.update(name=self.name, settings=self.settings, machine=describe(), **_standing(history))
        self.folder.rewrite(sorted(history.train + history.validation, key=lambda row: int(row["meta_step"])))
        if not self.folder.checkpoint.exists():  # from the first moment on the folder can be resumed
            self.save(history, divergence)
        if history.best_state is not None and not self.folder.best.exists():  # of a run in another folder
            self.save_best(history)

    def add(self, row: Row) -> None:
        self.folder.append(row)
        if self._board is not None:
            kind = row["kind"]
            names = ("before", "after", "lr", "rate") if kind == "train" else ("mean",)
            for name in names:
                label = row["metric"] if name == "mean" else name
                self._board.add_scalar(f"{kind}/{label}", row[name], row["meta_step"])

    def due(self, meta_step: int, interval: int | None) -> bool:
        return meta_step % interval == 0 if interval else time.monotonic() - self._saved > SAVE_EVERY

    def save(self, history: History, divergence: Divergence) -> None:
        self.folder.flush()
        checkpoints.save(self.folder.checkpoint, self._checkpoint(history, divergence))
        self.folder.update(**_standing(history))
        self._saved = time.monotonic()

    def save_best(self, history: History) -> None:
        assert history.best is not None and history.best_state is not None
        best = {"state": _on_cpu(history.best_state), "step": history.best["meta_step"]}
        checkpoints.save(self.folder.best, replace(self.template, **best, progress={"best": history.best}))

    def finish(self, history: History, divergence: Divergence) -> None:
        self.save(history, divergence)
        if self._board is not None:
            self._board.close()
        if history.meta_steps > self._first:
            self.folder.forget_results()
        report.leave(self.folder.path)

    def _checkpoint(self, history: History, divergence: Divergence) -> Checkpoint:
        return replace(
            self.template,
            state=_on_cpu(self.learner.state_dict()),
            step=history.meta_steps,
            optimizer=self.outer.state(),
            scheduler=self.outer.schedule(),
            progress={
                "seconds": history.seconds,
                "best": history.best,
                "first_loss": divergence.first,
                "high_blocks": divergence.high,
            },
            random_state=random_state.capture(),
        )


def _standing(history: History) -> dict[str, Any]:
    return {
        "meta_steps": history.meta_steps,
        "seconds": history.seconds,
        "stopped": history.stopped,
        "reason": history.reason,
        "best": history.best,
    }


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in weights.items()}


def _writer(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("tensorboard=True needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter(str(path))  # type: ignore[no-untyped-call,unused-ignore]
