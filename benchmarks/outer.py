"""What a whole step of an ordinary training loop costs: metafast's, and a graph with torch's Adam, beside the
meta-gradient alone.

``python -m benchmarks outer``. The gradient of every loop is checked first, and the weights after some steps against
the plain loop's under torch's Adam; then all take turns.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import metafast as mf
from benchmarks import machine
from benchmarks.check import EXACT, Judge, Wrong, distance, vector
from benchmarks.rivals import Step, loop
from benchmarks.rivals.metafast import learner
from benchmarks.table import Result, columns, conditions, number
from benchmarks.timing import Effort, rounds, summary, turn
from benchmarks.workloads import W1, Problem, Workload

BASE = "meta_gradient alone"
NATIVE = "maml.backward, mf.optim.Adam"
LR = 1e-3
#: After which weights are compared.
CHECKED_STEPS = 5


def loops(problem: Problem) -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
    """A model of its own and a step, for each way to write the loop."""
    support, query = problem.support, problem.query

    def by_graph(**options: Any) -> tuple[nn.Module, Callable[[], Any]]:
        maml = learner(copy.deepcopy(problem))
        optimiser = torch.optim.Adam(maml.parameters(), LR, **options)

        def step() -> None:
            optimiser.zero_grad()
            maml(support, query).loss.backward()
            optimiser.step()

        return maml.model, step

    def natively() -> tuple[nn.Module, Callable[[], Any]]:
        maml = learner(copy.deepcopy(problem))
        optimiser = mf.optim.Adam(maml.parameters(), LR)

        def step() -> None:
            optimiser.zero_grad()
            maml.backward(support, query)
            optimiser.step()

        return maml.model, step

    return {
        NATIVE: natively(),
        "loss.backward, torch.optim.Adam": by_graph(),
        "loss.backward, torch.optim.Adam(fused=True)": by_graph(fused=True),
    }


def check(workload: Workload) -> dict[str, dict[str, float]]:
    """Errors of each loop's gradient in both dtypes, and of its weights; Wrong if one is more than rounding."""
    judge = Judge(workload)
    trained = vector(by_hand(workload.problem(torch.float64)))
    errors: dict[str, dict[str, float]] = {}
    for dtype, judged in ((torch.float32, judge.single), (torch.float64, judge.double)):
        for name, (model, step) in loops(workload.problem(dtype)).items():
            step()
            found = errors.setdefault(name, {})
            found[str(dtype)] = judged([p.grad for p in model.parameters()])
            if dtype == torch.float64:
                for _ in range(CHECKED_STEPS - 1):
                    step()
                found["weights"] = distance(vector([*model.parameters()]), trained)
                if not found["weights"] <= EXACT:
                    raise Wrong(f"{name}: weights are off by {found['weights']:.1e} after {CHECKED_STEPS} steps")
    return errors


def by_hand(problem: Problem) -> list[torch.Tensor]:
    """Weights after steps of torch's Adam on the gradients of the loop over tasks."""
    parameters = [*problem.parameters.values()]
    optimiser = torch.optim.Adam(parameters, LR)
    gradient: Step = loop.meta_gradient(problem)[""]
    for _ in range(CHECKED_STEPS):
        for p, g in zip(parameters, gradient(), strict=True):
            p.grad = g
        optimiser.step()
    return parameters  # type: ignore[return-value]


def measure(effort: Effort, command: str, say: Callable[[str], None], workload: Workload = W1) -> Result:
    """A row for each loop; Wrong if its answer is."""
    begin = time.time()
    result: Result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "command": command,
        "machine": machine.describe(),
        "title": f"{workload.title}, {workload.tasks} tasks",
    }
    say(result["title"])
    errors = check(workload)
    problem = workload.problem()
    maml = learner(problem)
    steps: dict[str, Callable[[], Any]] = {BASE: lambda: maml.meta_gradient(problem.support, problem.query)}
    steps |= {name: step for name, (_, step) in loops(problem).items()}
    times: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in rounds(effort):
        for name, step in steps.items():
            times[name].append(turn(step, effort.turn))
    result["rows"] = [
        {
            "name": name,
            **errors.get(name, {}),
            **summary([*itertools.chain(*turns)]),
            "ratio": _ratio(turns, times[BASE]),
        }
        for name, turns in times.items()
    ]
    result["seconds"] = time.time() - begin
    return result


def _ratio(turns: list[list[float]], base: list[list[float]]) -> float:
    """The median over rounds, in which both have taken a turn."""
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in zip(turns, base, strict=True))


def table(result: Result) -> str:
    rows = [[row["name"], number(row["ms"]), f"{row['ratio']:.2f}"] for row in result["rows"]]
    title = f"{result['title']}: milliseconds of zero_grad, backward and step, float32"
    return "\n".join([title, "", *columns([["", "ms", "times the first"], *rows]), "", *conditions(result)])
