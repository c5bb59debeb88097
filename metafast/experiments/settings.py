"""Settings of a run: fields of one dataclass, which flags, a TOML file and a stored run all give alike."""

from __future__ import annotations

import argparse
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

#: What stands for a value in a usage line.
METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
T = TypeVar("T")


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message names it."""


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    fixed: bool = True,
    group: str = "",
) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: its value where nothing is said; ``...`` for a setting that must be given.
        fixed: a resumed run must keep its value.
        group: the heading of its flag in a command's help; a field that takes the place of an inherited one is under
            the heading of that.
    """
    about = {"help": help, "choices": choices, "least": least, "fixed": fixed, "group": group}
    if default is ...:
        return field(metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Declared:
    """What is known of a setting."""

    name: str
    type: type
    many: bool  # several values of the type
    optional: bool
    default: Any  # MISSING: it must be given
    help: str
    choices: tuple[str, ...]
    least: float | None
    fixed: bool
    group: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def checked(self, value: Any) -> Any:
        """``value`` as the dataclass holds it; SettingsError if it is none of this setting."""
        if value is None and self.optional:
            return None
        if self.many:
            items = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._one(item) for item in items)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        kind: Any = self.type
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is Path and isinstance(value, str):
            value = Path(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SettingsError(f"{self.name}: expected {KINDS[kind]}, got {value!r}")
        if self.choices and value not in self.choices:
            raise SettingsError(f"{self.name}: expected one of {', '.join(self.choices)}, got {value!r}")
        if self.least is not None and not value >= self.least:
            raise SettingsError(f"{self.name}: expected at least {self.least:g}, got {value}")
        return value


def declared(kind: type) -> dict[str, Declared]:
    """The settings of a dataclass, in order."""
    hints = typing.get_type_hints(kind)
    found = {}
    for each in fields(kind):
        hint, optional, many = hints[each.name], False, False
        if get_origin(hint) in (typing.Union, types.UnionType):
            hint, optional = next(a for a in get_args(hint) if a is not type(None)), True
        if get_origin(hint) is tuple:
            hint, many = get_args(hint)[0], True
        about = {**each.metadata, "group": _group(kind, each.name)}
        found[each.name] = Declared(each.name, hint, many, optional, each.default, **about)
    return found


def _group(kind: type, name: str) -> str:
    """The heading that the class which first declared the setting gave it."""
    first = next(base for base in reversed(kind.__mro__) if name in getattr(base, "__dataclass_fields__", {}))
    group: str = first.__dataclass_fields__[name].metadata["group"]  # type: ignore[attr-defined]
    return group


def build(kind: type[T], values: Mapping[str, Any], *, where: str = "settings") -> T:
    """The dataclass of these values, checked; the rest are defaults. SettingsError names what is wrong."""
    known = declared(kind)
    check_names(kind, values, where=where)
    try:
        checked = {name: known[name].checked(value) for name, value in values.items()}
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None
    if missing := [each for each in known.values() if each.required and each.name not in checked]:
        flags = ", ".join(each.flag for each in missing)
        raise SettingsError(f"{where}: {flags} must be given: {missing[0].help}")
    return kind(**checked)


def check_names(kind: type, values: Mapping[str, Any], *, where: str) -> None:
    """SettingsError for a name that is no setting, with the nearest that is."""
    known = list(declared(kind))
    for name in values:
        if name not in known:
            raise SettingsError(f"{where}: there is no setting {name!r}; {nearest(name, known)}")


def plain(settings: Any) -> dict[str, Any]:
    """The values as JSON and a checkpoint hold them."""
    found = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def nearest(name: str, known: list[str]) -> str:
    """For an error: the known name that a reader may have meant, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file; SettingsError says where it is wrong."""
    try:
        toml = import_module("tomllib")
    except ImportError:
        raise SettingsError(f"{path}: reading TOML needs Python 3.11; give the settings as flags") from None
    try:
        return dict(toml.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SettingsError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # what is no TOML, or no UTF-8, is a ValueError
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def toml(values: Mapping[str, Any]) -> str:
    """Plain values as a TOML file that :func:`read_toml` reads; None is left out, as it is the default."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value is not None)


# ---- Flags -----------------------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """A flag for each setting, under the heading of its group; those without one come first.

    Its default is None, so that what was given can be told from what was not.
    """
    places: dict[str, Any] = {}
    for each in sorted(declared(kind).values(), key=lambda each: (bool(each.group), not each.required)):
        place = places.setdefault(each.group, parser)
        if each.group and place is parser:
            place = places[each.group] = parser.add_argument_group(each.group)
        if each.required:
            text = f"{each.help} (must be given)"
        else:
            text = each.help if each.default in (None, ()) else f"{each.help} (default {_shown(each.default)})"
        text = literal(text)
        if each.type is bool:
            place.add_argument(each.flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            more: dict[str, Any] = {"choices": each.choices} if each.choices else {"metavar": METAVARS[each.type]}
            if each.many:
                more["nargs"] = "+"
            place.add_argument(each.flag, type=each.type, default=None, help=text, **more)


def given(kind: type, args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    return {name: value for name in declared(kind) if (value := getattr(args, name)) is not None}


def resumed(kind: type[T], stored: Mapping[str, Any], flags: Mapping[str, Any]) -> T:
    """The settings of a run that goes on: those it had, but for those that may change and that ``flags`` name."""
    known = declared(kind)
    own = {name: value for name, value in stored.items() if name in known}
    before = build(kind, own, where="the checkpoint's settings")
    for name, value in flags.items():
        if known[name].fixed and known[name].checked(value) != getattr(before, name):
            raise SettingsError(
                f"{known[name].flag} {value} contradicts the checkpoint, which was trained with "
                f"{_shown(getattr(before, name))}"
            )
    return build(kind, {**own, **flags})


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def literal(text: str) -> str:
    """``text`` as argparse shows it: what it formats with % must say %%."""
    return text.replace("%", "%%")
