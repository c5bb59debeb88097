"""How well several methods do on the same tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metafast.training.evaluation import Estimate


@dataclass(frozen=True)
class Result:
    """One method on the tasks of a comparison."""

    method: str
    per_task: Tensor  # [tasks], accuracy on the query set
    lr: float | None  # of its steps on the support set, as it was chosen; None where it takes none
    preparation: float  # seconds: the choice of lr, and meta-training
    adaptation: float  # seconds for one task: its steps and its predictions

    @property
    def accuracy(self) -> Estimate:
        return Estimate.of(self.per_task)


@dataclass(frozen=True)
class Comparison:
    """Results of methods on the same tasks; ``print`` shows a table."""

    results: tuple[Result, ...]

    def __getitem__(self, method: str) -> Result:
        found = {result.method: result for result in self.results}
        if method not in found:
            raise KeyError(f"{method!r} was not compared; there are {', '.join(map(repr, found))}")
        return found[method]

    def difference(self, method: str, other: str) -> Estimate:
        """Accuracy of ``method`` minus that of ``other``, task by task: its interval is of the differences, which on
        the same tasks vary less than either."""
        return Estimate.of(self[method].per_task - self[other].per_task)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            result.method: {
                "accuracy": result.accuracy.mean,
                "interval": result.accuracy.interval,
                "tasks": len(result.per_task),
                "lr": result.lr,
                "preparation_seconds": result.preparation,
                "adaptation_seconds_per_task": result.adaptation,
                "per_task": result.per_task.tolist(),
            }
            for result in self.results
        }

    def __str__(self) -> str:
        rows = [("method", "accuracy", "lr", "preparation", "a task")]
        for each in self.results:
            rate = "" if each.lr is None else f"{each.lr:g}"
            seconds = f"{each.preparation:.1f} s" if each.preparation else ""
            rows.append((each.method, each.accuracy.percent(), rate, seconds, f"{1e3 * each.adaptation:.1f} ms"))
        lines = _aligned(rows)
        tasks = len(self.results[0].per_task) if self.results else 0
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], f"mean of {tasks} tasks, 95 % interval"])


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
