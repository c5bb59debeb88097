"""HTML as a tree of tags, escaped by construction: only what :func:`tag` made is taken as it is."""

from __future__ import annotations

import html
from importlib import resources
from typing import Any

VOID = {"img", "meta"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """``<name attributes>children</name>``; an attribute of None is left out, and ``class_`` or ``aria_label`` are
    written as HTML spells them. Children and values that are no :class:`Markup` are escaped."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(*children)}</{name}>")


def join(*parts: Any) -> Markup:
    """The parts one after another; None is nothing."""
    return Markup("".join(p if isinstance(p, Markup) else html.escape(str(p)) for p in parts if p is not None))


def table(caption: str, head: list[Any], rows: list[list[Any]], *, class_: str | None = None) -> Markup:
    """A table whose first column names the rows. It scrolls by itself where the screen is narrower."""
    heads = [tag("th", text, scope="col") for text in head]
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    inner = (tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag(
        "div", tag("table", *inner, class_=class_), class_="scroll", tabindex=0, role="region", aria_label=caption
    )


def section(title: str, *parts: Any) -> Markup | None:
    """A part of the page with its heading; None if there is nothing in it."""
    there = [part for part in parts if part]
    return tag("section", tag("h2", title), *there) if there else None


def page(title: str, *body: Any) -> str:
    """A whole document that fetches nothing and runs no script, which its own policy forbids."""
    style = Markup(resources.files("metafast.report").joinpath("style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"
