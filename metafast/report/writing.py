"""report.html: what a run came to, on one page that needs nothing else."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metafast.files import replacing
from metafast.report import charts, numbers
from metafast.report import example as kept
from metafast.report.example import Example
from metafast.report.gallery import gallery
from metafast.report.markup import Markup, join, page, section, table, tag
from metafast.report.numbers import Curve, Measured
from metafast.report.run import Run, read
from metafast.run_folder import RunFolder

#: Metrics whose curves over inner steps are drawn, at most.
DRAWN = 2


def write(
    folder: str | Path, examples: Sequence[Example] | None = None, results: Mapping[str, Any] | None = None
) -> Path:
    """Write ``report.html`` into the folder of a run, finished or not, and return its path.

    ``examples`` (from :func:`metafast.report.examples`) are kept beside it and ``results`` (such as
    ``mf.evaluate(...).as_dict()``) in ``run.json``, so that the page can be written again; None means those that were
    kept. ValueError says what is wrong with the folder.
    """
    run, files = read(folder), RunFolder(folder)
    if results is not None:
        files.update(results=results)
        run = read(folder)
    if examples is not None:
        kept.save(files.examples, examples)
    elif files.examples.is_file():
        examples = kept.load(files.examples)
    with replacing(files.report) as file:
        file.write(text(run, examples or ()).encode("utf-8"))
    return files.report


def leave(folder: str | Path, examples: Sequence[Example] | None = None) -> None:
    """:func:`write` at the end of a run, which is worth more than its page: one that cannot be written is a warning."""
    try:
        write(folder, examples)
    except (OSError, ValueError) as error:
        warnings.warn(f"the run has no report: {error}", RuntimeWarning, stacklevel=2)


def text(run: Run, examples: Sequence[Example]) -> str:
    found = numbers.curves(run.part("results"))
    return page(
        f"{run.name} – metafast",
        tag(
            "header",
            tag("h1", run.name),
            tag("p", sentence(run, found), class_="lead"),
            _state(run),
            _tiles(run, found),
        ),
        section("Results", *_results(run, found)),
        section("Example tasks", *_examples(examples)),
        section("Training", *_training(run)),
        tag(
            "div",
            section("Settings", _pairs("Settings of the run", numbers.flat(run.part("settings")))),
            section("Machine", _pairs("What the run ran on", numbers.flat(run.part("machine")))),
            class_="columns",
        ),
        section("How to reproduce", *_reproduce(run)),
        tag("footer", tag("p", "Intervals are 95 % confidence intervals of the mean over tasks. Written by metafast.")),
    )


# ---- The head ------------------------------------------------------------------------
def sentence(run: Run, found: Mapping[str, Curve]) -> str:
    """The result in one sentence."""
    metric = numbers.main_metric(found)
    if metric is None:
        return f"No results on test tasks yet, after {numbers.number(run.facts.get('meta_steps', 0))} meta-steps."
    curve = found[metric]
    steps, measured = numbers.last(curve)
    name = numbers.label(metric)
    said = f"{name[0].upper()}{name[1:]} on unseen tasks is {numbers.written(measured, metric)}"
    if steps is not None:
        said += f" after {steps} inner step" + ("" if steps == 1 else "s")
        if steps and 0 in curve:
            said += f", {numbers.written(curve[0], metric, interval=False)} before adaptation"
    return said + "."


def _state(run: Run) -> Markup | None:
    """What to know of a run that has not come to its end."""
    if run.finished:
        return None
    return tag(
        "p",
        tag("strong", "Not finished: "),
        f"{run.state}, after {numbers.number(run.facts.get('meta_steps', 0))} meta-steps. The page shows that moment.",
        class_="warning",
    )


def _tiles(run: Run, found: Mapping[str, Curve]) -> Markup:
    tiles: list[tuple[str, Any]] = []
    metric = numbers.main_metric(found)
    if metric is not None:
        steps, measured = numbers.last(found[metric])
        after = "" if steps is None else f", {steps} step" + ("" if steps == 1 else "s")
        tiles.append((numbers.label(metric) + after, numbers.cell(measured, metric)))
    best = run.part("best")
    if isinstance(best.get("value"), (int, float)):
        name = str(best.get("metric") or "value")
        shown = numbers.written(Measured(best["value"], 0.0), name, interval=False)
        at = tag("span", "at meta-step ", numbers.exactly(best.get("meta_step")), class_="interval")
        tiles.append((f"best validation {numbers.label(name)}", join(tag("data", shown, value=best["value"]), at)))
    if isinstance(run.facts.get("meta_steps"), int):
        tiles.append(("meta-steps", numbers.exactly(run.facts["meta_steps"])))
    if isinstance(seconds := run.facts.get("seconds"), (int, float)):
        tiles.append(("training time", tag("data", numbers.duration(seconds), value=seconds)))
    state = run.state.removesuffix(" when this page was written")
    tiles.append(("state", state))
    cells = (tag("dd", value, class_="words" if value is state else None) for _, value in tiles)
    return tag("dl", *(tag("div", tag("dt", t[0]), dd) for t, dd in zip(tiles, cells, strict=True)), class_="tiles")


# ---- Results -------------------------------------------------------------------------
def _results(run: Run, found: Mapping[str, Curve]) -> list[Markup | None]:
    by_steps = {name: curve for name, curve in found.items() if None not in curve}
    single = {name: curve[None] for name, curve in found.items() if None in curve}
    parts: list[Markup | None] = []
    for group in _same_steps(by_steps):
        counts = sorted(by_steps[group[0]], key=lambda k: k or 0)
        rows = [[str(k), *(numbers.cell(by_steps[name][k], name) for name in group)] for k in counts]
        head = ["inner steps", *map(numbers.label, group)]
        parts.append(
            table(f"Mean over {_tasks(by_steps[group[0]])} test tasks ± 95 % interval", head, rows, class_="numbers")
        )
    if single:
        rows = [
            [numbers.label(name), numbers.cell(value, name), numbers.number(value.tasks or "–")]
            for name, value in single.items()
        ]
        parts.append(table("Mean over test tasks ± 95 % interval", ["metric", "mean", "tasks"], rows, class_="numbers"))
    drawn = [name for name, curve in by_steps.items() if len(curve) > 1][:DRAWN]  # the table has them all
    parts.append(charts.grid(*(_over_steps(name, by_steps[name]) for name in drawn)))
    rest = numbers.plain(run.part("results"))
    if rest:
        parts.append(
            tag("details", tag("summary", "More numbers of this run"), _pairs("More numbers of this run", rest))
        )
    return parts


def _same_steps(curves: Mapping[str, Curve]) -> list[list[str]]:
    """Names of curves over the same inner steps and as many tasks share a table."""
    groups: dict[Any, list[str]] = {}
    for name, curve in curves.items():
        groups.setdefault((*sorted(curve, key=lambda k: k or 0), _tasks(curve)), []).append(name)
    return list(groups.values())


def _tasks(curve: Curve) -> str:
    return numbers.number(next(iter(curve.values())).tasks or "the")


def _over_steps(metric: str, curve: Curve) -> Markup | None:
    steps = sorted(k for k in curve if k is not None)
    scale = 100.0 if numbers.percent(metric) else 1.0
    means, widths = ([scale * getattr(curve[k], part) for k in steps] for part in ("mean", "interval"))

    def draw(axes: Any) -> None:
        charts.band(axes, steps, means, widths, colour=charts.ONE, label=metric)
        charts.logarithmic(axes, means)
        axes.set(xlabel="inner steps", ylabel=numbers.label(metric) + (", %" if numbers.percent(metric) else ""))
        axes.set_xticks(steps)

    said = "; ".join(f"{k}: {numbers.written(curve[k], metric)}" for k in steps)
    return charts.chart(draw, says=f"{numbers.label(metric)} over inner steps. {said}.")


# ---- Training ------------------------------------------------------------------------
def _training(run: Run) -> list[Markup | None]:
    if not run.metrics:
        return [tag("p", "No curves: the run has recorded none.", class_="note")]
    if not charts.available():
        return [tag("p", charts.MISSING, class_="note")]
    rates = run.series("train", "lr")
    same = len({rate for _, rate in rates}) == 1
    note = (
        tag("p", "Learning rate of the meta-steps: ", numbers.exactly(rates[0][1]), ", all the time.", class_="note")
        if same
        else None
    )
    return [charts.grid(_losses(run), *_validation(run), None if same else _rate(rates)), note]


def _losses(run: Run) -> Markup | None:
    before, after = (run.series("train", name) for name in ("before", "after"))
    if not after:
        return None

    def draw(axes: Any) -> None:
        if before:  # no inner step, no loss before it
            charts.lines(axes, *zip(*before, strict=True), colour=charts.FAINT, label="before adaptation", style="--")
        charts.lines(axes, *zip(*after, strict=True), colour=charts.ONE, label="after adaptation")
        charts.logarithmic(axes, [value for _, value in before + after])
        axes.set(xlabel="meta-step", ylabel="loss on training tasks")
        axes.legend()

    says = (
        f"Training loss over {numbers.number(after[-1][0])} meta-steps: after adaptation from "
        f"{numbers.number(after[0][1])} to {numbers.number(after[-1][1])}."
    )
    return charts.chart(draw, says=says, caption="Loss on training tasks; bold, the mean of neighbouring points.")


def _validation(run: Run) -> list[Markup | None]:
    metrics = dict.fromkeys(str(m["metric"]) for m in run.metrics if m.get("kind") == "validation" and "metric" in m)
    return [_validated(run, metric) for metric in metrics]


def _validated(run: Run, metric: str) -> Markup | None:
    of_it = Run(run.folder, run.facts, [line for line in run.metrics if line.get("metric") == metric])
    rows = of_it.series("validation", "mean", "interval")
    if not rows:
        return None
    scale = 100.0 if numbers.percent(metric) else 1.0
    steps, means, widths = (list(column) for column in zip(*rows, strict=True))
    best = run.part("best")

    def draw(axes: Any) -> None:
        charts.band(
            axes,
            steps,
            [scale * m for m in means],
            [scale * w for w in widths],
            colour=charts.THREE,
            label=metric,
            style=".-",
        )
        if best.get("metric") == metric and best.get("meta_step") in steps:
            place = steps.index(best["meta_step"])
            axes.plot(
                steps[place], scale * means[place], "*", color=charts.TWO, markersize=11, label="best, kept", zorder=5
            )
            axes.legend(handles=[axes.lines[-1]])
        axes.set(xlabel="meta-step", ylabel=f"validation {numbers.label(metric)}" + (", %" if scale == 100 else ""))

    said = numbers.written(Measured(means[-1], widths[-1]), metric)
    says = f"{numbers.label(metric)} on validation tasks at {len(rows)} moments, at the end {said}."
    return charts.chart(draw, says=says, caption="Held-out validation tasks, with 95 % intervals.")


def _rate(rates: Sequence[tuple[float, ...]]) -> Markup | None:
    if not rates:
        return None
    steps, values = zip(*rates, strict=True)

    def draw(axes: Any) -> None:
        charts.lines(axes, steps, values, colour=charts.FOUR, label="learning rate", smooth=False)
        axes.set(xlabel="meta-step", ylabel="learning rate")
        axes.set_ylim(bottom=0)

    says = f"Learning rate of the meta-steps, from {numbers.number(values[0])} to {numbers.number(values[-1])}."
    return charts.chart(draw, says=says, caption="Learning rate of the meta-steps.")


# ---- The rest ------------------------------------------------------------------------
def _examples(examples: Sequence[Example]) -> list[Any]:
    if not examples:
        return []
    note = "Test tasks, the first that were drawn: not chosen by how well they went."
    return [tag("p", note, class_="note"), *gallery(examples)]


def _pairs(caption: str, values: Mapping[str, Any]) -> Markup | None:
    if not values:
        return None
    rows = [[name, numbers.exactly(value)] for name, value in values.items()]
    return table(caption, ["name", "value"], rows, class_="pairs")


def _reproduce(run: Run) -> list[Markup]:
    command = run.facts.get("command")
    if isinstance(command, (list, tuple)):
        command = shlex.join(map(str, command))
    shown = str(run.folder)
    parts = []
    if command:
        parts += [tag("p", "The same run once more, with the same tasks and initial weights:"), tag("pre", command)]
    else:
        parts.append(
            tag("p", "The run was started from Python, with the settings above; its seed draws the same tasks again.")
        )
    parts += [
        tag("p", "Evaluate its best weights on fresh test tasks, and write this page again:"),
        tag("pre", f"metafast evaluate {shlex.quote(shown)}\nmetafast report {shlex.quote(shown)}"),
    ]
    return parts
