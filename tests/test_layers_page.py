"""docs/layers.md is what the lists of layers, primitives and losses say."""

from __future__ import annotations

from pathlib import Path

from metafast.model.listing import page

PAGE = Path(__file__).parent.parent / "docs" / "layers.md"


def test_the_page_is_written_from_the_lists() -> None:
    assert PAGE.read_text() == page(), "python -m metafast.model.listing > docs/layers.md"
