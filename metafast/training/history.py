"""What happened in a meta-training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from metafast.training.figure import figure, write

Row = dict[str, Any]


@dataclass
class History:
    """The rows of a run, as ``metrics.jsonl`` holds them, and how it ended.

    Attributes:
        train: a row for each block of meta-steps: ``meta_step`` at its end, ``seconds`` of training until then,
            ``rate`` in meta-steps a second, ``before`` and ``after``, the mean loss before the first inner step
            (support) and after the last (query), and ``lr`` of the outer optimiser.
        validation: a row for each validation: ``meta_step``, ``metric``, ``mean``, ``interval``, ``tasks``.
        meta_steps: meta-steps done, those of the runs that this one resumed included.
        seconds: of training, likewise.
        stopped: ``"max_iters"``, ``"seconds"``, ``"target"``, ``"patience"``, ``"callback"``, ``"interrupted"`` or
            ``"diverged"``; ``"running"`` until then.
        reason: the same in words, with the meta-step where something went wrong.
        best: ``meta_step``, ``value`` and ``metric`` of the best validation; None without validation.
        best_state: the learner's state_dict then.
    """

    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    meta_steps: int = 0
    seconds: float = 0.0
    stopped: str = "running"
    reason: str = ""
    best: Row | None = None
    best_state: dict[str, Tensor] | None = None

    def add(self, row: Row) -> None:
        (self.train if row["kind"] == "train" else self.validation).append(row)

    def __str__(self) -> str:
        text = f"{self.meta_steps} meta-steps in {self.seconds:.1f} s; {self.reason or self.stopped}"
        if self.train:
            last = self.train[-1]
            text += f"; loss {_number(last['before'])} -> {_number(last['after'])}"
        if self.best:
            text += f"; best {self.best['metric']} {_number(self.best['value'])} after {self.best['meta_step']}"
        return text

    def plot(self, path: str | Path) -> None:
        """A PNG of the losses and of the validations over meta-steps."""
        picture = figure(9 if self.validation else 5, 3.2)
        axes = picture.subplots(1, 2 if self.validation else 1, squeeze=False)[0]
        at = [row["meta_step"] for row in self.train]
        for name, label, colour in (("before", "before adaptation", "C7"), ("after", "after adaptation", "C0")):
            axes[0].plot(at, [_float(row[name]) for row in self.train], colour, linewidth=0.9, label=label)
        axes[0].set(xlabel="meta-step", ylabel="loss")
        axes[0].legend(fontsize=7)
        if self.validation:
            at = [row["meta_step"] for row in self.validation]
            means, bars = ([_float(row[name]) for row in self.validation] for name in ("mean", "interval"))
            axes[1].errorbar(at, means, bars, fmt="C2.-", capsize=2, linewidth=1)
            axes[1].set(xlabel="meta-step", ylabel=f"validation {self.validation[-1]['metric']}")
        if self.best:
            axes[1].plot(
                [self.best["meta_step"]], [self.best["value"]], "C3o", markersize=7, fillstyle="none", label="best"
            )
            axes[1].legend(fontsize=7)
        for each in axes:
            each.grid(alpha=0.3)
        write(picture, path)


def _float(value: float | None) -> float:
    """Rows of a file have None for what is not a number."""
    return float("nan") if value is None else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
