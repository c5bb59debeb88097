"""Charts as SVG inside the page, drawn by matplotlib and coloured by the page, so that they follow its light and dark.

matplotlib is given stand-in colours, one for each of the page's (``style.css``), whose names then take their places.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from metafast.report.markup import Markup, tag

#: The page's colours, and what stands for each while matplotlib draws.
COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "one": "#030303",
    "two": "#040404",
    "three": "#050505",
    "four": "#060606",
}
INK, FAINT, ONE, TWO, THREE, FOUR = COLOURS.values()
#: Beyond so many points a line shows means of neighbours: a screen has no more columns.
POINTS = 400
MISSING = "No curves: they are drawn with matplotlib (pip install matplotlib)."
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "font.size": 10, "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": FAINT,
    "grid.alpha": 0.25, "grid.linewidth": 0.6, "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.7, "axes.linewidth": 0.8,
    "path.simplify": True, "axes.axisbelow": True, "text.parse_math": False,
}  # fmt: skip

Drawing = Callable[[Any], None]
_drawn = itertools.count()


def available() -> bool:
    return find_spec("matplotlib") is not None


def chart(draw: Drawing, *, says: str, caption: Any = None, size: tuple[float, float] = (5.2, 3.1)) -> Markup | None:
    """A figure with the axes that ``draw`` filled; ``says`` stands for the picture to who cannot see it. None without
    matplotlib."""
    if not available():
        return None
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    settings: Any = SETTINGS | {"svg.hashsalt": says}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return tag("figure", _inline(buffer.getvalue(), says), tag("figcaption", caption) if caption else None)


def _inline(svg: str, says: str) -> Markup:
    """The drawing as an element of a page: without prologue and metadata, with names of its own, in the page's
    colours and font, no finer than a screen."""
    box = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", _plainer, body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{next(_drawn)}-", body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    return tag(
        "svg", Markup(re.sub(r"\s*\n\s*", "\n", body)), viewBox=box[1] if box else None, role="img", aria_label=says
    )


def _plainer(match: re.Match[str]) -> str:
    """A tag without what the page decides or nothing depends on."""
    found = re.sub(r" font-family: [^;]*;|(?<=<g) id=\"[^\"]*\"| transform=\"rotate\(-?0 [^\"]*\"", "", match[0])
    found = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", found)
    return found.replace("xlink:href", "href")


def lines(
    axes: Any, x: Sequence[float], y: Sequence[float], *, colour: str, label: str, style: str = "-", smooth: bool = True
) -> None:
    """A line; of many points also their moving mean, before which they fade."""
    xs, ys = thinned(x, y)
    if smooth and len(xs) >= 60:
        axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.3)
        ys = moving_mean(ys, max(3, len(ys) // 30))
    axes.plot(xs, ys, style, color=colour, label=label, marker="." if len(xs) == 1 else None)


def band(
    axes: Any,
    x: Sequence[float],
    mean: Sequence[float],
    interval: Sequence[float],
    *,
    colour: str,
    label: str,
    style: str = "o-",
) -> None:
    """Means with their intervals: bars where they are few, a band where bars would touch."""
    middle, width = np.asarray(mean, dtype=float), np.asarray(interval, dtype=float)
    if len(x) <= 25:
        axes.errorbar(x, middle, width, fmt=style, color=colour, label=label, capsize=3, markersize=4, elinewidth=1.2)
    else:
        axes.fill_between(x, middle - width, middle + width, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, middle, style.strip("o^s"), color=colour, label=label)


def logarithmic(axes: Any, *values: Sequence[float]) -> None:
    """A logarithmic axis, labelled in plain numbers, where values are positive and span more than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = np.concatenate([np.asarray(v, dtype=float).ravel() for v in values])
    finite = finite[np.isfinite(finite)]
    if len(finite) and finite.min() > 0 and finite.max() > 8 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if finite.max() < 1000 * finite.min() else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def thinned(x: Sequence[float], y: Sequence[float], points: int = POINTS) -> tuple[Any, Any]:
    """At most ``points`` of them: means over neighbours, each at the last one's place."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) <= points:
        return xs, ys
    parts = np.array_split(np.arange(len(xs)), points)
    return xs[[part[-1] for part in parts]], np.array([ys[part].mean() for part in parts])


def moving_mean(values: Any, width: int) -> Any:
    """The mean of each value and its neighbours, ``width`` in all, fewer at the ends."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def grid(*figures: Markup | None) -> Markup | None:
    there = [figure for figure in figures if figure]
    return tag("div", *there, class_="charts") if there else None
