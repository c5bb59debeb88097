"""Folders as runs leave them, made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MACHINE = {"metafast": "0.1.0", "torch": "2.13.0+cpu", "devices": ["cpu", "cuda:0 <GPU> & more"], "threads": "1 of 2"}
COMMAND = ["metafast", "train", "images", "--data", "my images", "--ways", "3"]


def estimate(mean: float | None, interval: float | None, tasks: int = 200) -> dict[str, Any]:
    return {"mean": mean, "interval": interval, "tasks": tasks}


RESULTS = {
    "steps": [0, 1, 10],
    "estimates": {
        "accuracy": {
            "0": estimate(0.33251, 0.01234),
            "1": estimate(0.70123, 0.01111),
            "10": estimate(0.91234, 0.00987),
        },
        "loss": {"0": estimate(1.09871, 0.02345), "1": estimate(0.69871, 0.03456), "10": estimate(0.29871, 0.04567)},
    },
}


def run_folder(path: Path, *, metrics: bool = True, settings: dict[str, Any] | None = None, **facts: Any) -> Path:
    """A finished run of 1000 meta-steps on images; ``facts`` take the place of those of run.json."""
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "format": "metafast-run",
        "version": 1,
        "name": "images",
        "command": COMMAND,
        "settings": {"ways": 3, "meta_lr": 0.00125, "meta_steps": 1000, "network": {"channels": 17}} | (settings or {}),
        "machine": MACHINE,
        "meta_steps": 1000,
        "seconds": 12.3456,
        "stopped": "max_iters",
        "best": {"meta_step": 750, "value": 0.87654, "metric": "accuracy"},
        "results": RESULTS,
        **facts,
    }
    (path / "run.json").write_text(json.dumps(content))
    if metrics:
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def rows() -> list[dict[str, Any]]:
    """Training that gets better, validated every 250 meta-steps, at a rate that falls as a cosine."""
    found: list[dict[str, Any]] = []
    for step in range(10, 1001, 10):
        after, lr = 1.2 * math.exp(-step / 300) + 0.05, 0.001 * (1 + math.cos(math.pi * step / 1000)) / 2
        kinds = {"meta_step": step, "seconds": step / 81, "rate": 81.0, "before": 1.1, "after": after, "lr": lr}
        found.append({"kind": "train", **kinds})
        if step % 250 == 0:
            measured = {"metric": "accuracy", "mean": 1 - after / 2, "interval": 0.02, "tasks": 50}
            found.append({"kind": "validation", "meta_step": step, **measured})
    return found
