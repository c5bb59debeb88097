"""Omniglot (Lake, Salakhutdinov and Tenenbaum, 2015): 20 drawings of each of 1623 characters in 50 alphabets.

Prepared as the few-shot papers do: 28 x 28 pixels, ink bright on dark, and the rotations by 90 degrees of a character
as classes of their own. Meta-training and validation use ``images_background``, meta-testing ``images_evaluation``,
which shares no alphabet with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metafast.tasks import archive, cache
from metafast.tasks.archive import DataError
from metafast.tasks.images import ImageTasks

SIZE = 28
#: Part of every cached file's name: to be raised when the preparation below changes.
VERSION = 1
#: The parts of the data set, with the characters that a complete one has.
PARTS = {"images_background": 964, "images_evaluation": 659}
HINT = (
    "Omniglot is images_background.zip and images_evaluation.zip (unpacked or not) from "
    "https://github.com/brendenlake/omniglot/tree/master/python; torchvision's folder works too."
)
#: <alphabet>/<character>/<drawing>.png at the end of a path.
DRAWING = re.compile(r"(?:.*/)?(?P<alphabet>[^/]+)/(?P<character>character[^/]*)/[^/]+\.png")

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Characters:
    images: Tensor  # uint8 [characters, drawings, SIZE, SIZE]
    alphabets: tuple[str, ...]  # of each character


@dataclass(frozen=True)
class Omniglot:
    """The three splits, each uint8 [classes, drawings, 1, 28, 28]; class 4 i + r is character i turned r times.

    Validation holds out whole alphabets with all their rotations (every tenth in alphabetical order from the sixth:
    Balinese, Gujarati and Ojibwe), because meta-testing is on unseen alphabets too: characters held out of alphabets
    trained on would flatter. The choice does not depend on a seed, so no later run trains on what chose its start.
    """

    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def load(cls, root: str | Path, *, subset: bool = False) -> Omniglot:
        """Read, from the cache if possible. DataError if the data is missing or damaged, or, unless ``subset``, if
        characters of the original are missing."""
        background, evaluation = (load_part(Path(root), part, subset=subset) for part in PARTS)
        alphabets = sorted(set(background.alphabets))
        held_out = alphabets[5::10] or alphabets[-1:]
        if len(alphabets) < 2:
            raise DataError(f"{root}: validation needs a second alphabet in images_background, found {alphabets}")
        if shared := set(alphabets) & set(evaluation.alphabets):
            raise DataError(f"{root}: images_background and images_evaluation share alphabets: {sorted(shared)}")
        held = torch.tensor([alphabet in held_out for alphabet in background.alphabets])
        return cls(
            train=with_rotations(background.images[~held]),
            validation=with_rotations(background.images[held]),
            test=with_rotations(evaluation.images),
        )

    def tasks(self, split: Split, *, ways: int, shots: int, queries: int) -> ImageTasks:
        return ImageTasks(getattr(self, split), ways=ways, shots=shots, queries=queries)


def with_rotations(images: Tensor) -> Tensor:
    """[characters, drawings, H, W] -> [4 characters, drawings, 1, H, W]: rotations by 0, 90, 180 and 270 degrees."""
    turned = torch.stack([torch.rot90(images, turns, (-2, -1)) for turns in range(4)], dim=1)
    return turned.flatten(0, 1).unsqueeze(2)


def load_part(root: Path, part: str, *, subset: bool = False) -> Characters:
    """All characters of ``images_background`` or ``images_evaluation``, in alphabetical order."""
    source = archive.find(root, part, hint=HINT)

    def prepare() -> cache.Arrays:
        groups = _group(source)
        pixels = archive.decode(source, [name for names in groups.values() for name in names], (SIZE, SIZE), 1)
        images = (255 - pixels).reshape(len(groups), -1, SIZE, SIZE)
        return {"images": images, "alphabets": np.array([alphabet for alphabet, _ in groups])}

    arrays = cache.remembered(f"omniglot-{VERSION}-{part}-{source.fingerprint()}", prepare)
    if not subset and len(arrays["images"]) != PARTS[part]:
        raise DataError(
            f"{source.path} holds {len(arrays['images'])} characters, but Omniglot's {part} has {PARTS[part]}: "
            f"is it complete? (If it is a subset on purpose, say --subset.) {HINT}"
        )
    return Characters(torch.from_numpy(arrays["images"]), tuple(str(name) for name in arrays["alphabets"]))


def _group(source: archive.Archive) -> dict[tuple[str, str], Sequence[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for name in source.names():
        if match := DRAWING.fullmatch(name):
            groups.setdefault((match["alphabet"], match["character"]), []).append(name)
    if not groups:
        raise DataError(f"{source.path} holds no <alphabet>/<character>/<drawing>.png. {HINT}")
    most = max(len(names) for names in groups.values())
    for (alphabet, character), names in groups.items():
        if len(names) != most:
            raise DataError(
                f"{source.path}: {alphabet}/{character} has {len(names)} drawings where others have {most}: "
                f"is it complete? {HINT}"
            )
    return dict(sorted(groups.items()))
