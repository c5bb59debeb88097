"""Time metafast, every gradient checked first; print a table.

rivals    metafast beside its rivals, with a picture; the default
rules     what momentum and Adam cost, and inner steps of the last layer alone
steps     memory and time of many inner steps, with checkpoints and without
outer     a whole step of a training loop beside its meta-gradient
networks  models that people adapt, beside the loop over tasks, torch.func and JAX
fallback  the same by torch alone, as models run that have no native form

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

from benchmarks import cuda, fallback, machine, networks, outer, rivals, rules, steps, timing, workloads
from benchmarks.run import Options, measure
from benchmarks.table import Result, table
from metafast.cli.options import at_least
from metafast.files import replacing

#: Tables of other kinds, each a module here.
TABLES: dict[str, Any] = {"rules": rules, "steps": steps, "outer": outer, "networks": networks, "fallback": fallback}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "what",
        nargs="?",
        choices=("rivals", *TABLES),
        default="rivals",
        help="the table (default %(default)s)",
    )
    made.add_argument("--only", metavar="W1,W2", help="what to run (default all; W6 is all of its sizes)")
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
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    try:
        result = alone(args, command) if args.what in TABLES else beside_rivals(args, command)
    except ValueError as error:
        usage.error(str(error))
    save(result, args.out, args.what)
    return 0


def alone(args: argparse.Namespace, command: str) -> Result:
    """A table of another kind, printed; ValueError for options that it has not."""
    if args.rivals or args.all or args.device != "cpu":
        raise ValueError(f"{args.what} has no --rivals, --all and --device")
    module, some = TABLES[args.what], {}
    if args.only:
        if module not in (networks, fallback):
            raise ValueError(f"{args.what} has no --only")
        some["only"] = args.only.split(",")
    machine.confine(args.threads)
    result: Result = module.measure(effort(args), command, say, **some)
    print(module.table(result))
    return result


def beside_rivals(args: argparse.Namespace, command: str) -> Result:
    """The table of rivals, printed; ValueError names what does not exist."""
    options = chosen(args)
    machine.confine(args.threads)
    result = measure(options, command, say)
    print(table(result))
    return result


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def effort(args: argparse.Namespace) -> timing.Effort:
    return timing.QUICK if args.quick else timing.FULL


def chosen(args: argparse.Namespace) -> Options:
    """What to measure; ValueError names what does not exist."""
    choice: dict[str, Any] = {"slow": args.all, "effort": effort(args)}
    if args.device != "cpu":
        cuda.prepare()
        choice |= {"device": args.device, "patience": 900, "workloads": list(workloads.on(args.device).values())}
    if args.only is not None:
        choice["workloads"] = workloads.chosen(args.only.split(","), args.device)
    if args.rivals is not None:
        choice["rivals"] = rivals.chosen(args.rivals.split(","))
    return Options(**choice)


def save(result: Result, folder: Path, what: str) -> None:
    """The result as JSON and, of the table of rivals, its picture where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / ("bench.json" if what == "rivals" else f"{what}.json")) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    if what == "rivals" and importlib.util.find_spec("matplotlib") is None:
        say("no picture without matplotlib (pip install matplotlib)")
    elif what == "rivals":
        from benchmarks.picture import draw

        draw(result, folder / "bench.png")
    say(f"written to {folder}")


if __name__ == "__main__":
    sys.exit(main())
