"""The folder of a run: what is in it, how it is written and read.

``run.json``       what the run is and how it stands: name, settings, machine, meta-steps, results
``metrics.jsonl``  a line for each row of the history
``checkpoint.pt``  the last state, from which the run goes on exactly
``best.pt``        the weights of the best validation
``report.html``    all of it for people to look at, with the example tasks of ``examples.npz``

A process that is killed at any moment leaves a folder that can be read and resumed: files are replaced whole, lines are
appended, and a last line that was cut short is not counted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metafast.files import replacing

FORMAT = "metafast-run"
VERSION = 1
Row = dict[str, Any]


class RunFolder:
    """The files of the run in the folder ``path``, which need not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"
        self.best = self.path / "best.pt"
        self.report = self.path / "report.html"
        self.examples = self.path / "examples.npz"

    def holds_a_run(self) -> bool:
        return self.checkpoint.exists() or self.facts.exists()

    def clear(self) -> None:
        """Remove the files of the run that is here; others of the folder stay."""
        files = (self.checkpoint, self.best, self.metrics, self.facts, self.report, self.examples)
        for file in files:  # the checkpoint first: no half run is left
            file.unlink(missing_ok=True)

    def forget_results(self) -> None:
        """Remove what was found of weights that the run no longer has."""
        if self.read().get("results"):
            self.update(results={})
        self.examples.unlink(missing_ok=True)

    # ---- run.json ----------------------------------------------------------------------------
    def read(self) -> dict[str, Any]:
        """The content of run.json; empty if there is none yet."""
        if not self.facts.exists():
            return {}
        try:
            found = json.loads(self.facts.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.facts} is damaged: {error}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"{self.facts} does not describe a metafast run")
        if found.get("version") != VERSION:
            raise ValueError(
                f"{self.facts} has format version {found.get('version')!r}, this metafast reads version {VERSION}"
            )
        return found

    def update(self, **facts: Any) -> None:
        """Put ``facts`` into run.json, in the place of those of the same names."""
        content = {"format": FORMAT, "version": VERSION, **self.read(), **facts}
        with replacing(self.facts) as file:
            file.write(json.dumps(plain(content), indent=2).encode())

    # ---- metrics.jsonl -----------------------------------------------------------------------
    def rows(self) -> list[Row]:
        """The rows of the history. A line that was cut short by a crash can only be the last, and is left out."""
        lines = self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else []
        found: list[Row] = []
        for number, line in enumerate(lines[:-1], 1):  # what no newline ends is not whole
            try:
                row = json.loads(line)
                if not isinstance(row["kind"], str) or not isinstance(row["meta_step"], int):
                    raise ValueError("it is no row of a history")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.metrics}, line {number}, is damaged: {error}") from None
            found.append(row)
        return found

    def rewrite(self, rows: list[Row]) -> None:
        """Leave just these rows: those that a resumed run has behind it."""
        with replacing(self.metrics) as file:
            file.writelines(_line(row) for row in rows)

    def append(self, row: Row) -> None:
        with open(self.metrics, "ab") as file:
            file.write(_line(row))

    def flush(self) -> None:
        """Bring the rows to the disk, before a checkpoint that counts on them."""
        if self.metrics.exists():
            with open(self.metrics, "ab") as file:
                os.fsync(file.fileno())


def _line(row: Row) -> bytes:
    return json.dumps(plain(row)).encode() + b"\n"


def plain(value: Any) -> Any:
    """``value`` as JSON has it: what is not a finite number is null, what is no plain value is its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
