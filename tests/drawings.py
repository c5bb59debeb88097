"""A tiny data set in Omniglot's layout."""

from __future__ import annotations

from pathlib import Path

ALPHABETS = {"images_background": ("Alpha", "Beta", "Gamma"), "images_evaluation": ("Omega",)}


def draw(root: Path, *, characters: int = 2, drawings: int = 4) -> None:
    """Of each character, ``drawings`` of a black bar on white 105 x 105 paper: the first at the top, others lower.

    Bars are of a thickness of the character's own, so that characters can be told apart.
    """
    from PIL import Image, ImageDraw

    number = 0
    for part, alphabets in ALPHABETS.items():
        for alphabet in alphabets:
            for character in range(1, characters + 1):
                number += 1
                folder = root / part / alphabet / f"character{character:02d}"
                folder.mkdir(parents=True)
                for drawing in range(1, drawings + 1):
                    image = Image.new("1", (105, 105), 1)
                    top = 3 * (drawing - 1)
                    ImageDraw.Draw(image).rectangle((0, top, 105, top + 24 + number), fill=0)
                    image.save(folder / f"{number:04d}_{drawing:02d}.png")
