"""One run: every workload, every rival, checked and then timed; the result is plain JSON."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import cuda, floors, limits, machine, memory, overhead, scaling
from benchmarks.check import LOOP, Judge, Wrong
from benchmarks.rivals import OURS, RIVALS, Step, Unable, prepare
from benchmarks.timing import FULL, QUICK, Effort, in_turns, summary, turn
from benchmarks.workloads import LONG, W1, W6, WORKLOADS, Workload

#: The form of a result; a reader of old files goes by it.
SCHEMA = 2
#: A rival that has not answered once by then is given up.
PATIENCE = 240
#: Workloads on which speed-up from one to two threads is measured, and those whose memory is.
SCALED = ("W2", "W3", "W3-1", "W4", "W5")
REMEMBERED = ("W5", *(w.name for w in LONG))
#: One library of the loop's kind is timed on every workload, the others where that takes seconds.
LIKE_THE_LOOP = "the loop stands for it here; --all times it"
COMPILES = "compiles for minutes; --all waits for it"
MINUTES = "takes many seconds a call; --all times it"
LONGEST = tuple(w.name for w in LONG)
#: Where a loop over tasks in Python takes seconds, or compiles nothing that the loop does not.
AS_THE_LOOP = ("W1-adam", "W2", "W2-momentum", "W3", "W3-1", "W4", "W5", *LONGEST, "W6-100", "W6-1000", "W6-10000")
SLOW: dict[str, dict[str, str]] = {
    "higher": dict.fromkeys(AS_THE_LOOP, LIKE_THE_LOOP),
    "torchopt": dict.fromkeys(AS_THE_LOOP, LIKE_THE_LOOP),
    "learn2learn": dict.fromkeys((*LONGEST, "W6-1000", "W6-10000"), LIKE_THE_LOOP),
    LOOP: dict.fromkeys((*LONGEST, "W6-1000", "W6-10000"), MINUTES),
    "torch.func": dict.fromkeys(LONGEST, MINUTES),
    "torch.compile": dict.fromkeys((n for n in WORKLOADS if n not in ("W1", "W7")), COMPILES),
    "jax": {
        **dict.fromkeys(("W4", "W3-fo"), MINUTES),
        "W3-1": "compiles as long as W3; --all waits for it",
    },
}
#: The same on a GPU, where compiled code is what users reach for: its compilers are waited for.
SLOW_ON_GPU: dict[str, dict[str, str]] = {
    **{
        rival: dict.fromkeys((*SLOW["higher"], "W3-fo", "W3-32", "W3-256", "W4-32"), LIKE_THE_LOOP)
        for rival in ("higher", "torchopt", "learn2learn")
    },
    LOOP: dict.fromkeys((*LONGEST, "W6-10000", "W3-256"), MINUTES),
    "torch.func": dict.fromkeys(LONGEST, MINUTES),
}
#: Seconds beyond which preparing is not done twice: the formula in float64 is then left to the tests' small networks.
#: Nor is another form tried after a call as long, of which two of one form differ more than forms do.
TWICE = 10
#: Compilers of native code, which no signal interrupts: what is slow is first tried in a process that can be ended.
DEAF = ("jax",)


@dataclass(frozen=True)
class Options:
    workloads: Sequence[Workload] = field(default_factory=lambda: list(WORKLOADS.values()))
    rivals: Sequence[str] = field(default_factory=lambda: [name for name in RIVALS if name != OURS])
    effort: Effort = FULL
    slow: bool = False  # also what takes minutes
    extras: bool = True  # limits of the machine, overhead, memory, threads
    patience: int = PATIENCE
    device: str = "cpu"

    @staticmethod
    def quick(**changes: Any) -> Options:
        return Options(effort=QUICK, **changes)


def measure(options: Options, command: str = "", say: Callable[[str], None] = print) -> dict[str, Any]:
    """All results. Wrong if metafast's own gradient is; a rival that is wrong is not timed, and it is said why."""
    begin, stolen = time.time(), machine.stolen()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        "command": command,
        "machine": machine.describe(),
    }
    if options.extras:
        say("the machine's limits")
        _limits(result, options.device)
    if options.device != "cpu":
        result["machine"] |= cuda.describe()
    peak = limits.peak_gflops(result["limits"]) if options.extras else None
    result["workloads"] = []
    for workload in options.workloads:
        result["workloads"].append(_workload(workload, options, peak, say))
    remembered = [w for w in options.workloads if w.name in REMEMBERED]
    if options.extras and options.device == "cpu" and remembered:
        result["memory"] = []
        for workload in remembered:
            say(f"memory of {workload.name} ({workload.title})")
            growth = memory.of_all(workload, options.slow, options.patience)
            result["memory"].append({"name": workload.name, "title": workload.title, "growth_bytes": growth})
    if options.extras and options.device == "cpu" and {w.name for w in W6} <= {w.name for w in options.workloads}:
        say(f"W6 ({W1.title}), its sizes in turns")
        steps = {w.tasks: next(iter(prepare(OURS, w.problem()).values())) for w in W6}
        result["growth"] = scaling.over_tasks(steps, options.effort)
    result["seconds"] = time.time() - begin
    if stolen is not None and (now := machine.stolen()) is not None:
        result["stolen"] = (now - stolen) / (result["seconds"] * (os.cpu_count() or 1))
    return result


def _limits(result: dict[str, Any], device: str) -> None:
    if device == "cpu":
        result["limits"] = limits.measure(torch.get_num_threads())
        result["overhead_us"] = overhead.microseconds()
    else:
        result["limits"] = cuda.limits()
        result["overhead_us"] = overhead.microseconds(device=device)


