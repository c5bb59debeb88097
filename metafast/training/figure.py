"""Pictures, drawn with matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metafast.files import replacing


def figure(width: float, height: float) -> Any:
    """A figure of so many inches that touches no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from None
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def write(figure: Any, path: str | Path) -> None:
    """The figure as a PNG file, written whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
