"""Settings of convolutions and poolings, which the engine has along two axes: what has one is an image of height 1."""

from __future__ import annotations

from typing import Any

from metafast.model.builder import Builder, Place
from metafast.model.program import Shape


def image_form(shape: Shape) -> Shape:
    """[C, L] as an image of height 1; images as they are."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def images(b: Builder, input: Any, axes: int) -> Place:
    """The input of a layer that works along one axis or two, as images."""
    b.rank(input, (axes + 1,), "[N, C, L]" if axes == 1 else "[N, C, H, W]")
    return b.image(input, image_form(input.shape))


def along(b: Builder, size: Any, axes: int) -> tuple[int, ...]:
    """A setting as one whole number for each axis."""
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(sizes) not in (1, axes) or not all(isinstance(s, int) for s in sizes):
        words = "one or two whole numbers" if axes == 2 else "one whole number"
        b.refuse(f"has the setting {size!r}; native {'are' if axes == 2 else 'is'} {words}")
    return sizes * axes if len(sizes) == 1 else sizes


def window(b: Builder, axes: int, **settings: Any) -> dict[str, float]:
    """The attributes of a node: along one axis, a height that changes nothing stands before."""
    named: dict[str, float] = {}
    for name, size in settings.items():
        height = (0 if name == "pad" else 1,) * (2 - axes)
        named |= {f"{name}_{axis}": s for axis, s in zip("hw", height + along(b, size, axes), strict=True)}
    return named
