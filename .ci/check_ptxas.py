"""Registers and spills of every CUDA kernel against csrc/cuda/budgets.txt.

    python .ci/check_ptxas.py BUILD_LOG            compare; exit 1 where a kernel needs more than its budget
    python .ci/check_ptxas.py BUILD_LOG --update   write the budgets anew

BUILD_LOG is what the build printed, with -Xptxas -v. A budget is the most of all architectures: registers per thread,
and bytes of stack and of spilled registers. A kernel that is not in the list may not spill.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BUDGETS = Path(__file__).parents[1] / "csrc" / "cuda" / "budgets.txt"
HEAD = """# Written by .ci/check_ptxas.py: of each kernel, over all architectures, the most registers
# per thread, bytes of stack and bytes of spilled registers. CI fails where a build needs more.
"""
Numbers = tuple[int, int, int]


def demangled(names: list[str]) -> list[str]:
    """The names as in the source, without namespaces and arguments."""
    filtered = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True).stdout

    def short(name: str) -> str:
        name = re.sub(r"metafast::(device_\w+::)?", "", name.removeprefix("void "))
        return name.split("(")[0].strip().replace(" >", ">")

    return [short(name) for name in filtered.splitlines()]


def parse(log: str) -> dict[str, Numbers]:
    """registers, stack, spills of each entry function and each function out of line."""
    most: dict[str, list[int]] = {}
    function = entry = ""
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            entry = found[1]
        elif found := re.search(r"Function properties for (\S+)", line):
            function = found[1]
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            numbers = most.setdefault(function, [0, 0, 0])
            numbers[1] = max(numbers[1], int(found[1]))
            numbers[2] = max(numbers[2], int(found[2]) + int(found[3]))
        elif found := re.search(r"Used (\d+) registers", line):
            numbers = most.setdefault(entry, [0, 0, 0])
            numbers[0] = max(numbers[0], int(found[1]))
    names = list(most)
    table: dict[str, Numbers] = {}
    for name, mangled in zip(demangled(names), names, strict=True):
        new, old = most[mangled], table.get(name, (0, 0, 0))
        table[name] = (max(new[0], old[0]), max(new[1], old[1]), max(new[2], old[2]))
    return table


def read() -> dict[str, Numbers]:
    budgets: dict[str, Numbers] = {}
    for line in BUDGETS.read_text().splitlines():
        if line and not line.startswith("#"):
            registers, stack, spills, name = line.split(maxsplit=3)
            budgets[name] = (int(registers), int(stack), int(spills))
    return budgets


def write(table: dict[str, Numbers]) -> None:
    lines = [f"{r:4d} {stack:5d} {spills:5d}  {name}" for name, (r, stack, spills) in sorted(table.items())]
    BUDGETS.write_text(HEAD + "\n".join(["#reg stack spill  kernel", *lines]) + "\n")


def main(arguments: list[str]) -> int:
    table = parse(Path(arguments[0]).read_text(errors="replace"))
    if not table:
        print(f"{arguments[0]} tells of no kernel: was it written by a build with -Xptxas -v?")
        return 1
    if "--update" in arguments:
        write(table)
        return 0
    budgets = read()
    faults = []
    for name, numbers in sorted(table.items()):
        allowed = budgets.get(name, (255, 1 << 20, 0))
        what = zip(("registers", "bytes of stack", "bytes spilled"), numbers, allowed, strict=True)
        faults += [f"{name}: {new} {kind}, {limit} in the budget" for kind, new, limit in what if new > limit]
    faults += [f"{name}: in the budget, but not in the build" for name in sorted(budgets.keys() - table.keys())]
    print("\n".join(faults) or f"{len(table)} kernels are within their budgets")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
