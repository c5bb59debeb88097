"""A run's result as a picture: how many times as long as metafast, and how time grows with tasks (W6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from benchmarks.rivals import OURS, RIVALS
from benchmarks.table import Result, ratio
from benchmarks.workloads import W1

#: Libraries of one kind in shades of one colour: loops over tasks, torch.func, JAX; ours apart.
COLOURS = {
    OURS: "#c8102e",
    "metafast autograd": "#e8909e",
    "torch loop": "#8c8c8c",
    "learn2learn": "#a8a8a8",
    "higher": "#bdbdbd",
    "torchopt": "#d4d4d4",
    "torch.func": "#9ecae1",
    "torch.compile": "#4292c6",
    "jax": "#084594",
}


def draw(result: Result, path: Path) -> None:
    bars = [line for line in result["workloads"] if not line["name"].startswith("W6")]
    curve = [line for line in result["workloads"] if line["name"].startswith("W6")]
    height = 1.6 + 0.17 * sum(1.2 + len(_timed(line)) for line in bars)
    figure = Figure(figsize=(10, max(height, 4.5)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.35, 1], height_ratios=[4, max(height - 4, 0.1)])
    with_bars, with_curve = (any(_timed(line) for line in lines) for lines in (bars, curve))
    if with_bars:
        _bars(figure.add_subplot(grid[:, 0] if with_curve else grid[:, :]), bars)
    if with_curve:
        _curve(figure.add_subplot(grid[0, 1] if with_bars else grid[:, :]), curve)
    if with_bars or with_curve:
        shown = [
            r
            for r in RIVALS
            if r == OURS or any(r == row["rival"] for line in result["workloads"] for row in _timed(line))
        ]
        handles = [Patch(color=COLOURS[r], label=r) for r in shown]
        figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    machine = result["machine"]
    figure.supxlabel(
        f"one exact meta-gradient, float32; {machine['cpu']}, {machine['threads']} threads; {result['date'][:10]}",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(path, dpi=150)


def _timed(line: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in line["results"] if "ratio" in row]


def _bars(axes: Any, lines: list[dict[str, Any]]) -> None:
    """A group of bars per workload, from 1, which is metafast."""
    y, ticks = 0.0, []
    for line in lines:
        rows = _timed(line)
        if not rows:
            continue
        for place, row in enumerate(rows):
            axes.barh(y + place, row["ratio"] - 1, left=1, height=0.85, color=COLOURS[row["rival"]])
            axes.annotate(
                ratio(row["ratio"]),
                (max(row["ratio"], 1), y + place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color="#333333",
            )
        ours = next(row for row in line["results"] if row["rival"] == OURS)
        ticks.append(
            (y + (len(rows) - 1) / 2, f"{line['name']}\n{line['title']}\nmetafast {_milliseconds(ours['ms'])}")
        )
        y += len(rows) + 1.2
    axes.set_xscale("log")
    axes.axvline(1, color=COLOURS[OURS], linewidth=2)
    axes.set_yticks([t for t, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_title("time, as a multiple of metafast's", fontsize=10)
    _clean(axes, "x")


def _curve(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Microseconds per task over the number of tasks."""
    for rival in RIVALS:
        points = [
            (line["tasks"], 1e3 * row["ms"] / line["tasks"])
            for line in lines
            for row in line["results"]
            if row["rival"] == rival and "ms" in row
        ]
        if points:
            style = dict(linewidth=2.4, zorder=3) if rival == OURS else dict(linewidth=1.4)
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[rival], markersize=4, **style)
    axes.set(xscale="log", yscale="log", xlabel=f"tasks of {W1.title} (W6)")
    axes.set_title("microseconds per task", fontsize=10)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
    _clean(axes, "both")


def _clean(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, alpha=0.25, which="major")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value >= 0.1 else f"{1e3 * value:.0f} µs"
