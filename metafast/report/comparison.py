"""Several runs side by side: what differs in their settings, their results, their curves over each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from metafast.files import replacing
from metafast.report import charts, numbers
from metafast.report.markup import Markup, join, page, section, table, tag
from metafast.report.numbers import Measured
from metafast.report.run import Run, read
from metafast.report.writing import DRAWN
from metafast.run_folder import RunFolder

BEST, CLOSE = "★", "≈"
KEY = f"{BEST} the best of its row; {CLOSE} its 95 % interval overlaps with that of the best."
#: What takes the place of signs that not every terminal has.
PLAIN = {BEST: "*", CLOSE: "~", "±": "+-", "²": "2", "\u202f": ""}
#: Together they tell twenty runs apart.
COLOURS, DASHES = (charts.ONE, charts.TWO, charts.THREE, charts.FOUR, charts.INK), ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Group:
    """Runs on the same tasks, which may be compared."""

    title: str
    runs: list[tuple[str, Run]]  # each with a name that no other run of the page has
    differing: list[str]  # settings
    metrics: list[tuple[str, int | None]]  # what is compared: a metric after so many inner steps

    def measured(self, run: Run, metric: tuple[str, int | None]) -> Measured | None:
        return numbers.curves(run.part("results")).get(metric[0], {}).get(metric[1])

    def mark(self, run: Run, metric: tuple[str, int | None]) -> str:
        """Whether the run is the best of its row, or as good as far as one can tell; only of several runs."""
        there = [value for _, other in self.runs if (value := self.measured(other, metric)) is not None]
        own = self.measured(run, metric)
        if own is None or len(there) < 2:
            return ""
        best = (max if numbers.grows(metric[0]) else min)(there, key=lambda value: value.mean)
        return BEST if own.mean == best.mean else CLOSE if own.overlaps(best) else ""


def compare(folders: Sequence[str | Path], path: str | Path) -> str:
    """Write a page that compares the runs in ``folders`` to ``path``, and return its tables as plain text.

    Runs on different tasks are shown in groups, for their results cannot be compared. ValueError for fewer than two
    folders or one that holds no run.
    """
    if len(folders) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(folders)}")
    found = groups([read(folder) for folder in folders])
    with replacing(path) as file:
        file.write(_page(found, Path(path).parent).encode("utf-8"))
    return "\n\n".join(_text(group) for group in found)


def groups(runs: Sequence[Run]) -> list[Group]:
    names = _names(runs)
    by_task: dict[tuple[str, ...], list[tuple[str, Run]]] = {}
    for name, run in zip(names, runs, strict=True):
        by_task.setdefault(run.task, []).append((name, run))
    return [_group(task, members) for task, members in by_task.items()]


def _names(runs: Sequence[Run]) -> list[str]:
    """The end of each folder's path, as short as tells them all apart."""
    paths = [run.folder.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"the same run is named twice: {', '.join(str(run.folder) for run in runs)}")
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path.parts[-length:]) for path in paths]


def _group(task: tuple[str, ...], members: list[tuple[str, Run]]) -> Group:
    settings = [numbers.flat(run.part("settings")) for _, run in members]
    names = dict.fromkeys(name for own in settings for name in own)
    differing = [name for name in names if len({str(own.get(name)) for own in settings}) > 1]
    metrics: dict[tuple[str, int | None], None] = {}
    for _, run in members:
        for metric, curve in numbers.curves(run.part("results")).items():
            metrics.update(((metric, steps), None) for steps in sorted(curve, key=lambda k: -1 if k is None else k))
    return Group(", ".join(task), members, differing, list(metrics))


def _heading(metric: tuple[str, int | None]) -> str:
    name, steps = metric
    return numbers.label(name) + ("" if steps is None else f", {steps} step" + ("" if steps == 1 else "s"))


# ---- The page ------------------------------------------------------------------------
def _page(found: Sequence[Group], folder: Path) -> str:
    count = sum(len(group.runs) for group in found)
    lead = f"{count} runs on {'the same tasks' if len(found) == 1 else f'{len(found)} kinds of tasks, each by itself'}."
    return page(
        "Comparison of runs – metafast",
        tag("header", tag("h1", "Comparison of runs"), tag("p", lead, class_="lead"), *map(_headline, found)),
        *(section(group.title, *_parts(group, folder)) for group in found),
        tag(
            "footer",
            tag("p", "Intervals are 95 % confidence intervals of the mean over test tasks. Written by metafast."),
        ),
    )


def _headline(group: Group) -> Markup | None:
    """Which run is ahead, in a sentence."""
    known = [curve for _, run in group.runs for curve in [numbers.curves(run.part("results"))] if curve]
    metric = numbers.main_metric(known[0]) if known else None
    if metric is None:
        return None
    last = max((m for m in group.metrics if m[0] == metric), key=lambda m: -1 if m[1] is None else m[1])
    marks = {name: group.mark(run, last) for name, run in group.runs}
    best = next((name for name, mark in marks.items() if mark == BEST), None)
    if best is None:
        return None
    close = [name for name, mark in marks.items() if mark == CLOSE]
    more = f"; as good, as far as the intervals tell: {', '.join(close)}" if close else ""
    value = group.measured(dict(group.runs)[best], last)
    said = numbers.written(value, metric) if value else ""
    return tag("p", f"{group.title}: best in {_heading(last)} is ", tag("strong", best), f" with {said}{more}.")


