"""CONTRIBUTING.md shows what an addition touches: its code stands in the files that it names, and nobody else in the
package knows the examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^ *```(?:cpp|py|md)\n *(?://|#|<!--) (?P<path>\S+).*\n(?P<code>(?:.*\n)*?) *```$", re.MULTILINE)
FENCE = re.compile(r"^ *```\w", re.MULTILINE)
SOURCES = [
    path
    for folder in ("csrc", "metafast")
    for path in (ROOT / folder).rglob("*.*")
    if path.suffix not in (".so", ".pyc")
    and path.parent.name != "training"  # whose optimisers are torch's, of the same names
]

#: The pages, and how the files of the package that know the example spell it.
PAGES = {
    "rule": r"adagrad",
    "pointwise function": r"softsign",
    "loss": r"smooth_?l1",
    "estimator": r"annealed",
}


def page(kind: str) -> str:
    found = re.search(rf"^## Add an? {kind}\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"CONTRIBUTING.md has no section on how to add a {kind}"
    return found[1]


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def missing(code: str, source: str) -> list[str]:
    """The parts of ``code``, cut at lines of dots, that are no consecutive lines of ``source``."""
    has = lines(source)
    parts = [lines(part.strip()) for part in re.split(r"^ *\.\.\.$", code, flags=re.MULTILINE)]
    return [
        "\n".join(part)
        for part in parts
        if not any(has[i : i + len(part)] == part for i in range(len(has) - len(part) + 1))
    ]


BLOCKS = {f"{m['path']}:{TEXT.count(chr(10), 0, m.start()) + 1}": m for m in BLOCK.finditer(TEXT)}


def test_every_block_names_its_file() -> None:
    assert len(BLOCKS) == len(FENCE.findall(TEXT)) > 20


@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_shown_stands_in_the_file_it_names(block: str) -> None:
    found = BLOCKS[block]
    assert found["code"].strip()
    assert not missing(found["code"], (ROOT / found["path"]).read_text())


@pytest.mark.parametrize("kind", PAGES)
def test_nobody_else_in_the_package_knows_the_example(kind: str) -> None:
    shown = {m["path"] for m in BLOCK.finditer(page(kind))}
    know = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name != "budgets.txt"  # which .ci/check_ptxas.py writes
        and re.search(PAGES[kind], path.name + path.read_text(), re.IGNORECASE)
    }
    assert {path for path in shown if path.startswith(("csrc/", "metafast/"))} == know
    assert "CHANGELOG.md" in shown
    assert any(path.startswith("tests/") for path in shown)


def test_what_is_not_there_is_missing() -> None:
    source = "a = 1\nb = 2\nc = 3\n"
    assert missing("a = 1\n...\n  c = 3\n", source) == []
    assert missing("a = 1\nc = 3\n", source) == ["a = 1\nc = 3"]
    assert missing("a = 1\n...\nd = 4\n", source) == ["d = 4"]
