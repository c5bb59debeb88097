"""The numbers of run.json: which of them are estimates, how they are written, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metafast.report.markup import Markup, join, tag

#: Words in the name of a metric that grows as learning succeeds; of any other, less is better.
GROWING = ("accuracy", "r2", "return", "reward", "auc")
LABELS = {
    "accuracy": "accuracy",
    "loss": "query loss",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "r2": "R²",
    "error": "mean squared error",
}


@dataclass(frozen=True)
class Measured:
    """A mean over tasks with the half-width of its 95 % interval."""

    mean: float
    interval: float
    tasks: int | None = None

    def overlaps(self, other: Measured) -> bool:
        return abs(self.mean - other.mean) <= self.interval + other.interval


#: Names of parts of the results that say nothing to a reader.
PASSED_OVER = ("test", "estimates")

#: By inner steps; the key is None where the results do not say.
Curve = dict[int | None, Measured]


def grows(metric: str) -> bool:
    return any(word in metric.lower() for word in GROWING)


def percent(metric: str) -> bool:
    return "accuracy" in metric.lower()


def label(metric: str) -> str:
    """``accuracy`` and the like in words; a name that nobody knows with its underscores as spaces."""
    *of, name = metric.split(", ")
    name = name.removesuffix("_after_steps")
    return ", ".join([*of, LABELS.get(name, name.replace("_", " "))])


def curves(results: Mapping[str, Any]) -> dict[str, Curve]:
    """Every estimate in ``results``, however deep: metric -> inner steps -> estimate.

    An estimate is a dictionary with ``mean`` and ``interval``, None for what is not a number; a key that is a number
    counts inner steps.
    """
    found: dict[str, Curve] = {}
    for path, value in _walk(results):
        if isinstance(value, Mapping):
            steps = int(path[-1]) if path[-1].isdigit() else None
            names = [name for name in (path if steps is None else path[:-1]) if name not in PASSED_OVER]
            mean, interval = (math.nan if value[key] is None else float(value[key]) for key in ("mean", "interval"))
            tasks = value.get("tasks")
            measured = Measured(mean, interval, None if tasks is None else int(tasks))
            found.setdefault(", ".join(names), {})[steps] = measured
    return found


def plain(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is in ``results`` beside the estimates and the inner steps that they are for."""
    return {
        ", ".join(p): v
        for p, v in _walk(results)
        if not isinstance(v, Mapping) and not (p[-1] == "steps" and isinstance(v, list))
    }


def _walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves and estimates."""
    if isinstance(value, Mapping) and not {"mean", "interval"} <= value.keys():
        for key, inner in value.items():
            yield from _walk(inner, (*path, str(key)))
    else:
        yield path or ("",), value


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with dots between the names."""
    return {".".join(path): value for path, value in _walk(settings)}


def main_metric(found: Mapping[str, Curve]) -> str | None:
    """The one that a headline is about: an accuracy, or else the first."""
    return next((name for name in found if percent(name)), next(iter(found), None))


def last(curve: Curve) -> tuple[int | None, Measured]:
    """The estimate after the most inner steps."""
    steps = max(curve, key=lambda steps: -1 if steps is None else steps)
    return steps, curve[steps]


def written(measured: Measured, metric: str, *, interval: bool = True) -> str:
    """``93.12 % ± 0.41 %``: as many digits as the interval leaves meaningful."""
    scale, unit = (100.0, " %") if percent(metric) else (1.0, "")
    mean, width = scale * measured.mean, scale * measured.interval
    if not (math.isfinite(mean) and math.isfinite(width)):
        return f"{number(mean)}{unit}"
    digits = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 2
    return f"{mean:.{digits}f}{unit}" + (f" ± {width:.{digits}f}{unit}" if interval else "")


def cell(measured: Measured | None, metric: str) -> Markup:
    """The estimate as a table shows it; its full digits are in the elements' values."""
    if measured is None:
        return join("–")
    mean, _, width = written(measured, metric).partition(" ± ")
    shown = tag("data", mean, value=measured.mean, class_="mean")
    return join(shown, tag("data", f" ± {width}", value=measured.interval, class_="interval") if width else None)


def number(value: Any) -> str:
    """A number as people write it: thousands apart, four digits after the point of what is not whole."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("infinite" if value > 0 else "minus infinite")
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"


def exactly(value: Any) -> Markup:
    """A setting: numbers with their full digits as the element's value, lists and truths in words."""
    if isinstance(value, bool):
        return join("yes" if value else "no")
    if isinstance(value, (int, float)):
        return tag("data", number(value), value=value)
    if value is None:
        return join("none")
    if isinstance(value, (list, tuple)):
        parts = [part for item in value for part in (", ", exactly(item))][1:]
        return join(*parts)
    return join(value)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{int(minutes // 60)} h {int(minutes % 60)} min"
