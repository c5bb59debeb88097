"""The progress bar of a training run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from metafast.training.loop import Report

Show = Callable[[Report, dict[str, str]], None]
#: The bar counts thousandths of the budget, which may be in meta-steps or in seconds.
WHOLE = 1000


@contextmanager
def bar(title: str, begun: float) -> Iterator[Show]:
    """A function that shows a report; nothing if tqdm is not installed. ``begun`` is the part of the budget spent."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        print(f"{title}: no progress bar without tqdm (pip install tqdm)", file=sys.stderr)
        yield lambda report, more: None
        return
    with tqdm(
        total=WHOLE,
        initial=int(begun * WHOLE),
        desc=title,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}",
        mininterval=0.2 if sys.stderr.isatty() else 15,
    ) as shown:
        clock, first = time.perf_counter(), True

        def show(report: Report, more: dict[str, str]) -> None:
            nonlocal clock, first
            now = time.perf_counter()
            facts = {
                "meta-step": f"{report.step}",
                "rate": f"{report.meta_steps / (now - clock):.4g}/s",
                "loss": f"{report.before:.3f} -> {report.after:.3f}",
                **more,
            }
            clock = now
            shown.set_postfix_str(", ".join(f"{name} {value}" for name, value in facts.items()), refresh=False)
            shown.update(int(report.fraction * WHOLE) - shown.n)
            if first:  # at once, however long the interval
                shown.refresh()
                first = False

        yield show
