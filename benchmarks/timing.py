"""Times of steps that take turns, so that a machine that slows down slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.rivals import Step


@dataclass(frozen=True)
class Effort:
    """How long to measure one workload."""

    turn: float  # seconds of one turn; one call at least
    rounds: tuple[int, int]  # fewest and most turns of every step
    seconds: float  # stop after the fewest rounds once this is used up
    enough: float = 15.0  # or after two, where rivals take so long that this is
    once: float = 8.0  # a call that takes longer is not timed again


FULL = Effort(turn=0.1, rounds=(3, 15), seconds=5.0)
QUICK = Effort(turn=0.05, rounds=(2, 3), seconds=2.0)


Clock = Callable[[Step], float]


def host_clock(step: Step) -> float:
    """Seconds of one call."""
    before = time.perf_counter()
    step()
    return time.perf_counter() - before


def in_turns(
    ours: Step, others: Mapping[str, Step], effort: Effort, clock: Clock = host_clock
) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of every call: ours and each other's, A B A C A B A C ... All have run before."""
    our_times: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in others}
    for _ in rounds(effort):
        for name, step in others.items():
            our_times += turn(ours, effort.turn, clock)
            if max(times[name], default=0) <= effort.once:
                times[name] += turn(step, effort.turn, clock)
        if not others:
            our_times += turn(ours, effort.turn, clock)
    return our_times, times


def rounds(effort: Effort) -> Iterator[int]:
    """0, 1, ... for as long as ``effort`` allows."""
    fewest, most = effort.rounds
    begin = time.perf_counter()
    for done in range(most):
        used = time.perf_counter() - begin
        if (done >= fewest and used > effort.seconds) or (done >= 2 and used > effort.enough):
            return
        yield done


def turn(step: Step, seconds: float, clock: Clock = host_clock) -> list[float]:
    """Times of calls for about so long, after a tenth of it unmeasured, in which caches and threads come back."""
    times: list[float] = []
    begin = time.perf_counter()
    first = clock(step)
    if first > seconds / 2:
        return [first]
    while time.perf_counter() < begin + seconds / 10:
        clock(step)
    while not times or time.perf_counter() < begin + seconds:
        times.append(clock(step))
    return times


def summary(times: list[float]) -> dict[str, float | int]:
    """Median, quartiles and number of calls; milliseconds."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"ms": 1e3 * statistics.median(times), "low_ms": 1e3 * low, "high_ms": 1e3 * high, "calls": len(times)}
