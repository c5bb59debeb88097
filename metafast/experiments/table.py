"""Few-shot regression on a table whose rows lie in groups: a group (a patient, a country) is a task.

From some rows of a group the network learns to predict a column of its other rows. Numbers are standardised by the rows
of the groups to train on; errors are in standard deviations of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from metafast.experiments.experiment import Examples, Experiment, Inputs, Prepared
from metafast.experiments.settings import setting
from metafast.tasks import GroupedTable, columns
from metafast.tasks.table import GroupTasks, Scale


@dataclass(frozen=True, kw_only=True)
class Table(Experiment):
    NAME: ClassVar[str] = "table"
    LOSS: ClassVar[str] = "mse"
    METRIC: ClassVar[str] = "rmse"
    TAKES_FILES: ClassVar[bool] = True

    data: Path = setting(..., "CSV or TSV file, plain or .gz, whose first line names the columns", fixed=False)
    group: str = setting(..., "column that says to which group a row belongs")
    target: str = setting(..., "column to predict")
    features: tuple[str, ...] = setting((), "columns to predict from (default: all others)")
    shots: int = setting(10, "support rows of a task", least=1)
    queries: int = setting(10, "query rows of a task", least=1)
    skip_small: bool = setting(True, "leave out groups of too few rows, instead of stopping")
    hidden: tuple[int, ...] = setting((64, 64), "units of the hidden layers", least=1)
    activation: str = setting("relu", "between the layers", choices=("relu", "tanh", "silu", "gelu", "elu"))
    steps: int = setting(5, "inner steps in training", least=0)
    meta_steps: int = setting(5000, "meta-steps to train at most; 0: no limit", least=0, fixed=False)

    def prepare(self) -> Prepared:
        table = GroupedTable.read_csv(
            self.data, group=self.group, target=self.target, features=list(self.features) or None
        )
        tasks = table.splits(shots=self.shots, queries=self.queries, seed=self.seed, skip_small=self.skip_small)
        part = tasks.train
        assert isinstance(part, GroupTasks)
        task = {
            "shots": self.shots,
            "features": list(table.features),
            "target": self.target,
            "x_scale": [part.x_scale.mean.tolist(), part.x_scale.deviation.tolist()],
            "y_scale": [part.y_scale.mean.tolist(), part.y_scale.deviation.tolist()],
        }
        arguments = {"sizes": [len(table.features), *self.hidden, 1], "activation": self.activation}
        return Prepared(tasks, "mlp", arguments, task)

    @classmethod
    def read_examples(cls, task: dict[str, Any], path: Path) -> Examples:
        table = columns.read(path)
        table.require(numbers=(*task["features"], task["target"]))
        y = torch.from_numpy(table.numbers(task["target"]))[:, None]
        return Examples(_inputs(task, table), _scale(task["y_scale"]).apply(y).float())

    @classmethod
    def read_inputs(cls, task: dict[str, Any], path: Path) -> Inputs:
        table = columns.read(path)
        table.require(numbers=task["features"])
        return Inputs(_inputs(task, table), tuple(map(str, range(1, len(table.rows) + 1))))

    @classmethod
    def columns(cls, task: dict[str, Any], outputs: Tensor, class_names: tuple[str, ...]) -> dict[str, list[Any]]:
        return {f"predicted {task['target']}": _scale(task["y_scale"]).undo(outputs.double())[:, 0].tolist()}


def _inputs(task: dict[str, Any], table: columns.Columns) -> Tensor:
    x = torch.stack([torch.from_numpy(table.numbers(name)) for name in task["features"]], 1)
    return _scale(task["x_scale"]).apply(x).float()


def _scale(stored: list[list[float]]) -> Scale:
    mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in stored)
    return Scale(mean, deviation)
