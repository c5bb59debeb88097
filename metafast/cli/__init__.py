"""The command line: ``metafast <command>``, or ``python -m metafast <command>``.

A command is a module with ``NAME`` (one or two words), a docstring whose first line is its help,
``add_arguments(parser)`` and ``run(args) -> exit code``; :data:`COMMANDS` lists them. The first of two words is a menu,
which :data:`MENUS` describes; without its second word it shows its help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from metafast.cli import adapt, compare, evaluate, explain, info, predict, report, search, train
from metafast.experiments.settings import literal


class Command(Protocol):
    NAME: str
    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: tuple[Any, ...] = (
    info,
    explain,
    *train.COMMANDS,
    evaluate,
    adapt,
    predict,
    report,
    compare,
    *search.COMMANDS,
)

MENUS = {
    "": """Exact second-order meta-learning for PyTorch.

The commands meta-train networks on images and tables of your own and on published experiments, test them, adapt them
to a new task, and predict. Your own models are trained in Python, with metafast.MAML and metafast.meta_train.""",
    "train": """Meta-train a network on tasks, then test it on fresh tasks.

Settings are flags, or lines of a TOML file with the same names: `metafast train FILE.toml` with, for instance,
  experiment = "images"
  data = "icons"
  ways = 5""",
    "search": "Search the settings of an experiment that do best, at a stated budget for each trial.",
}
EXAMPLES = """first steps:
  metafast info                     does the native engine work here?
  metafast train sinusoid           the regression experiment of the MAML paper
  metafast evaluate runs/sinusoid   what it has learnt, on fresh tasks
  metafast train images --data DIR  few-shot classification of your own images, in a folder for each class
  metafast explain conv4            does each layer of a network run natively, and what does it cost?

`metafast COMMAND --help` describes a command."""


def parser() -> argparse.ArgumentParser:
    root = _described(argparse.ArgumentParser, MENUS[""], prog="metafast", epilog=EXAMPLES)
    menus = {"": _menu(root, "COMMAND")}
    for command in COMMANDS:
        menu, _, word = command.NAME.rpartition(" ")
        if menu not in menus:
            menus[menu] = _menu(_described(menus[""].add_parser, MENUS[menu], name=menu), "TASKS")
        sub = _described(menus[menu].add_parser, command.__doc__, name=word)
        sub.add_argument("--debug", action="store_true", help="show an error with its traceback, not as one line")
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return root


def _described(make: Callable[..., argparse.ArgumentParser], text: str, **more: Any) -> argparse.ArgumentParser:
    """A parser whose help says ``text``, as it is laid out, and whose line in a menu is its first line."""
    if "name" in more:
        more["help"] = literal(text.partition("\n")[0].rstrip("."))
    return make(description=text.strip(), formatter_class=argparse.RawDescriptionHelpFormatter, **more)


def _menu(parser: argparse.ArgumentParser, metavar: str) -> Any:
    """Room for commands. A choice is not required by argparse, whose error would not say what there is to choose."""

    def show_help(args: argparse.Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(run=show_help, debug=False)
    return parser.add_subparsers(title="commands", metavar=metavar)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage or a choice not made, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        words = train.with_config(words)
    except ValueError as error:
        print(f"metafast: error: {error}", file=sys.stderr)
        return 1
    args = parser().parse_args(words)
    args.command = ["metafast", *(sys.argv[1:] if argv is None else argv)]
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
