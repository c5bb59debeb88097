"""Networks that people adapt: metafast beside the loop over tasks, torch.func and JAX.

``python -m benchmarks networks``, or some of them: ``--only siren,transformer``. One exact meta-gradient in float32 is
timed; the same in float64 is checked first. Of a rival's forms the fastest counts. A ratio is the median over rounds,
in each of which all take a turn.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import machine
from benchmarks.check import EXACT, Vector, Wrong, distance, vector
from benchmarks.networks import torch_forms
from benchmarks.networks.cases import CASES, Case, Problem
from benchmarks.rivals import Forms, Step
from benchmarks.table import Result, columns, conditions, number
from benchmarks.timing import Effort, rounds, turn

OURS, LOOP, VMAP, JAX = "metafast", "loop over tasks", "torch.func", "JAX"
RIVALS = (LOOP, VMAP, JAX)
#: A float32 result may be this far from the exact one, or a quarter of the way to the first-order gradient. Kinks make
#: these errors; that the formula is right shows in float64.
NEAR = 0.05


def jax_is_installed() -> bool:
    return importlib.util.find_spec("jax") is not None


def steps(name: str, problem: Problem) -> dict[str, Forms]:
    """Every contestant's forms; without JAX where it is not installed."""
    made: dict[str, Forms] = {
        OURS: {"": torch_forms.metafast(problem)},
        LOOP: {"": lambda: torch_forms.loop(problem)},
        VMAP: {"": torch_forms.batched(problem)},
    }
    if jax_is_installed():
        from benchmarks.networks import jax_forms

        made[JAX] = jax_forms.forms(name, problem)
    return made


Contestants = Callable[[str, Problem], dict[str, Forms]]


def checked(name: str, case: Case, contestants: Contestants) -> tuple[dict[str, float], dict[tuple[str, str], Step]]:
    """Relative errors in float32, with that of the first order, and the steps in float32 to be timed; Wrong where a
    form's result in float64 is not the loop's, or one in float32 is not near."""
    doubled = Problem(case, torch.float64)
    exact = vector(torch_forms.loop(doubled))
    for contestant, forms in contestants(name, doubled).items():
        for step in forms.values():
            if not (error := distance(vector(step()), exact)) <= EXACT:
                raise Wrong(f"{name}: {contestant}'s float64 result is off by {error:.1e}")
    term = distance(vector(torch_forms.loop(doubled, first_order=True)), exact)
    if not term > 1e3 * EXACT:
        raise Wrong(f"{name}: first and second order are only {term:.1e} apart")
    errors, single = {"first order": term}, {}
    for contestant, forms in contestants(name, Problem(case)).items():
        for form, step in forms.items():
            errors[contestant] = max(errors.get(contestant, 0.0), near(f"{name}: {contestant}", step, exact, term))
            single[contestant, form] = step
    return errors, single


def near(what: str, step: Step, exact: Vector, term: float) -> float:
    error = distance(vector(step()), exact)
    if not error <= max(NEAR, term / 4):
        raise Wrong(f"{what}'s float32 result is off by {error:.1e}")
    return error


def row(name: str, case: Case, effort: Effort, contestants: Contestants = steps) -> dict[str, Any]:
    errors, single = checked(name, case, contestants)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in single}
    for _ in rounds(effort):
        for key, step in single.items():
            times[key].append(statistics.median(turn(step, effort.turn)))
    ours = times.pop((OURS, ""))
    made: dict[str, Any] = {"name": name, "errors": errors, "ms": {OURS: milliseconds(ours)}}
    made["ratios"] = {}
    for rival in RIVALS:
        forms = {form: found for (who, form), found in times.items() if who == rival}
        if forms:
            form = min(forms, key=lambda form: statistics.median(forms[form]))
            made["ms"][rival] = milliseconds(forms[form])
            made["ratios"][rival] = statistics.median(b / a for a, b in zip(ours, forms[form], strict=True))
    return made


def milliseconds(times: Sequence[float]) -> float:
    return 1e3 * statistics.median(times)


def measure(effort: Effort, command: str, say: Callable[[str], None], only: Sequence[str] | None = None) -> Result:
    """A row for each network; Wrong if a gradient is, ValueError for a name that none has."""
    return of_each(
        only,
        command,
        say,
        lambda name, case: row(name, case, effort) | {"runs": torch_forms.native(Problem(case))},
    )


def of_each(
    only: Sequence[str] | None, command: str, say: Callable[[str], None], row: Callable[[str, Case], dict[str, Any]]
) -> Result:
    """The rows of all networks, or of those in ``only``, with where and when they were made; ValueError."""
    if unknown := [name for name in only or () if name not in CASES]:
        raise ValueError(f"no network {', '.join(unknown)}; there are {', '.join(CASES)}")
    begin = time.time()
    result: Result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "command": command,
        "machine": machine.describe(),
        "rows": [],
    }
    for name in only or CASES:
        say(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result["rows"].append(row(name, CASES[name]))
        gc.collect()
    result["seconds"] = time.time() - begin
    return result


def table(result: Result) -> str:
    rivals = [rival for rival in RIVALS if rival in result["rows"][0]["ms"]]
    head = ["", *rivals, OURS, "times the best", "error", "of the loop", "of first order"]
    cells = []
    for line in result["rows"]:
        times = [number(line["ms"][rival]) for rival in (*rivals, OURS)]
        errors = [f"{line['errors'][what]:.0e}" for what in (OURS, LOOP, "first order")]
        cells.append([line["name"], *times, f"{min(line['ratios'].values()):.2f}", *errors])
    lines = ["Milliseconds for one exact meta-gradient, float32; relative errors as against the loop in float64."]
    lines += ["", *columns([head, *cells])]
    lines += [f"{line['name']}: {line['runs']}" for line in result["rows"] if line["runs"] != "native"]
    return "\n".join([*lines, "", *conditions(result)])
