"""A directory of decoded data that may vanish, be damaged or be unwritable without anyone noticing but the clock."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from metafast.files import replacing

Arrays = dict[str, npt.NDArray[np.generic]]


def directory() -> Path:
    """METAFAST_CACHE, or ``metafast`` in XDG_CACHE_HOME, or in ~/.cache."""
    if chosen := os.environ.get("METAFAST_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metafast"


def remembered(name: str, make: Callable[[], Arrays]) -> Arrays:
    """What an earlier ``make()`` of this name gave, or ``make()``, remembered if the directory allows.

    ``name`` must say all that the result depends on. A damaged file fails its checksum (the format is a zip, which
    has one per array) and is made again. Arrays of Python objects are neither written nor read: they would be code.
    """
    path = directory() / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError):
        pass
    arrays = make()
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError:
        pass  # No room or no permission: the data is as good without.
    return arrays
