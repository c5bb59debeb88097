"""Images sorted into folders by class, or a zip file of such a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metafast.tasks import archive, cache
from metafast.tasks.archive import DataError
from metafast.tasks.distribution import Splits
from metafast.tasks.groups import FRACTIONS, listed, number
from metafast.tasks.sampler import TaskSampler

#: Part of every cached file's name: to be raised when the preparation below changes.
VERSION = 1
LAYOUT = "expected <class>/<image>, of which an image ends in " + ", ".join(sorted(archive.SUFFIXES))


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """All images of a folder in memory, with their classes."""

    path: Path
    images: Tensor  # uint8 [M, channels, height, width], sorted by class and file
    labels: Tensor  # int64 [M], places in class_names
    class_names: tuple[str, ...]  # sorted
    files: tuple[str, ...]  # of each image, relative to the folder

    @classmethod
    def load(
        cls, path: str | Path, size: int | tuple[int, int] | None = None, channels: int | None = None
    ) -> ImageFolder:
        """Read <class>/<image>, as PNG, JPEG, WebP or BMP, from the cache if nothing has changed.

        The classes are the folders below the deepest folder that holds all images, so ``path`` may also be a folder
        or a zip with that folder in it, or a folder that holds such a zip and no images. Hidden files and files that
        are no images are passed over.

        Args:
            path: the folder, or a zip file of it.
            size: of all images, height and width, to which they are resized without regard to their aspect ratio. A
                number means a square. None keeps the size, which must then be one.
            channels: 1 (grey), 3 (colour), or None: 3 if any image has colour.

        What is transparent shows white paper. Photographs are turned upright as their EXIF data says.

        Raises:
            DataError: nothing there, an image outside of a class, a class without images, images of two sizes, or
                files that cannot be read, all of which are named.
        """
        height_width = _size(size)
        if channels not in (None, 1, 3):
            raise ValueError(f"channels: expected 1 (grey), 3 (colour) or None (as the images are), got {channels!r}")
        source = _open(Path(path))
        files = source.names()
        classes = _classes(source, files)

        def prepare() -> cache.Arrays:
            return {"images": archive.decode(source, files, height_width, channels)}

        key = f"{VERSION} {source.path.resolve()} {source.fingerprint()} {height_width} {channels}"
        arrays = cache.remembered(f"folder-{hashlib.sha256(key.encode()).hexdigest()[:20]}", prepare)
        names, labels = np.unique(classes, return_inverse=True)
        order = np.argsort(labels, kind="stable")
        images = arrays["images"] if (order[1:] > order[:-1]).all() else arrays["images"][order]
        return cls(
            source.path,
            torch.from_numpy(images),
            torch.from_numpy(labels[order]),
            tuple(names.tolist()),
            tuple(files[i] for i in order),
        )

    def __len__(self) -> int:
        return len(self.files)

    def splits(
        self,
        *,
        ways: int,
        shots: int,
        queries: int,
        fractions: Sequence[float] = FRACTIONS,
        names: Mapping[str, Iterable[str]] | None = None,
        seed: int = 0,
        skip_small: bool = False,
    ) -> Splits:
        """:meth:`TaskSampler.splits` of the images; errors name the folder."""
        settings: dict[str, Any] = dict(ways=ways, shots=shots, queries=queries, skip_small=skip_small)
        labels = [self.class_names[i] for i in self.labels.tolist()]
        try:
            return TaskSampler.splits(self.images, labels, fractions=fractions, names=names, seed=seed, **settings)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = size if isinstance(size, tuple) else (size, size)
    return number("size", height), number("size", width)


def _open(path: Path) -> archive.Archive:
    if path.is_dir():
        if not any(os.scandir(path)):
            raise DataError(f"{path} is an empty folder; {LAYOUT}")
        folder, zips = archive.Folder(path), sorted(path.glob("*.zip"))
        return archive.Zip(zips[0]) if len(zips) == 1 and not folder.names() else folder
    if path.is_file():
        return archive.Zip(path)
    raise DataError(f"{path} does not exist; {LAYOUT}")


def _classes(source: archive.Archive, files: Sequence[str]) -> list[str]:
    """Of each file."""
    if not files:
        raise DataError(f"{source.path} holds no image; {LAYOUT}")
    parents = [str(PurePosixPath(file).parent) for file in files]
    common = os.path.commonpath(parents) if len(set(parents)) > 1 else str(PurePosixPath(parents[0]).parent)
    root = PurePosixPath(common or ".")
    classes = [str(PurePosixPath(parent).relative_to(root)) for parent in parents]
    if loose := [file for file, name in zip(files, classes, strict=True) if name == "."]:
        raise DataError(f"{source.path}: {listed(loose)} lie in no folder of a class; {LAYOUT}")
    filled = {parent for parent in parents for parent in (parent, *map(str, PurePosixPath(parent).parents))}
    beside = [name for name in source.folders() if PurePosixPath(name).parent == root and name not in filled]
    if beside:
        raise DataError(
            f"{source.path}: no image in {listed(beside)}, which lies among the folders of classes; remove it or put "
            f"images there ({LAYOUT})"
        )
    return classes
