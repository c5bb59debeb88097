"""Time metafast beside its rivals, every gradient checked first; print the table and draw the picture.

Rivals that are not installed are left out, with the reason. What takes minutes is left out unless --all is given.
Runs from a source checkout, where benchmarks/ is.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import metafast
from metafast.cli.options import at_least
from metafast.files import replacing

NAME = "bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="W1,W2", help="workloads to run (default all; W6 is all of its sizes)")
    parser.add_argument("--rivals", metavar="jax,...", help="rivals to run (default all that are installed)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON and the picture")
    parser.add_argument("--threads", type=at_least(1), default=2, help="threads, and cores, for everyone (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everybody computes")
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not to be quoted")
    parser.add_argument("--all", action="store_true", help="also what compiles or runs for minutes")


def run(args: argparse.Namespace) -> int:
    locate()
    rivals = importlib.import_module("benchmarks.rivals")
    workloads = importlib.import_module("benchmarks.workloads")
    timing = importlib.import_module("benchmarks.timing")
    harness = importlib.import_module("benchmarks.run")
    chosen: dict[str, Any] = {"slow": args.all, "effort": timing.QUICK if args.quick else timing.FULL}
    if args.device != "cpu":
        importlib.import_module("benchmarks.cuda").prepare()
        chosen |= {"device": args.device, "patience": 900, "workloads": list(workloads.on(args.device).values())}
    if args.only is not None:
        chosen["workloads"] = workloads.chosen(args.only.split(","), args.device)
    if args.rivals is not None:
        chosen["rivals"] = rivals.chosen(args.rivals.split(","))
    importlib.import_module("benchmarks.machine").confine(args.threads)
    command = shlex.join(["metafast", *sys.argv[1:]])
    result = harness.measure(harness.Options(**chosen), command, lambda line: print(line, file=sys.stderr, flush=True))
    print(importlib.import_module("benchmarks.table").table(result))
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / "bench.json") as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture without matplotlib (pip install matplotlib)", file=sys.stderr)
    else:
        importlib.import_module("benchmarks.picture").draw(result, args.out / "bench.png")
    print(f"written to {args.out}", file=sys.stderr)
    return 0


def locate() -> None:
    """Make ``benchmarks`` importable, which is not installed; FileNotFoundError outside a source checkout."""
    for folder in (Path(metafast.__file__).parents[1], Path.cwd()):
        if (folder / "benchmarks" / "workloads.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))  # first, for other packages may have a module of this name too
            return
    raise FileNotFoundError("benchmarks/ is not installed: run this from a source checkout of metafast")
