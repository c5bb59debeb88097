"""What a model costs that has no native form: metafast with ``backend="torch"`` beside the loop over tasks.

``python -m benchmarks fallback``, on the networks of :mod:`benchmarks.networks`, which run natively otherwise. Every
gradient is checked first, then both take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import networks
from benchmarks.networks import LOOP, OURS, torch_forms
from benchmarks.networks.cases import Problem
from benchmarks.rivals import Forms
from benchmarks.table import Result, columns, conditions, number
from benchmarks.timing import Effort


def contestants(_: str, problem: Problem) -> dict[str, Forms]:
    return {
        OURS: {"": torch_forms.metafast(problem, backend="torch")},
        LOOP: {"": lambda: torch_forms.loop(problem)},
    }


def measure(effort: Effort, command: str, say: Callable[[str], None], only: Sequence[str] | None = None) -> Result:
    """A row for each network; Wrong if a gradient is, ValueError for a name that none has."""
    return networks.of_each(only, command, say, lambda name, case: networks.row(name, case, effort, contestants))


def table(result: Result) -> str:
    rows = [["", LOOP, OURS, "times the loop", "error"]]
    for line in result["rows"]:
        times = [number(line["ms"][who]) for who in (LOOP, OURS)]
        rows.append([line["name"], *times, f"{1 / line['ratios'][LOOP]:.2f}", f"{line['errors'][OURS]:.0e}"])
    title = "Without native form: milliseconds for one exact meta-gradient by torch alone, float32."
    return "\n".join([title, "", *columns(rows), "", *conditions(result)])
