"""Pictures of a run, drawn with matplotlib where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metafast.tasks import Sinusoids
from metafast.training.figure import figure, write
from metafast.training.history import History, Row


def sinusoid(path: Path, learner: nn.Module, tasks: Sinusoids, history: list[Row], generator: torch.Generator) -> None:
    """Adaptation to four tasks, before and after 1 and 10 steps, and the learning curve."""
    if (drawn := _figure(10, 6)) is None:
        return
    device = next(learner.parameters()).device
    grid = torch.linspace(*tasks.x, 200).view(1, -1, 1)
    curves = tasks.curves(4, points=tasks.shots, generator=generator)
    x = grid.expand(4, -1, -1)
    lines = {"true": curves.at(x)}
    for steps, label in ((0, "before"), (1, "1 step"), (10, "10 steps")):
        with torch.no_grad():
            query = (x.to(device), curves.at(x).to(device))
            lines[label] = learner((curves.x.to(device), curves.y.to(device)), query, steps=steps).logits.cpu()
    shape = drawn.add_gridspec(3, 2)
    for task in range(4):
        axes = drawn.add_subplot(shape[task // 2, task % 2])
        for (label, values), style in zip(lines.items(), ("k-", "C7:", "C0--", "C3-"), strict=True):
            axes.plot(grid.flatten(), values[task].flatten(), style, label=label, linewidth=1.2)
        axes.plot(curves.x[task].flatten(), curves.y[task].flatten(), "k^", markersize=5, label="support")
        if task == 0:
            axes.legend(fontsize=7, ncol=2)
    axes = drawn.add_subplot(shape[2, :])
    _curves(axes, history, "mean squared error")
    axes.set_yscale("log")
    write(drawn, path)


def omniglot(path: Path, history: History, title: str) -> None:
    """Loss and validation accuracy over meta-steps."""
    if (drawn := _figure(9, 3.5)) is None:
        return
    left, right = drawn.subplots(1, 2)
    _curves(left, history.train, "cross-entropy")
    right.errorbar(
        [row["meta_step"] for row in history.validation],
        [100 * row["mean"] for row in history.validation],
        [100 * row["interval"] for row in history.validation],
        fmt="C2.-",
        capsize=2,
        linewidth=1,
    )
    right.set(xlabel="meta-step", ylabel="validation accuracy, %")
    right.grid(alpha=0.3)
    drawn.suptitle(title, fontsize=10)
    write(drawn, path)


def _curves(axes: Any, rows: list[Row], label: str) -> None:
    steps = [row["meta_step"] for row in rows]
    axes.plot(steps, [row["before"] for row in rows], "C7", linewidth=0.8, label="before adaptation")
    axes.plot(steps, [row["after"] for row in rows], "C0", linewidth=0.8, label="after adaptation (query)")
    axes.set(xlabel="meta-step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _figure(width: float, height: float) -> Any:
    """A figure; None, said once, without matplotlib."""
    try:
        return figure(width, height)
    except ImportError:
        print("no picture without matplotlib (pip install matplotlib)", file=sys.stderr)
        return None
