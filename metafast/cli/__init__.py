"""The command line: ``metafast <command>``, or ``python -m metafast <command>``.

A command is a module with ``NAME`` (one or two words), a docstring whose first line is its help,
``add_arguments(parser)`` and ``run(args) -> exit code``; :data:`COMMANDS` lists them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from metafast.cli import evaluate, explain, info, train_omniglot, train_sinusoid


class Command(Protocol):
    NAME: str
    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: tuple[Any, ...] = (info, explain, train_sinusoid, train_omniglot, evaluate)


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="metafast", description="Exact second-order meta-learning for PyTorch.")
    menus = {"": root.add_subparsers(metavar="COMMAND", required=True)}
    for command in COMMANDS:
        menu, _, word = command.NAME.rpartition(" ")
        if menu not in menus:
            group = menus[""].add_parser(menu, help=f"{menu} on a task distribution")
            menus[menu] = group.add_subparsers(metavar="WHAT", required=True)
        first_line, _, rest = command.__doc__.partition("\n")
        sub = menus[menu].add_parser(
            word,
            help=first_line.rstrip("."),
            description=first_line + rest,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("metafast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            raise
        message = " ".join(str(error).split()) or "no message"
        ours = type(error).__module__.startswith("metafast")
        kind = "" if ours or isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: "
        print(f"metafast: error: {kind}{message}", file=sys.stderr)
        return 1
