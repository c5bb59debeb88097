"""The regression experiment of the MAML paper (Finn et al. 2017, section 5.1).

An MLP learns to fit a sine wave of unknown amplitude and phase from 10 points by one gradient step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from metafast.experiments.experiment import Experiment, Prepared
from metafast.experiments.settings import setting
from metafast.learner import MAML
from metafast.tasks import TEST, Sinusoids, Splits, generator
from metafast.training.figure import figure, write
from metafast.training.history import History

#: Fresh points on which an adapted network is judged: more than its 10 of support, so that each task's error is well
#: known and the interval is about the tasks alone.
QUERIES = 100


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Experiment):
    NAME: ClassVar[str] = "sinusoid"
    LOSS: ClassVar[str] = "mse"
    METRIC: ClassVar[str] = "loss"
    BLOCK: ClassVar[int] = 200
    COMPARED: ClassVar[bool] = True

    meta_steps: int = setting(70_000, "meta-steps to train at most; 0: no limit", least=0, fixed=False)
    tasks: int = setting(25, "tasks per meta-step", least=1)
    shots: int = setting(10, "support points of a task", least=1)
    queries: int = setting(10, "query points of a task in training", least=1)
    steps: int = setting(1, "inner steps in training", least=0)
    width: int = setting(40, "units of each of the two hidden layers", least=1)

    def check_budget(self) -> None:
        """No meta-step at all shows what chance gave."""

    def prepare(self) -> Prepared:
        training = Sinusoids(shots=self.shots, queries=self.queries)
        judged = Sinusoids(shots=self.shots, queries=QUERIES)
        arguments = {"sizes": [1, self.width, self.width, 1], "activation": "relu"}
        return Prepared(Splits(training, judged, judged), "mlp", arguments, {"shots": self.shots})

    def draw(self, out: Path, learner: MAML, history: History) -> None:
        """sinusoid.png: four tasks before and after 1 and 10 steps, and the learning curve."""
        tasks, device = Sinusoids(shots=self.shots, queries=QUERIES), next(learner.parameters()).device
        curves = tasks.curves(4, points=self.shots, generator=generator(self.seed, TEST, 1))
        x = torch.linspace(*tasks.x, 200).view(1, -1, 1).expand(4, -1, -1)
        lines = {"true": curves.at(x)}
        for steps, label in ((0, "before"), (1, "1 step"), (10, "10 steps")):
            with torch.no_grad():
                query = (x.to(device), curves.at(x).to(device))
                lines[label] = learner((curves.x.to(device), curves.y.to(device)), query, steps=steps).logits.cpu()
        picture = figure(10, 6)
        shape = picture.add_gridspec(3, 2)
        for task in range(4):
            axes = picture.add_subplot(shape[task // 2, task % 2])
            for (label, values), style in zip(lines.items(), ("k-", "C7:", "C0--", "C3-"), strict=True):
                axes.plot(x[task].flatten(), values[task].flatten(), style, label=label, linewidth=1.2)
            axes.plot(curves.x[task].flatten(), curves.y[task].flatten(), "k^", markersize=5, label="support")
            if task == 0:
                axes.legend(fontsize=7, ncol=2)
        axes = picture.add_subplot(shape[2, :])
        at = [row["meta_step"] for row in history.train]
        for name, label, colour in (("before", "before adaptation", "C7"), ("after", "after adaptation", "C0")):
            axes.plot(at, [row[name] for row in history.train], colour, linewidth=0.8, label=label)
        axes.set(xlabel="meta-step", ylabel="mean squared error", yscale="log")
        axes.legend(fontsize=7)
        write(picture, out / "sinusoid.png")
