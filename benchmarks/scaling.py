"""How metafast's own time grows with threads and with tasks, both measured in turns."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.rivals import Step
from benchmarks.timing import Effort, rounds, turn

#: At least so many, where effort allows, because a core that others begin to use within a round spoils it.
ROUNDS = 5


def over_threads(ours: Step, effort: Effort) -> dict[str, Any]:
    """Milliseconds on one thread and on all, and the efficiency: the median over rounds, in each of which all took a
    turn, because a core that others use is slower for seconds and then is not.

    For the same reason one thread takes a turn on every core, where there are as many as threads. Cores that do the
    whole work in ``t_1, t_2, ...`` could together do it in ``1 / (1 / t_1 + 1 / t_2 + ...)``; the efficiency is that
    over the time on all threads. With cores alike it is one thread's time over threads times that of all."""
    threads = torch.get_num_threads()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    places: list[set[int]] = [{core} for core in cores] if len(cores) == threads else []

    def median(count: int) -> float:
        torch.set_num_threads(count)
        return statistics.median(turn(ours, effort.turn))

    _, most = effort.rounds
    alone, together = [], []
    try:
        for _ in rounds(replace(effort, rounds=(min(ROUNDS, most), most))):
            times = []
            for place in places:
                os.sched_setaffinity(0, place)
                times.append(median(1))
            if places:
                os.sched_setaffinity(0, cores)
            alone.append(times or [median(1)] * threads)
            together.append(median(threads))
    finally:
        torch.set_num_threads(threads)
        if places:
            os.sched_setaffinity(0, cores)
    efficiency = [1 / sum(1 / t for t in times) / both for times, both in zip(alone, together, strict=True)]
    return {
        "threads": threads,
        "one_ms": 1e3 * statistics.median(t for times in alone for t in times),
        "all_ms": 1e3 * statistics.median(together),
        "efficiency": statistics.median(efficiency),
        "pinned": bool(places),
    }


def over_tasks(steps: Mapping[int, Step], effort: Effort) -> dict[str, Sequence[float]]:
    """Microseconds per task of the same gradient for different numbers of tasks, medians of turns."""
    times: dict[int, list[float]] = {tasks: [] for tasks in steps}
    for _ in rounds(effort):
        for tasks, step in steps.items():
            times[tasks].append(statistics.median(turn(step, effort.turn)))
    return {
        "tasks": list(times),
        "us_per_task": [1e6 * statistics.median(values) / tasks for tasks, values in times.items()],
    }
