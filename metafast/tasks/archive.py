"""Reading image files from a folder or from a zip file of it, through one interface."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt


class DataError(Exception):
    """A data set that is missing, incomplete or damaged; the message says what was looked for, and where."""


class Archive(Protocol):
    path: Path

    def names(self) -> list[str]:
        """All PNG files, sorted, as paths relative to the archive with forward slashes."""

    def read(self, name: str) -> bytes: ...

    def fingerprint(self) -> str:
        """Changes when the content does, judged by sizes and modification times."""


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*.png") if path.is_file())

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
        names = self.file.namelist()
        return sorted(name for name in names if name.endswith(".png") and not name.startswith("__MACOSX/"))

    def read(self, name: str) -> bytes:
        return self.file.read(name)  # checks the CRC

    def fingerprint(self) -> str:
        return _digest([_stamp(self.path)])


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


def decode(archive: Archive, names: Sequence[str], size: int) -> npt.NDArray[np.uint8]:
    """Grey-scale images [len(names), size, size], resized with an antialiasing (Lanczos) filter."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs Pillow: pip install pillow") from None

    def one(name: str) -> npt.NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                grey = image.convert("L").resize((size, size), Image.Resampling.LANCZOS)
        except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
            raise DataError(f"{archive.path}: cannot read image {name} ({error or type(error).__name__})") from error
        return np.asarray(grey, dtype=np.uint8)

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        images = list(pool.map(one, names))
    return np.stack(images)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:20]