def _workload(workload: Workload, options: Options, peak: float | None, say: Callable[[str], None]) -> dict[str, Any]:
    judge = Judge(workload)
    ours, our_row = contestant(OURS, workload, judge, options.patience)
    steps: dict[str, Step] = {}
    rows = [our_row]
    for rival in options.rivals:
        row: dict[str, Any] = {"rival": rival}
        rows.append(row)
        slow = SLOW if options.device == "cpu" else SLOW_ON_GPU
        reason = None if options.slow else slow.get(rival, {}).get(workload.name)
        if reason is None:
            try:
                steps[rival], checked = contestant(rival, workload, judge, options.patience)
                row.update(checked)
            except (Unable, Wrong) as problem:
                reason = str(problem)
        if reason is not None:
            row["skipped"] = reason
    _time(ours, steps, rows, options)
    line: dict[str, Any] = {
        "name": workload.name,
        "title": workload.title,
        "kind": workload.kind,
        "tasks": workload.tasks,
        "steps": workload.steps,
        "flops": floors.flops(workload),
        "second_order_term": judge.second_order_term,
        "results": rows,
    }
    if peak:
        line["floor_ms"] = floors.floor_ms(workload, peak)
        line["over_floor"] = our_row["ms"] / line["floor_ms"]
    if options.device != "cpu":
        line["host_us"] = our_row["host_us"]
        line["gflops"] = line["flops"] / our_row["ms"] / 1e6
        line |= {"fraction": line["gflops"] / peak} if peak else {}
    if options.extras and options.device == "cpu" and workload.name in SCALED and torch.get_num_threads() > 1:
        line["scaling"] = scaling.over_threads(ours, options.effort)
    others = (row for row in rows if "ratio" in row and not row["rival"].startswith(OURS))
    fastest = min(others, key=lambda row: row["ratio"], default=None)
    rest = f", {fastest['rival']} {fastest['ratio']:.2f} times that" if fastest else ""
    say(f"{workload.name} ({workload.title}): metafast {our_row['ms']:.3g} ms{rest}")
    return line


def _time(ours: Step, steps: dict[str, Step], rows: list[dict[str, Any]], options: Options) -> None:
    """Times into the rows, ours first. On a GPU by events; what has a runtime of its own by a clock that waits, and so
    is ours where it is compared with that."""
    our_row = rows[0]
    if options.device == "cpu":
        our_times, times = in_turns(ours, steps, options.effort)
        our_row.update(summary(our_times))
        ours_ms = dict.fromkeys(times, our_row["ms"])
    else:
        cuda.warm([ours, *steps.values()])
        alone = {name: step for name, step in steps.items() if name in cuda.OWN_RUNTIME}
        seen = {name: step for name, step in steps.items() if name not in alone}
        our_times, times = in_turns(ours, seen, options.effort, cuda.EventClock())
        our_row.update(summary(our_times))
        ours_ms = dict.fromkeys(seen, our_row["ms"])
        if alone:
            our_times, waited = in_turns(ours, alone, options.effort, cuda.waiting_clock)
            our_row["waited_ms"] = summary(our_times)["ms"]
            ours_ms |= dict.fromkeys(alone, our_row["waited_ms"])
            times |= waited
        for row in rows:
            step = ours if row is our_row else seen.get(row["rival"])
            if step is not None:
                row.update(clock="events", host_us=cuda.host_us(step))
            elif row["rival"] in alone:
                row.update(clock="waiting")
    for row in rows[1:]:
        if row["rival"] in times:
            row.update(summary(times[row["rival"]]))
            row["ratio"] = row["ms"] / ours_ms[row["rival"]]


def contestant(rival: str, workload: Workload, judge: Judge, patience: int) -> tuple[Step, dict[str, Any]]:
    """The rival's fastest form, checked in float32 and, by its formula, in float64. Unable or Wrong says why not."""
    try:
        if rival in DEAF and workload.device == "cpu" and workload.name in SLOW.get(rival, {}):
            memory.growth(rival, workload, limit=patience)
        with _patience(patience):
            begin = time.perf_counter()
            forms = prepare(rival, workload.problem())
            errors: dict[str, float] = {}
            seconds: dict[str, float] = {}
            for name, step in forms.items():
                if max(seconds.values(), default=0) > TWICE:
                    break
                first = time.perf_counter()
                errors[name] = judge.single(step())
                seconds[name] = time.perf_counter() - first
                if len(forms) > 1 and seconds[name] < 1:  # where the first call's preparations would show
                    seconds[name] = turn(step, 0.0)[0]
            once = time.perf_counter() - begin
            best = min(seconds, key=lambda name: seconds[name])
            row: dict[str, Any] = {"rival": rival, "form": best, "error32": errors[best], "error64": None}
            if once < TWICE and not judge.is_judged_by(rival):
                row["error64"] = judge.double(prepare(rival, workload.problem(torch.float64))[best]())
    except (Unable, Wrong):
        raise
    except TimeoutError:
        raise Unable(f"no answer in {patience} s") from None
    except Exception as error:
        if rival == OURS:
            raise
        raise Unable(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}") from error
    return forms[best], row


@contextlib.contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """TimeoutError in the main thread after so long, however deep in a compiler, unless that one is native code."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    expired = False

    def interrupt(*_: object) -> None:
        nonlocal expired
        expired = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    except Exception as error:  # compilers wrap what they meet
        raise TimeoutError if expired else error from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
