"""What every call asks of its tensors: shape, dtype and device as one hashable value, for noticing that a call is like
one before it; whether labels are classes, and rows of weights do not cancel.

Read in C++, where what torch itself takes to tell a shape matters: a small meta-step has less arithmetic than that. In
Python where the native engine is not installed, torch is older than DLPack's exchange functions, or a tensor is more
than a plain one.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

from torch import Tensor

try:
    from metafast._native import Contents, holds_classes, rows_add_up
    from metafast._native import metadata as _plain
except ImportError:  # installed without the native engine

    def _plain(tensors: tuple[Tensor | None, ...]) -> bytes | None:
        return None

    def holds_classes(tensor: Tensor, classes: int) -> bool:
        """Whether all labels are certainly 0 .. classes - 1."""
        return False

    def rows_add_up(tensor: Tensor, share: float) -> bool:
        """Whether certainly no row of the last axis has a sum smaller than ``share`` of the sum of its magnitudes."""
        return False

    class Contents:  # type: ignore[no-redef]
        """What dictionaries held and tensors were like; whether all that is certainly so still."""

        def __init__(self, dictionaries: list[dict[Any, Any]], tensors: tuple[Tensor, ...]) -> None: ...

        def hold(self) -> bool:
            return False


__all__ = ["Contents", "holds_classes", "metadata", "rows_add_up"]

_of_one = operator.attrgetter("shape", "dtype", "device")


def metadata(tensors: tuple[Tensor | None, ...]) -> Hashable:
    """Equal for equal shapes, dtypes and devices; what is no tensor at all goes by its type."""
    return _plain(tensors) or tuple([_of_one(t) if isinstance(t, Tensor) else type(t) for t in tensors])
