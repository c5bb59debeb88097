"""The stub of the native module says what the module is: the same names, with the same arguments in the same order."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from metafast import _native

STUB = ast.parse((Path(__file__).parents[1] / "metafast" / "_native.pyi").read_text())


def declared(body: list[ast.stmt]) -> dict[str, list[str]]:
    """Argument names of the public functions and constructors in a stub."""
    found: dict[str, list[str]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = [a.arg for a in node.args.args]
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found |= {f"{node.name}.{name}": arguments for name, arguments in declared(node.body).items()}
    return found


def compiled() -> dict[str, list[str]]:
    """The same, from the signatures that pybind11 writes as first lines of docstrings."""

    def arguments(function: Any) -> list[str]:
        signature = function.__doc__.splitlines()[0]
        return re.findall(r"[(,] ?(\w+):", re.sub(r"\[[^()]*?\]", "", signature))

    found: dict[str, list[str]] = {}
    for name, value in vars(_native).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type):
            found[f"{name}.__init__"] = arguments(value.__init__)
            for method, function in vars(value).items():
                if not method.startswith("_"):
                    found[f"{name}.{method}"] = ["self"] if isinstance(function, property) else arguments(function)
        else:
            found[name] = arguments(value)
    return found


def test_stub_matches_module() -> None:
    assert declared(STUB.body) == compiled()


def test_build_info_has_the_declared_keys() -> None:
    info = next(n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == "_BuildInfo")
    assert list(_native.build_info()) == [n.target.id for n in info.body if isinstance(n, ast.AnnAssign)]
