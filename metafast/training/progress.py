"""The progress bar of a training run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Show = Callable[[float, Mapping[str, str]], None]
#: The bar counts thousandths of the budget, which may be in meta-steps or in seconds.
WHOLE = 1000


@contextmanager
def bar(title: str, begun: float, wanted: bool = True) -> Iterator[Show]:
    """A function that shows the part of the budget spent and some facts; it does nothing if tqdm is not installed.
    ``begun`` is the part spent before."""
    if not wanted:
        yield lambda fraction, facts: None
        return
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        print(f"{title}: no progress bar without tqdm (pip install tqdm)", file=sys.stderr)
        yield lambda fraction, facts: None
        return
    with tqdm(
        total=WHOLE,
        initial=int(begun * WHOLE),
        desc=title,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}",
        mininterval=0.2 if sys.stderr.isatty() else 15,
    ) as shown:
        first = True

        def show(fraction: float, facts: Mapping[str, str]) -> None:
            nonlocal first
            shown.set_postfix_str(", ".join(f"{name} {value}" for name, value in facts.items()), refresh=False)
            shown.update(int(fraction * WHOLE) - shown.n)
            if first:  # at once, however long the interval
                shown.refresh()
                first = False

        yield show
