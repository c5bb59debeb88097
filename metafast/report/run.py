"""What a run's folder says of it: run.json and metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "metafast-run"
VERSION = 1
#: Why a run stopped, as a reader would say it.
STOPPED = {
    "max_iters": "all meta-steps done",
    "target": "stopped because the target was reached",
    "patience": "stopped because validation no longer improved",
    "seconds": "stopped when its time was spent",
    "callback": "stopped by a callback",
    "interrupted": "interrupted",
    "diverged": "stopped because the loss was no longer finite",
    "running": "still running when this page was written",
}
#: Settings that say which tasks a run is about: results of runs that differ in one of them are not comparable.
OF_THE_TASK = ("task", "tasks_name", "data", "ways", "shots", "test_queries")


@dataclass(frozen=True)
class Run:
    """A run, finished or not."""

    folder: Path
    facts: Mapping[str, Any]  # the content of run.json
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl

    @property
    def name(self) -> str:
        return str(self.facts.get("name") or self.folder.name)

    @property
    def stopped(self) -> str:
        return str(self.facts.get("stopped", "running"))

    @property
    def state(self) -> str:
        """Why it stopped, in words."""
        return str(self.facts.get("reason") or STOPPED.get(self.stopped, self.stopped))

    @property
    def finished(self) -> bool:
        return self.stopped not in ("running", "interrupted", "diverged")

    def part(self, name: str) -> dict[str, Any]:
        """A dictionary of run.json; empty if it is not there yet."""
        value = self.facts.get(name)
        return value if isinstance(value, dict) else {}

    def series(self, kind: str, *names: str) -> list[tuple[float, ...]]:
        """Of all lines of a kind that have them, the meta-step and the numbers called ``names``."""
        rows = []
        for line in self.metrics:
            values = [line.get(name) for name in ("meta_step", *names)]
            numbers = [float(value) for value in values if isinstance(value, (int, float))]
            if line.get("kind") == kind and len(numbers) == len(values):
                rows.append(tuple(numbers))
        return rows

    @property
    def task(self) -> tuple[str, ...]:
        """What the run is about, as far as its settings say: runs with the same may be compared."""
        settings = self.part("settings")
        return (self.name, *(f"{key} {settings[key]}" for key in OF_THE_TASK if key in settings))


def read(folder: str | Path) -> Run:
    """ValueError says what is missing or damaged. A last line of metrics that is cut short is left out: the run may
    be writing it."""
    folder = Path(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a metafast run: its format is not {FORMAT!r}")
    if facts.get("version") != VERSION:
        raise ValueError(f"{path} has format version {facts.get('version')!r}, this metafast reads version {VERSION}")
    return Run(folder, facts, _metrics(folder / "metrics.jsonl"))


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}, is damaged: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected an object, found {line[:40]!r}")
        found.append(value)
    return found
