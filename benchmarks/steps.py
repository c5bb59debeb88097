"""Many inner steps: memory and time of metafast's policies as their number grows.

``python -m benchmarks steps``. Checkpoints keep every sqrt(K)-th step, so that memory over sqrt(K) stays the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import machine, memory, rules
from benchmarks.check import vector
from benchmarks.rivals import OURS, metafast
from benchmarks.table import Result, columns, conditions, number
from benchmarks.timing import Effort
from benchmarks.workloads import W5, Workload

STEPS = (100, 1_000, 10_000)
CHECKPOINT, RECOMPUTE = POLICIES = ("checkpoint", "recompute")


def measure(effort: Effort, command: str, say: Callable[[str], None], steps: Sequence[int] = STEPS) -> Result:
    """A row for each number of steps; Wrong if a gradient is."""
    begin = time.time()
    result: Result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "command": command,
        "machine": machine.describe(),
        "title": f"MLP 32-64-64-1 tanh, {W5.tasks} tasks",
        "rows": [],
    }
    for count in steps:
        say(f"{count} steps")
        result["rows"].append(row(replace(W5, steps=count), effort))
    result["seconds"] = time.time() - begin
    return result


def row(workload: Workload, effort: Effort) -> dict[str, Any]:
    # The float64 loop takes a second for a task's thousand steps: all tasks are then like the first.
    most = 1 if workload.steps >= memory.MANY_STEPS else workload.most_distinct
    by_policy = {policy: replace(workload, memory=policy, most_distinct=most) for policy in POLICIES}
    measured = rules.compare(rules.Group("", by_policy, (RECOMPUTE,)), effort)
    for made in measured:
        made["bytes"] = memory.growth(OURS, workload, made["name"])
    return {"steps": workload.steps, "policies": measured, "same_bits": same_bits(workload)}


def same_bits(workload: Workload) -> bool:
    """Whether both policies give the very same gradient."""
    problem = workload.problem()
    one, other = (vector(metafast.meta_gradient(problem, policy)[""]()) for policy in POLICIES)
    return np.array_equal(one, other)


HEAD = (
    "steps K", "checkpoints, MB", "kB / sqrt(K)", "recomputed, MB", "checkpoints, ms", "recomputed, ms", "ratio",
    "same bits",
)  # fmt: skip


def table(result: Result) -> str:
    rows = [list(HEAD)]
    for line in result["rows"]:
        kept, again = line["policies"]
        per_root = kept["bytes"] / 1e3 / math.sqrt(line["steps"])
        cells = [f"{kept['bytes'] / 1e6:.1f}", f"{per_root:.1f}", f"{again['bytes'] / 1e6:.1f}"]
        cells += [number(kept["ms"]), number(again["ms"]), f"{kept['ratios'][RECOMPUTE]:.2f}"]
        cells += ["yes" if line["same_bits"] else "no"]
        rows.append([f"{line['steps']:,}".replace(",", " "), *cells])
    title = f"{result['title']}: growth of resident memory, and time of one exact meta-gradient, float32"
    return "\n".join([title, "", *columns(rows), "", *conditions(result)])
