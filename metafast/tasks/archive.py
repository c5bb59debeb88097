"""Reading image files from a folder or from a zip file of it, through one interface."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: What names of image files end with, in either case.
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
#: Pixels are uint8 [channels, height, width].
Image = npt.NDArray[np.uint8]


class DataError(ValueError):
    """A data set that is missing, damaged or too small; the message says what was looked for, and where."""


class Archive(Protocol):
    path: Path

    def names(self) -> list[str]:
        """All image files, sorted, as paths relative to the archive with forward slashes; no hidden ones."""

    def folders(self) -> list[str]:
        """All folders that are not hidden, likewise."""

    def read(self, name: str) -> bytes: ...

    def fingerprint(self) -> str:
        """Changes when the content does, judged by sizes and modification times."""


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(name for name, path in self._all() if is_image(name) and path.is_file())

    def folders(self) -> list[str]:
        return sorted(name for name, path in self._all() if not _hidden(name) and path.is_dir())

    def _all(self) -> Iterator[tuple[str, Path]]:
        return ((path.relative_to(self.path).as_posix(), path) for path in self.path.rglob("*"))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def fingerprint(self) -> str:
        return _digest(f"{name} {_stamp(self.path / name)}" for name in self.names())


class Zip:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path} is not a whole zip file ({error}): was its download cut short?") from error

    def names(self) -> list[str]:
        return sorted(filter(is_image, self.file.namelist()))

    def folders(self) -> list[str]:
        names = self.file.namelist()
        parents = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
        folders = {name.rstrip("/") for name in names if name.endswith("/")} | parents
        return sorted(name for name in folders if not _hidden(name))

    def read(self, name: str) -> bytes:
        return self.file.read(name)  # checks the CRC

    def fingerprint(self) -> str:
        return _digest([_stamp(self.path)])


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    """Begun with a dot, or in such a folder, or what macOS adds to zip files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def find(root: Path, name: str, *, hint: str) -> Archive:
    """``name`` as a folder with images or as ``name.zip``, in ``root`` or in one of its subfolders.

    A folder goes before a zip of the same place: who unpacked one may have deleted or damaged the other since.
    """
    if not root.is_dir():
        raise DataError(f"data folder {root} {'is not a folder' if root.exists() else 'does not exist'}. {hint}")
    if not any(root.iterdir()):
        raise DataError(f"data folder {root} is empty. {hint}")
    for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if (folder := Folder(place / name)).path.is_dir() and folder.names():
            return folder
        if (path := place / f"{name}.zip").is_file():
            return Zip(path)
    raise DataError(f"neither {name}/ (with images in it) nor {name}.zip in {root} or its subfolders. {hint}")


def decode(
    archive: Archive, names: Sequence[str], size: tuple[int, int] | None = None, channels: int | None = None
) -> Image:
    """The images [len(names), channels, height, width], decoded by several threads.

    ``size`` (height, width) resizes with an antialiasing (Lanczos) filter and without regard to the aspect ratio;
    without it all must be of one size. Grey (1) or colour (3 channels); None is colour where any image has it. What is
    transparent shows white paper. DataError names every file that cannot be read.
    """
    pillow()
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        decoded = pool.map(lambda name: _decode(archive, name, size, channels), names)
        results = list(_progress(decoded, len(names)))
    if bad := [f"{name} ({result})" for name, result in zip(names, results, strict=True) if isinstance(result, str)]:
        raise DataError(
            f"{archive.path}: cannot read image {bad[0]}"
            if len(bad) == 1
            else f"{archive.path}: cannot read {len(bad)} images:\n" + "\n".join(f"  {line}" for line in bad)
        )
    images = [result for result in results if not isinstance(result, str)]
    for name, image in zip(names, images, strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{archive.path}: images are of different sizes: {names[0]} is {_size(images[0])}, {name} is "
                f"{_size(image)} pixels (width x height); size= resizes all to one"
            )
    most = max(len(image) for image in images)
    whole = np.empty((len(images), most, *images[0].shape[1:]), np.uint8)
    for place, image in zip(whole, images, strict=True):
        place[:] = image  # a grey one into all channels
    return whole


def _progress(images: Iterable[Image | str], count: int) -> Iterable[Image | str]:
    """The same, with a bar in a terminal if it takes long."""
    try:
        from tqdm import tqdm
    except ImportError:
        return images
    return tqdm(images, "reading images", total=count, unit=" images", delay=2, disable=None, leave=False)


def pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError("reading images needs Pillow: pip install 'metafast[cli]'") from None
    return Image, ImageOps


def _decode(archive: Archive, name: str, size: tuple[int, int] | None, channels: int | None) -> Image | str:
    """One image, or why there is none."""
    images, operations = pillow()
    try:
        with images.open(io.BytesIO(archive.read(name))) as file:
            upright = operations.exif_transpose(file)
            mode = {None: "L" if _is_grey(upright) else "RGB", 1: "L", 3: "RGB"}[channels]
            image = _opaque(upright, mode)
            if size is not None:
                image = image.resize(size[::-1], images.Resampling.LANCZOS)
    except (OSError, ValueError, EOFError, SyntaxError, RuntimeError, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__
    except images.DecompressionBombError as error:
        return str(error)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _opaque(image: Any, mode: str) -> Any:
    """Converted to ``mode``, on white where it is transparent; of 16 bits the upper 8."""
    images, _ = pillow()
    if image.mode.startswith("I"):  # which Pillow would not scale but cut off at 255
        values = np.asarray(image).astype(np.int64) >> 8
        image = images.fromarray(values.clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        paper = images.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    return image.convert(mode)


def _size(image: Image) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:20]
