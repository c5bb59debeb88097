"""Rules of the inner loop by name, so that a checkpoint can say which one it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metafast import rules
from metafast.rules.rule import Rule

#: What users call, in small letters: optimisers have names of classes, links those of functions.
OPTIMISERS = {name.lower(): getattr(rules, name) for name in rules.__all__ if name[0].isupper()}
FUNCTIONS = OPTIMISERS | {name: getattr(rules, name) for name in rules.__all__ if name.islower() and name != "chain"}


def build(links: Sequence[Any]) -> Rule:
    """The chain of ``[[name, keyword arguments], ...]``; ValueError says what is unknown or wrong."""
    made = []
    for link in links:
        name, settings = link if isinstance(link, (list, tuple)) and len(link) == 2 else (link, None)
        if name not in FUNCTIONS or not isinstance(settings, dict):
            raise ValueError(f"rule: expected [name, settings] with a name of {', '.join(FUNCTIONS)}, got {link!r}")
        try:
            made.append(FUNCTIONS[name](**settings))
        except TypeError as error:
            raise ValueError(f"rule {name}: {error}") from None
    return made[0] if len(made) == 1 else rules.chain(*made)
