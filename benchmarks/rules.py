"""What a rule costs: metafast's time with momentum and Adam as a multiple of plain gradient descent's, and what inner
steps cost where only the last layer moves.

``python -m benchmarks rules``. Every gradient is checked first, then all of a group take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import machine
from benchmarks.check import Judge
from benchmarks.rivals import OURS, Step
from benchmarks.run import PATIENCE, contestant
from benchmarks.table import Result, columns, conditions, number
from benchmarks.timing import Effort, rounds, summary, turn
from benchmarks.updates import ADAM, MOMENTUM
from benchmarks.workloads import PER_ELEMENT, W1, W2, W3, Workload

TEN = 10  # inner steps


@dataclass(frozen=True)
class Group:
    """Workloads by what tells them apart, and those of them that the others are compared with."""

    title: str
    workloads: dict[str, Workload]
    bases: tuple[str, ...]


def rules(workload: Workload, adam_lr: float, name: str = "") -> dict[str, Workload]:
    """Plain gradient descent, momentum and Adam, ``name`` behind each."""
    plain = replace(workload, steps=TEN)
    return {
        f"SGD{name}": plain,
        f"momentum{name}": replace(plain, rule=MOMENTUM),
        f"Adam{name}": replace(plain, rule=ADAM, lr=adam_lr),
    }


def last_layer(steps: int) -> Workload:
    """ANIL: the convolutions are meta-learnt, the inner loop moves the last layer alone."""
    *_, name = (key for key, _ in W3.network().named_parameters())
    return replace(W3, steps=steps, adapts=name.partition(".")[0] + ".*")


#: A rate per element rules out the first layer's products with its data (docs/maths.md, section 7), and is the way to
#: time gradient descent without them.
GROUPS = (
    Group("MLP 1-40-40-1 ReLU, 25 tasks, 10 steps", rules(W1, 0.01), ("SGD",)),
    Group(
        "MLP 784-64-64-10 ReLU, 16 tasks, 10 steps",
        rules(W2, 0.001) | rules(replace(W2, rates=PER_ELEMENT), 0.001, ", a rate per element"),
        ("SGD", "SGD, a rate per element"),
    ),
    Group(
        "Conv-4, 64 channels, 1x28x28, 8 tasks, last layer alone (ANIL)",
        {"1 step": last_layer(1), "10 steps": last_layer(TEN)},
        ("1 step",),
    ),
)


def measure(effort: Effort, command: str, say: Callable[[str], None]) -> Result:
    """All groups; Wrong if a gradient is."""
    begin = time.time()
    result: Result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "command": command,
        "machine": machine.describe(),
        "groups": [],
    }
    for group in GROUPS:
        say(group.title)
        result["groups"].append({"title": group.title, "bases": group.bases, "rows": compare(group, effort)})
    result["seconds"] = time.time() - begin
    return result


def compare(group: Group, effort: Effort) -> list[dict[str, Any]]:
    """A row for each workload, with its ratio to each base: the median over rounds, in which all take a turn."""
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, workload in group.workloads.items():
        steps[name], checked = contestant(OURS, workload, Judge(workload), PATIENCE)
        rows[name] = {"name": name, **checked}
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in rounds(effort):
        for name, step in steps.items():
            times[name].append(turn(step, effort.turn))
    medians = {name: [statistics.median(calls) for calls in turns] for name, turns in times.items()}
    for name, row in rows.items():
        row.update(summary([call for calls in times[name] for call in calls]))
        row["ratios"] = {
            base: statistics.median(mine / its for mine, its in zip(medians[name], medians[base], strict=True))
            for base in group.bases
        }
    return list(rows.values())


def table(result: Result) -> str:
    lines = ["What a rule costs: metafast's milliseconds for one exact meta-gradient, float32."]
    for group in result["groups"]:
        bases = group["bases"]
        head = ["", "ms", *(f"times {base}" for base in bases)]
        rows = [[row["name"], number(row["ms"]), *(f"{row['ratios'][b]:.2f}" for b in bases)] for row in group["rows"]]
        lines += ["", group["title"], *columns([head, *rows])]
    return "\n".join([*lines, "", *conditions(result)])
