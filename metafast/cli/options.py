"""Settings of a training run: declared once, given on the command line or taken from the checkpoint it resumes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from metafast.training.checkpoint import CheckpointError


@dataclass(frozen=True)
class Option:
    """One setting. Its command-line flag is the name with dashes; its type is that of the default."""

    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    least: float | None = None
    fixed: bool = True  # whether a resumed run must keep it


Options = Mapping[str, Option]
#: What stands for a value in a usage line.
METAVARS = {int: "N", float: "X", str: "NAME"}


def add(parser: argparse.ArgumentParser, options: Options) -> None:
    for name, option in options.items():
        flag = "--" + name.replace("_", "-")
        kind = type(option.default)
        if kind is bool:
            text = literal(f"{option.help} (default {'yes' if option.default else 'no'})")
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            text = literal(f"{option.help} (default {option.default})")
            metavar = None if option.choices else METAVARS[kind]
            parser.add_argument(flag, type=kind, choices=option.choices, default=None, help=text, metavar=metavar)


def literal(text: str) -> str:
    """``text`` as argparse shows it: what it formats with % must say %%."""
    return text.replace("%", "%%")


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: an integer of at least so much."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    return integer


def resolve(options: Options, args: argparse.Namespace, stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a new run, or those of the ``stored`` one, which the command line must not contradict."""
    settings: dict[str, Any] = {}
    for name, option in options.items():
        given = getattr(args, name)
        if stored is None:
            value = option.default if given is None else given
        else:
            value = stored.get(name)
            if type(value) is not type(option.default):
                raise CheckpointError(f"checkpoint has no valid setting {name}: found {value!r}")
            if given is not None and not option.fixed:
                value = given
            elif given is not None and given != value:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} {given} contradicts the checkpoint, which was trained with {value}")
        if option.least is not None and not value >= option.least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {option.least:g}, got {value}")
        settings[name] = value
    return settings
