"""Arrows point downwards: who may include or import whom, in csrc and in metafast."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: From the bottom to the top; those of one line do not know each other.
CSRC = ["core", "formulas", "program rules estimators", "engine", "cpu cuda", "python"]
METAFAST = [
    "tracking files optim",
    "transforms model.program estimators run_folder",
    "call losses",
    "rules arguments",
    "model",
    "engine",
    "planning",
    "explain learner functional",
    "judge",
    "verification tasks",
    "report",
    "training",
    "transfer experiments",
    "cli",
]


def ranks(levels: list[str]) -> dict[str, int]:
    return {name: rank for rank, level in enumerate(levels) for name in level.split()}


def includes() -> Iterator[tuple[str, str, str]]:
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        folder = path.relative_to(ROOT / "csrc").parts[0]
        for target in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            yield folder, target.split("/")[0], f"{path.relative_to(ROOT)} includes {target}"


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if not is_for_types(node):
            yield node
            yield from statements(node)


def place(module: str) -> str:
    """The entry of METAFAST that a module's name begins with; empty where there is none."""
    parts, known = module.split("."), ranks(METAFAST)
    return next((name for name in (".".join(parts[:2]), parts[0]) if name in known), "")


def modules() -> dict[str, Path]:
    files = sorted((ROOT / "metafast").rglob("*.py"))
    return {".".join(path.relative_to(ROOT / "metafast").with_suffix("").parts): path for path in files}


def imports() -> Iterator[tuple[str, str, str]]:
    for name, path in modules().items():
        for node in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("metafast"):
                base = node.module.removeprefix("metafast").strip(".")
                for alias in node.names:
                    target = f"{base}.{alias.name}".strip(".")
                    if place(name) and place(target):
                        yield place(name), place(target), f"metafast.{name} imports metafast.{target}"


@pytest.mark.parametrize(("levels", "arrows"), [(CSRC, includes), (METAFAST, imports)], ids=["csrc", "metafast"])
def test_no_arrow_points_upwards(levels: list[str], arrows: object) -> None:
    rank = ranks(levels)
    found = list(arrows())  # type: ignore[operator]
    assert len(found) > 100
    assert not {folder for folder, _, _ in found} - rank.keys()
    upwards = [why for source, target, why in found if rank[target] > rank[source]]
    sideways = [w for s, t, w in found if rank[t] == rank[s] and t != s]
    assert not upwards and not sideways


def test_every_module_has_a_place_in_the_house() -> None:
    assert [name for name in modules() if not place(name)] == ["__init__", "__main__"]


#: What a reader can hold in mind at once.
LONGEST = 450
SOURCES = [
    *(path for folder in ("metafast", "csrc", "tests", "benchmarks", ".ci") for path in (ROOT / folder).rglob("*")),
    ROOT / "setup.py",
]


def test_no_file_is_too_long_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in SOURCES
        if path.suffix in (".py", ".pyi", ".h", ".cpp", ".cu", ".cuh")
    }
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


#: Without the docstring; arguments count, as they must be read too.
LONGEST_FUNCTION = 60


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a module and how many lines each has, its docstring left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            said = ast.get_docstring(node) is not None
            docstring = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1 if said else 0
            yield f"{path.stem}.{node.name}", (node.end_lineno or 0) - node.lineno + 1 - docstring


#: Whose length is that of its list of keyword arguments.
EXEMPT = {"meta_train.meta_train"}


def test_no_function_is_too_long_to_read() -> None:
    found = dict(each for path in (ROOT / "metafast").rglob("*.py") for each in functions(path))
    assert len(found) > 1000
    assert {name for name, length in found.items() if length > LONGEST_FUNCTION} == EXEMPT
