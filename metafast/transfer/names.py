"""Names of parameters and modules: what a glob chooses, and which one was meant where there is none such."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

#: How many names an error shows.
SHOWN = 5


def chosen(argument: str, globs: str | Sequence[str] | None, names: Collection[str]) -> set[str]:
    """Those of ``names`` that a glob matches. Raises TypeError for what is no glob, ValueError for one without match,
    and names the ``argument``."""
    globs = (globs,) if isinstance(globs, str) else globs or ()
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(f"{argument} must be a glob over parameter names, or a list of globs; it is {globs!r}")
    found: set[str] = set()
    for glob in globs:
        matched = {name for name in names if fnmatchcase(name, glob)}
        if not matched:
            raise ValueError(f"{argument}: {glob!r} matches no parameter that can be meant; {nearest(glob, names)}")
        found |= matched
    return found


def nearest(name: str, names: Collection[str]) -> str:
    """In words, those of ``names`` that come nearest to ``name``."""
    if any(each.startswith(f"{name}.") for each in names):
        return f"did you mean {f'{name}.*'!r}?"
    close = get_close_matches(name, names, n=3, cutoff=0.4)
    if close:
        return f"the nearest names are {', '.join(map(repr, close))}"
    return f"the names are {some([repr(each) for each in names])}"


def some(items: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "") if items else "none"