def _parts(group: Group, folder: Path) -> list[Markup | None]:
    head = ["setting or result", *(_link(name, run, folder) for name, run in group.runs)]
    settings = [numbers.flat(run.part("settings")) for _, run in group.runs]
    rows: list[list[Any]] = [
        [c, *(numbers.exactly(own[c]) if c in own else "–" for own in settings)] for c in group.differing
    ]
    for metric in group.metrics:
        cells = [
            join(numbers.cell(group.measured(run, metric), metric[0]), _marked(group.mark(run, metric)))
            for _, run in group.runs
        ]
        rows.append([_heading(metric), *cells])
    rows.append(["meta-steps", *(numbers.exactly(run.facts.get("meta_steps", "–")) for _, run in group.runs)])
    rows.append(["training time", *(_time(run) for _, run in group.runs)])
    rows.append(["state", *(_state(run) for _, run in group.runs)])
    caption = ("Settings that differ, and results" if group.differing else "Results") + " on test tasks ± 95 % interval"
    return [
        table(caption, head, rows, class_="numbers compared"),
        tag("p", KEY, class_="note") if len(group.runs) > 1 else None,
        charts.grid(*_curves(group)) if charts.available() else tag("p", charts.MISSING, class_="note"),
    ]


def _link(name: str, run: Run, folder: Path) -> Markup:
    """To the run's own report, from a page in ``folder``."""
    report = RunFolder(run.folder.resolve()).report
    if not report.is_file():
        return join(name)
    return tag("a", name, href=quote(Path(os.path.relpath(report, folder.resolve())).as_posix()))


def _marked(mark: str) -> Markup:
    """A sign, for which every cell leaves the same room."""
    says = {BEST: "the best", CLOSE: "not told from the best"}.get(mark)
    class_ = "mark best" if mark == BEST else "mark"
    return tag("span", mark, class_=class_, role="img" if mark else None, aria_label=says)


def _time(run: Run) -> str:
    seconds = run.facts.get("seconds")
    return numbers.duration(seconds) if isinstance(seconds, (int, float)) else "–"


def _state(run: Run) -> str:
    return "finished" if run.finished else run.stopped


def _curves(group: Group) -> list[Markup | None]:
    losses = {name: run.series("train", "after") for name, run in group.runs}
    figures = [_overlaid(losses, "loss after adaptation, training", "meta-step", log=True)]
    found = {name: numbers.curves(run.part("results")) for name, run in group.runs}
    for metric in list(dict.fromkeys(name for name, _ in group.metrics))[:DRAWN]:
        scale = 100.0 if numbers.percent(metric) else 1.0
        over = {
            name: [(k, scale * m.mean, scale * m.interval) for k, m in curves[metric].items() if k is not None]
            for name, curves in found.items()
            if metric in curves
        }
        if any(len(rows) > 1 for rows in over.values()):
            label = numbers.label(metric) + (", %" if scale == 100 else "")
            figures.append(_overlaid({k: sorted(v) for k, v in over.items()}, label, "inner steps", log=scale == 1))
    return figures


def _overlaid(rows: Mapping[str, Sequence[tuple[float, ...]]], what: str, along: str, *, log: bool) -> Markup | None:
    """One line for each run, told apart by colour and by dashes."""
    rows = {name: values for name, values in rows.items() if values}
    if not rows:
        return None

    def draw(axes: Any) -> None:
        for i, (name, values) in enumerate(rows.items()):
            colour, style = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            x, y, *width = zip(*values, strict=True)
            if width:
                charts.band(axes, x, y, width[0], colour=colour, label=name, style=f"o{style}")
            else:
                charts.lines(axes, x, y, colour=colour, label=name, style=style)
        if width:
            axes.set_xticks(sorted({row[0] for values in rows.values() for row in values}))
        if log:
            charts.logarithmic(axes, *([row[1] for row in values] for values in rows.values()))
        axes.set(xlabel=along, ylabel=what)
        axes.legend()

    ends = "; ".join(f"{name}: {numbers.number(values[-1][1])}" for name, values in rows.items())
    return charts.chart(draw, says=f"{what} over {along}, at the end {ends}.", caption=f"{what[0].upper()}{what[1:]}.")


# ---- As text -------------------------------------------------------------------------
def _text(group: Group) -> str:
    settings = [numbers.flat(run.part("settings")) for _, run in group.runs]
    rows = [["", *(name for name, _ in group.runs)]]
    rows += [[c, *(numbers.number(own[c]) if c in own else "-" for own in settings)] for c in group.differing]
    for metric in group.metrics:
        values = [(group.measured(run, metric), group.mark(run, metric)) for _, run in group.runs]
        rows.append(
            [
                _heading(metric),
                *("-" if v is None else f"{numbers.written(v, metric[0])} {m}".strip() for v, m in values),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    text = "\n".join([group.title, *lines, *([KEY] if len(group.runs) > 1 else [])])
    for sign, plain in PLAIN.items():
        text = text.replace(sign, plain)
    return text
