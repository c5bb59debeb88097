"""What a run's folder says of it, as the pages ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metafast.run_folder import Row, RunFolder

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
#: Settings that say, beside the name, which tasks a run is about: where one differs, results are not comparable.
OF_THE_TASK = ("data", "ways", "shots")


@dataclass(frozen=True)
class Run:
    """A run, finished or not."""

    folder: Path
    facts: Mapping[str, Any]  # the content of run.json
    metrics: list[Row]  # the lines of metrics.jsonl

    @property
    def name(self) -> str:
        """That of the command, or of the folder where the run has none of its own."""
        name = str(self.facts.get("name", "")).removeprefix("train ")
        return self.folder.resolve().name if name in ("", "meta_train") else name

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
        named = self.facts.get("name") not in (None, "meta_train")
        kind = self.name if named else str(settings.get("task", "runs"))
        return (kind, *(f"{key} {settings[key]}" for key in OF_THE_TASK if key in settings))


def read(folder: str | Path) -> Run:
    """ValueError says what is missing or damaged."""
    files = RunFolder(folder)
    if not files.facts.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no run.json")
    return Run(files.path, files.read(), files.rows())
