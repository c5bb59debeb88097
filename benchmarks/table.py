"""A run's result as text."""

from __future__ import annotations

from typing import Any

from benchmarks.rivals import OURS
from benchmarks.workloads import W1

Result = dict[str, Any]


def table(result: Result) -> str:
    """Times of one gradient in milliseconds and, in brackets, how many times as long as metafast; then the rest."""
    rivals = (
        [row["rival"] for row in result["workloads"][0]["results"] if row["rival"] != OURS]
        if result["workloads"]
        else []
    )
    rivals = [
        r
        for r in rivals
        if any("ms" in row for line in result["workloads"] for row in line["results"] if row["rival"] == r)
    ]
    rows = [["", "metafast", "floor", "/ floor", *rivals]]
    for line in result["workloads"]:
        by_rival = {row["rival"]: row for row in line["results"]}
        floor = line.get("floor_ms")
        cells = [label(line), number(by_rival[OURS]["ms"])]
        cells += [number(floor), f"{line['over_floor']:.1f}"] if floor else ["", ""]
        cells += [
            f"{number(by_rival[r]['ms'])} ({ratio(by_rival[r]['ratio'])})" if "ms" in by_rival[r] else "-"
            for r in rivals
        ]
        rows.append(cells)
    parts = ["Milliseconds for one gradient; in brackets, times metafast's.", "", *columns(rows)]
    if "memory" in result:
        parts += ["", "Peak growth of resident memory, MB", "", *columns(memory(result["memory"]))]
    return "\n".join([*parts, *notes(result), "", *conditions(result)])


def label(line: Result) -> str:
    """A workload's code and what it stands for."""
    return f"{line['name']:<11} {line['title']}"


def memory(lines: list[Result]) -> list[list[str]]:
    """A row for each workload, a column for each rival in each of its forms."""
    heads = dict.fromkeys((row["rival"], row["policy"]) for line in lines for row in line["growth_bytes"])
    rows = [["", *(", ".join(filter(None, head)) for head in heads)]]
    for line in lines:
        found = {(row["rival"], row["policy"]): row.get("bytes") for row in line["growth_bytes"]}
        cells = [found.get(head) for head in heads]
        rows.append([label(line), *("-" if cell is None else f"{cell / 1e6:.1f}" for cell in cells)])
    return rows


def notes(result: Result) -> list[str]:
    lines = ["", "Skipped:", *skipped(result)] if skipped(result) else []
    if slow := once(result):
        lines += ["", f"Timed in one call, which took long: {slow}"]
    if scaling := [line for line in result["workloads"] if "scaling" in line]:
        shown = ", ".join(f"{line['name']} {line['scaling']['efficiency']:.2f}" for line in scaling)
        lines += ["", f"Efficiency of {scaling[0]['scaling']['threads']} threads: {shown}"]
    if "growth" in result:
        shown = ", ".join(
            f"{us:.3g} with {tasks}"
            for tasks, us in zip(result["growth"]["tasks"], result["growth"]["us_per_task"], strict=True)
        )
        lines += ["", f"{W1.title} (W6), microseconds per task, in turns: {shown}"]
    if "overhead_us" in result:
        us = result["overhead_us"]
        lines += ["", "An empty model, microseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in us.items())]
    if "limits" in result:
        names = {
            "fma_gflops": "multiply-add GFLOP/s",
            "matmul_gflops": "matrix product GFLOP/s",
            "tf32_gflops": "in TF32",
            "copy_gbps": "copy GB/s",
        }
        shown = ", ".join(f"{names[key]} {value:.0f}" for key, value in sorted(result["limits"].items(), reverse=True))
        lines += [f"The machine's limits in this run: {shown}"]
    if "gpu" in result["machine"]:
        lines += [device_note(line) for line in result["workloads"] if "host_us" in line]
    return lines


def conditions(result: Result) -> list[str]:
    """Where, when and by which command."""
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["packages"].items())
    lines = []
    if "gpu" in m:
        lines += [f"{m['gpu']}, CUDA {m['CUDA in torch']}, driver, clocks, power: {m['driver, clocks, power limit']}"]
    lines += [f"{m['cpu']}, {m['threads']} threads, {m['instruction set']}; Python {m['python']}, {versions}"]
    state = f"load {m['load'][0]:.1f} at the start"
    if "stolen" in result:
        state += f", {result['stolen']:.0%} of the processors' time taken by their host"
    return [*lines, f"{result['date']}, {state}, {result['seconds']:.0f} s: {result['command']}"]


def device_note(line: Result) -> str:
    """What a GPU's row says beside its times."""
    parts = [f"the call returns after {line['host_us']:.0f} us"]
    if "fraction" in line:
        parts += [f"{line['gflops']:.0f} GFLOP/s, {100 * line['fraction']:.1f} % of the float32 product's"]
    return f"{label(line)}: {'; '.join(parts)}"


def skipped(result: Result) -> list[str]:
    """Each reason once per rival, with the workloads it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for line in result["workloads"]:
        for row in line["results"]:
            if "skipped" in row:
                reasons.setdefault((row["rival"], row["skipped"]), []).append(line["name"])
    for line in result.get("memory", []):
        for row in line["growth_bytes"]:
            if "skipped" in row:
                reasons.setdefault((f"memory of {row['rival']}", row["skipped"]), []).append(line["name"])
    everywhere = len(result["workloads"])
    return [
        f"  {rival}{'' if len(names) == everywhere else ' on ' + ', '.join(names)}: {reason}"
        for (rival, reason), names in reasons.items()
    ]


def once(result: Result) -> str:
    """Whose time is that of a single call, and where."""
    slow: dict[str, list[str]] = {}
    for line in result["workloads"]:
        for row in line["results"]:
            if row.get("calls") == 1:
                slow.setdefault(row["rival"], []).append(line["name"])
    return ", ".join(f"{rival} on {', '.join(names)}" for rival, names in slow.items())


def columns(rows: list[list[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def number(milliseconds: float) -> str:
    """Three significant digits, never in exponential notation."""
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


def ratio(value: float) -> str:
    return f"{value:.1f}" if value < 20 else f"{value:.0f}"
