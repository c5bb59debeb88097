"""The documents say what is true: their Python examples run, and their links and paths lead somewhere.

The blocks of a document run in order and share their names, as a reader would type them. A block that follows
``<!-- needs: PACKAGE -->`` is for users of that package, and runs where it is installed.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
BLOCK = re.compile(r"^(?:<!-- needs: (?P<package>\w+) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]+)")
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
#: Paths within the repository, in prose, tables and pictures of folders; not those of other places (build/cuda/lib).
PATH = re.compile(r"(?<![\w./-])(?P<path>(?:csrc|metafast|tests|docs|benchmarks|cmake|\.ci)/[\w./*-]*[\w*/])")


def blocks(document: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(document.read_text()))


WITH_CODE = [document for document in DOCUMENTS if blocks(document)]


def test_readme_has_an_example() -> None:
    assert ROOT / "README.md" in WITH_CODE


@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: path.name)
def test_examples_run(
    document: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFAST_CACHE", str(tmp_path))
    text = document.read_text()
    names: dict[str, object] = {"__name__": document.stem}
    for block in blocks(document):
        if block["package"] and find_spec(block["package"]) is None:
            continue
        first_line = text.count("\n", 0, block.start("code"))
        # the empty lines make an error show the document's own line number
        code = compile("\n" * first_line + block["code"], str(document), "exec")
        exec(code, names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(document: Path) -> None:
    text = document.read_text()
    missing = [m["target"] for m in LINK.finditer(FENCED.sub("", text)) if not (document.parent / m["target"]).exists()]
    assert not missing + missing_paths(text)


def missing_paths(text: str) -> list[str]:
    """Paths of the repository that a document mentions outside of its examples, and that are not there."""
    mentioned = {m["path"] for m in PATH.finditer(FENCED.sub("", text))}
    return sorted(path for path in mentioned if not list(ROOT.glob(path)))


def test_a_path_that_is_not_there_is_found() -> None:
    text = (
        "See `csrc/none.h`, metafast/gone.py, [it](docs/absent.md), `csrc/core/plan.h`.\n\n    csrc/nowhere/  a folder"
    )
    assert missing_paths(text) == ["csrc/none.h", "csrc/nowhere/", "docs/absent.md", "metafast/gone.py"]


@pytest.mark.parametrize("tree", ["csrc", "metafast"])
def test_the_picture_of_the_house_shows_every_folder(tree: str) -> None:
    picture = (ROOT / "docs/design.md").read_text().split("\n## ")[1]
    sources = [*ROOT.glob(f"{tree}/*/*.h"), *ROOT.glob(f"{tree}/*/__init__.py")]
    shown = re.findall(rf"^ +({tree}/\w+/) ", picture, re.MULTILINE)
    assert sources
    assert sorted(shown) == sorted({f"{path.parent.relative_to(ROOT)}/" for path in sources})


def test_readme_begins_with_ten_lines_and_a_small_table() -> None:
    text = (ROOT / "README.md").read_text()
    code = [line for line in blocks(ROOT / "README.md")[0]["code"].splitlines() if line]
    table = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(code) <= 10
    assert 2 < len(table) <= 2 + 6
    assert all(len(line.strip("|").split("|")) <= 5 for line in table)


def test_equations_are_numbered_in_order() -> None:
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", (ROOT / "docs/maths.md").read_text())]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(("kind", "defined"), [("sections?", r"^## (\d+)\."), ("equations?", r"\\tag\{(\d+)\}")])
def test_code_cites_what_exists(kind: str, defined: str) -> None:
    known = set(re.findall(defined, (ROOT / "docs/maths.md").read_text(), re.MULTILINE))
    sources = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("metafast/**/*.py")]
    pattern = rf"maths\.md,\s(?://\s)?{kind} (\d+)(?: (?:to|and) (\d+))?"
    cited = {n for p in sources for found in re.findall(pattern, p.read_text()) for n in found if n}
    assert cited
    assert cited <= known
