"""Images with labels from the files in which data sets are passed on: npz, IDX and pickles. Nothing is executed."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metafast.tasks import unpickle
from metafast.tasks.archive import DataError
from metafast.tasks.groups import listed

Array = npt.NDArray[Any]
#: Type codes of IDX files; numbers are big-endian (http://yann.lecun.com/exdb/mnist, "the IDX file format").
IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_npz(path: str | Path, *, x: str = "x", y: str = "y") -> tuple[Array, Array]:
    """The arrays of these names, as they are; for example of ``np.savez(path, x=..., y=...)``."""
    path = Path(path)
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds one array; expected .npz with {x!r} and {y!r}")
        with file:
            if lacking := [name for name in (x, y) if name not in file.files]:
                raise DataError(f"{path} holds no array {listed(lacking)}; it has {listed(file.files)}: say x=, y=")
            return _together(path, file[x], file[y])
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no whole .npz file of numbers ({error})") from error


def read_idx(images: str | Path, labels: str | Path) -> tuple[Array, Array]:
    """Two IDX files, plain or .gz, as of MNIST: images [M, 1, height, width] uint8 and labels [M] int64."""
    x, y = _idx(Path(images)), _idx(Path(labels))
    if x.ndim != 3 or y.ndim != 1:
        raise DataError(
            f"{images}, {labels}: expected images [M, height, width] and labels [M], got {list(x.shape)} and "
            f"{list(y.shape)}{': are they exchanged?' if (x.ndim, y.ndim) == (1, 3) else ''}"
        )
    return _together(Path(images), x[:, None], y.astype(np.int64))


def read_pickle(path: str | Path) -> tuple[Array, Array]:
    """A pickle of images and labels in one of three layouts, as images [M, channels, height, width] and labels [M].

    - mini-ImageNet: ``{"image_data": [M, height, width, channels], "class_dict": {name: [places]}}``.
    - CIFAR-FS and others of few-shot learning: ``{"data": [M, height, width, channels], "labels": [M]}``.
    - CIFAR-10 and -100: ``{"data": [M, channels * height * width], "labels" or "fine_labels": [M]}`` of 32 x 32 pixels.

    Keys may be bytes, as Python 2 wrote them, and other keys are passed over. A file of this kind holds one part of a
    data set, so that a TaskSampler for each gives train, validation and test tasks.

    Raises:
        DataError: the file is damaged, of another layout, or asks for anything but plain data and arrays.
    """
    path = Path(path)
    content = unpickle.load(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a dict of images and labels")
    fields = {_text(key): value for key, value in content.items()}
    if {"image_data", "class_dict"} <= fields.keys():
        x = _images(path, "image_data", fields["image_data"])
        return _together(path, x, _by_class(path, fields["class_dict"], len(x)))
    for name in ("labels", "fine_labels"):
        if {"data", name} <= fields.keys():
            labels = fields[name]
            y = np.asarray([_text(label) for label in (labels.tolist() if hasattr(labels, "tolist") else labels)])
            return _together(path, _images(path, "data", fields["data"]), y)
    raise DataError(
        f"{path} holds {listed(list(fields))}; expected image_data and class_dict, or data and labels (or fine_labels)"
    )


def _idx(path: Path) -> Array:
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX:
        raise DataError(f"{path} is no IDX file: it begins with {content[:4]!r}")
    dtype, start = np.dtype(IDX[content[2]]), 4 + 4 * content[3]
    shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")] if len(content) >= start else []
    if len(content) != start + math.prod(shape) * dtype.itemsize or len(shape) != content[3]:
        raise DataError(f"{path} has {len(content)} bytes, which are not those of an array {shape}: was it cut short?")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _images(path: Path, name: str, value: Any) -> Array:
    """[M, channels, height, width] uint8"""
    x = np.asarray(value)
    if x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == 3 * 32 * 32:
        return x.reshape(-1, 3, 32, 32)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3):
        raise DataError(f"{path}: {name}: expected uint8 [M, height, width, channels], got {x.dtype} {list(x.shape)}")
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _by_class(path: Path, classes: Any, count: int) -> Array:
    """Names of classes, of each image."""
    if not isinstance(classes, Mapping):
        raise DataError(f"{path}: class_dict: expected a dict, got a {type(classes).__name__}")
    names = {_text(name): np.asarray(places) for name, places in classes.items()}
    places = np.concatenate([np.ravel(p) for p in names.values()]) if names else np.zeros(0)
    if not np.array_equal(np.sort(places), np.arange(count)):
        raise DataError(f"{path}: class_dict: expected {count} images, each in one class, got {places.size} places")
    labels = np.empty(count, dtype=object)
    for name, own in names.items():
        labels[own] = name
    return labels.astype(str)


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _together(path: Path, x: Array, y: Array) -> tuple[Array, Array]:
    if x.ndim < 1 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{path}: expected inputs [M, ...] and labels [M], got {list(x.shape)} and {list(y.shape)}")
    return np.require(x, requirements=["C", "W"]), np.require(y, requirements=["C", "W"])
