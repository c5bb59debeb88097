"""What a search may choose for a setting: ``lr=0.01:1``, ``steps=1:5``, ``rule=sgd,adam``, ``learn_lr=yes,no``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from metafast.experiments.settings import Declared, SettingsError, declared, nearest

TRUE, FALSE = ("yes", "true"), ("no", "false")


class Trial(Protocol):
    """What of an optuna trial is used."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; on a scale of orders of magnitude from a factor of ten on."""

    low: Any
    high: Any

    def suggest(self, trial: Trial, name: str) -> Any:
        log = self.low > 0 and self.high >= 10 * self.low
        pick = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return pick(name, self.low, self.high, log=log)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Space = dict[str, "Range | Choice"]


def parse(kind: type, texts: list[str]) -> Space:
    """The space of ``NAME=LOW:HIGH`` and ``NAME=A,B,...``; SettingsError names what is wrong."""
    known = declared(kind)
    space: Space = {}
    for text in texts:
        name, found, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not found or not values:
            raise SettingsError(f"--over: expected NAME=LOW:HIGH or NAME=A,B,..., got {text!r}")
        if name not in known:
            raise SettingsError(f"--over: there is no setting {name!r}; {nearest(name, list(known))}")
        space[name] = _dimension(known[name], values)
    return space


def _dimension(setting: Declared, text: str) -> Range | Choice:
    if setting.many:
        raise SettingsError(f"--over: {setting.name} has several values; a search chooses settings of one")
    if ":" not in text:
        return Choice(tuple(_value(setting, part) for part in text.split(",")))
    low, high = (_value(setting, part) for part in text.split(":", 1))
    if isinstance(low, bool) or not isinstance(low, (int, float)):
        raise SettingsError(f"--over: {setting.name} is no number; give its values as A,B,...")
    if not low < high:
        raise SettingsError(f"--over: {setting.name}: expected a range from low to high, got {text}")
    return Range(low, high)


def _value(setting: Declared, text: str) -> Any:
    text = text.strip()
    value: Any = text
    if setting.type is bool:
        value = True if text in TRUE else False if text in FALSE else text
    elif setting.type in (int, float):
        with suppress(ValueError):  # the setting says better what is wrong
            value = setting.type(text)
    try:
        return setting.checked(value)
    except SettingsError as error:
        raise SettingsError(f"--over: {error}") from None
