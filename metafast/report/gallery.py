"""Example tasks as parts of the page. Right and wrong are told by a sign and a word, never by colour alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from metafast.report import charts
from metafast.report.example import (
    Array,
    Classified,
    CurveExample,
    Example,
    ImagesExample,
    TableExample,
    TextExample,
)
from metafast.report.markup import Markup, join, table, tag

#: Images smaller than this are shown with their pixels, not blurred.
TINY = 64


def gallery(examples: Sequence[Example]) -> list[Markup]:
    """One part of the page for each example; those of functions of one variable stand side by side."""
    figures, parts = [], []
    for number, example in enumerate(examples, 1):
        title = f"Task {number}"
        if isinstance(example, CurveExample):
            figures.append(_curve(example, title))
        elif isinstance(example, ImagesExample):
            parts.append(_part(title, example, _images(example)))
        elif isinstance(example, TextExample):
            parts.append(_part(title, example, _texts(example)))
        else:
            parts.append(join(tag("h3", title), _table(example)))
    side_by_side = charts.grid(*figures)
    return [*([side_by_side] if side_by_side else []), *parts]


def _part(title: str, example: Classified, body: Markup) -> Markup:
    shown = len(example.labels)
    before, after = (int((said == example.labels).sum()) for said in (example.before, example.after))
    score = f"{title}: {after} of {shown} right after {_steps(example.steps)}, {before} before"
    return join(tag("h3", score), body)


def _steps(count: int) -> str:
    return f"{count} inner step" + ("" if count == 1 else "s")


def _verdict(said: str, right: bool) -> Markup:
    sign, word = ("✓", "right") if right else ("✗", "wrong")
    return tag("span", tag("span", sign, role="img", aria_label=f"{word}:"), " ", said, class_=word)


def _name(example: Classified, index: Any) -> str:
    return example.names[int(index)] if 0 <= int(index) < len(example.names) else str(index)


# ---- Images --------------------------------------------------------------------------
def _images(example: ImagesExample) -> Markup:
    if find_spec("PIL") is None:
        return tag("p", "No images: they are written with Pillow (pip install pillow).", class_="note")
    tiny = "tiny" if max(example.query.shape[1:3]) < TINY else None
    groups = []
    for label in dict.fromkeys(int(value) for value in example.support_labels):
        name = _name(example, label)
        pictures = [
            _picture(pixels, f"support example of {name}")
            for pixels, own in zip(example.support, example.support_labels, strict=True)
            if own == label
        ]
        groups.append(tag("li", name, tag("div", *pictures)))
    cards = []
    for pixels, truth, before, after in zip(example.query, example.labels, example.before, example.after, strict=True):
        name = _name(example, truth)
        cards.append(
            tag(
                "li",
                _picture(pixels, f"query example of {name}"),
                tag("div", tag("strong", name)),
                tag("div", "before ", _verdict(_name(example, before), before == truth), class_="said"),
                tag("div", "after ", _verdict(_name(example, after), after == truth), class_="said"),
                class_=None if after == truth else "missed",
            )
        )
    return tag(
        "div",
        tag("p", "Support: what the network is shown of each class.", class_="note"),
        tag("ul", *groups, class_="support"),
        tag("p", "Query: the true class in bold, then what the network says.", class_="note"),
        tag("ul", *cards, class_="images"),
        class_=tiny,
    )


def _picture(pixels: Array, says: str) -> Markup:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return tag("img", src=f"data:image/png;base64,{data}", alt=says, width=width, height=height)


# ---- Texts and tables ----------------------------------------------------------------
def _texts(example: TextExample) -> Markup:
    rows = []
    for text, truth, before, after in zip(example.query, example.labels, example.before, example.after, strict=True):
        said = [_verdict(_name(example, value), value == truth) for value in (before, after)]
        rows.append([_name(example, truth), text, *said])
    support = [[_name(example, own), text] for text, own in zip(example.support, example.support_labels, strict=True)]
    shown = table("Support: what the network is shown of each class", ["class", "text"], support, class_="texts")
    return join(
        table("Query texts and what the network says", ["true class", "text", "before", "after"], rows, class_="texts"),
        tag("details", tag("summary", f"The {len(support)} support texts"), shown),
    )


def _table(example: TableExample) -> Markup:
    judged = example.right.shape[1] > 0
    rows = []
    for i, truth in enumerate(example.truth):
        said = (example.before[i], example.after[i])
        rows.append(
            [str(i + 1), truth, *(_verdict(s, bool(example.right[k, i])) if judged else s for k, s in enumerate(said))]
        )
    head = ["query example", "true", "before", f"after {_steps(example.steps)}"]
    return table("What the network says of query examples", head, rows, class_=None if judged else "numbers")


# ---- Functions of one variable -------------------------------------------------------
def _curve(example: CurveExample, title: str) -> Markup | None:
    order = np.argsort(example.query_x)
    styles = [(charts.FAINT, ":"), (charts.TWO, "--"), (charts.ONE, "-")]
    if len(example.steps) == 2:
        styles.pop(1)

    def draw(axes: Any) -> None:
        axes.plot(
            example.query_x[order],
            example.query_y[order],
            ".",
            color=charts.INK,
            alpha=0.35,
            markersize=3.5,
            label="query",
        )
        for steps, line, (colour, style) in zip(example.steps, example.lines, styles, strict=True):
            axes.plot(example.x, line, style, color=colour, label="before" if steps == 0 else f"after {_steps(steps)}")
        axes.plot(example.support_x, example.support_y, "^", color=charts.INK, markersize=5.5, label="support")
        axes.set(xlabel="x", ylabel="y")
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), markerscale=1.3)

    says = (
        f"{title}: {len(example.support_x)} support points, {len(example.query_x)} query points, "
        f"and the network's curve before adaptation and after {' and '.join(map(str, example.steps[1:]))} inner steps."
    )
    return charts.chart(draw, says=says, caption=title)
