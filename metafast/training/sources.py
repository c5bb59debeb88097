"""Meta-batches from whatever the user has: a distribution of tasks, a function, or a collection of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from metafast.tasks import TRAIN, Splits, Tasks

#: A support and a query set: (x, y) or (x, y, weights) each.
Pair = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
#: The meta-batches of meta-steps start, start + 1, ... for a start.
Source = Callable[[int], Iterator[Any]]
KINDS = "a metafast Tasks or Splits, a function start -> iterator of (support, query), or a collection of such pairs"


def source(tasks: Any, meta_batch: int, seed: int, device: torch.device) -> Source:
    """Where training's meta-batches come from.

    Those of a :class:`metafast.tasks.Tasks` (the train part of :class:`metafast.tasks.Splits`) are ``meta_batch`` tasks
    each, a function of ``seed`` and the meta-step. A collection is gone through again and again.
    """
    if isinstance(tasks, Splits):
        tasks = tasks.train
    if isinstance(tasks, Tasks):
        return lambda start: tasks.stream(meta_batch, seed=seed, start=start, device=device, stream=TRAIN)
    if callable(tasks):
        return lambda start: (moved(pair, device) for pair in tasks(start))
    if isinstance(tasks, Iterable) and not isinstance(tasks, (str, bytes, dict, Tensor)):
        return lambda start: (moved(pair, device) for pair in islice(_again_and_again(tasks), start, None))
    raise TypeError(f"tasks: expected {KINDS}, got {type(tasks).__name__}")


def described(tasks: Any) -> dict[str, Any]:
    """What a run's settings say of the tasks: their kind, and ways and shots where they have such."""
    if isinstance(tasks, Splits):
        tasks = tasks.train
    numbers = {name: getattr(tasks, name, None) for name in ("ways", "shots")}
    return {"task": type(tasks).__name__} | {name: n for name, n in numbers.items() if isinstance(n, int)}


def _again_and_again(pairs: Iterable[Any]) -> Iterator[Any]:
    if iter(pairs) is pairs:  # nothing to begin again
        yield from pairs
        return
    while True:
        count = 0
        for count, pair in enumerate(pairs, 1):  # noqa: B007
            yield pair
        if not count:
            raise ValueError("tasks: the collection holds no (support, query)")


def moved(pair: Any, device: torch.device) -> Pair:
    """``pair`` on ``device``; TypeError if it is no (support, query)."""
    try:
        support, query = pair
        return tuple(t.to(device) for t in support), tuple(t.to(device) for t in query)
    except (TypeError, ValueError, AttributeError):
        found = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list)) else type(pair).__name__
        raise TypeError(f"tasks: expected pairs ((xs, ys), (xq, yq)) of tensors, got {found}") from None


def count(pair: Pair) -> int:
    """T, the number of tasks of a meta-batch."""
    return len(pair[1][0])
