"""Time metafast beside its rivals, every gradient checked first; print the table and draw the picture.

Rivals that are not installed are left out, with the reason. What takes minutes is left out unless --all is given.
Runs in a source checkout of metafast, whose folder benchmarks/ is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cuda, machine, rivals, timing, workloads
from benchmarks.run import Options, measure
from benchmarks.table import table
from metafast.cli.options import at_least
from metafast.files import replacing


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", metavar="W1,W2", help="workloads to run (default all; W6 is all of its sizes)")
    made.add_argument("--rivals", metavar="jax,...", help="rivals to run (default all that are installed)")
    made.add_argument(
        "--out",
        type=Path,
        default=Path("runs/bench"),
        metavar="DIR",
        help="where the JSON and the picture go (default %(default)s)",
    )
    made.add_argument(
        "--threads", type=at_least(1), default=2, metavar="N", help="threads, and cores, for everyone (default 2)"
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everybody computes (default cpu)")
    made.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not to be quoted")
    made.add_argument("--all", action="store_true", help="also what compiles or runs for minutes")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    usage = parser()
    args = usage.parse_args(arguments)
    try:
        options = chosen(args)
    except ValueError as error:
        usage.error(str(error))
    machine.confine(args.threads)
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    result = measure(options, command, lambda line: print(line, file=sys.stderr, flush=True))
    print(table(result))
    write(result, args.out)
    return 0


def chosen(args: argparse.Namespace) -> Options:
    """What to measure; ValueError names what does not exist."""
    choice: dict[str, Any] = {"slow": args.all, "effort": timing.QUICK if args.quick else timing.FULL}
    if args.device != "cpu":
        cuda.prepare()
        choice |= {"device": args.device, "patience": 900, "workloads": list(workloads.on(args.device).values())}
    if args.only is not None:
        choice["workloads"] = workloads.chosen(args.only.split(","), args.device)
    if args.rivals is not None:
        choice["rivals"] = rivals.chosen(args.rivals.split(","))
    return Options(**choice)


def write(result: dict[str, Any], folder: Path) -> None:
    """The result as JSON, and its picture where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "bench.json") as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture without matplotlib (pip install matplotlib)", file=sys.stderr)
    else:
        from benchmarks.picture import draw

        draw(result, folder / "bench.png")
    print(f"written to {folder}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
