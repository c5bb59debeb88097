"""Examples that belong to groups (classes, countries, users): the groups split, their rows drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metafast.tasks.archive import DataError
from metafast.tasks.episode import generator as seeded

#: The first word of the stream that splits groups, apart from those that draw tasks.
SPLIT = 3
#: From so many rows on, distinct ones are drawn by drawing again what is not; below, by ordering random keys.
MANY = 1000
#: How many groups train, validation and test have, as in mini-ImageNet (Ravi and Larochelle, 2017).
FRACTIONS = (0.64, 0.16, 0.2)
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Groups:
    """Which rows of a data set belong to which group."""

    names: tuple[Hashable, ...]
    rows: Tensor  # int64 [M]: those of the first group, then those of the second, ...
    counts: Tensor  # int64 [G]
    kind: str = "group"  # what messages call them

    @classmethod
    def of(cls, labels: Any, *, kind: str = "group", argument: str = "y") -> Groups:
        """Rows 0 .. M - 1 by their labels [M], whole numbers or texts; groups in the order of the labels."""
        values = labels.numpy(force=True) if isinstance(labels, Tensor) else np.asarray(labels)
        if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat):
            values = values.astype(str)  # as pandas holds texts
        if values.ndim != 1 or values.dtype.kind not in "biuUS":
            raise ValueError(
                f"{argument}: expected whole numbers or texts [M], one label for each example; "
                f"got {values.dtype} {list(values.shape)}"
            )
        names, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        rows = np.argsort(index, kind="stable")
        return cls(tuple(names.tolist()), torch.from_numpy(rows), torch.from_numpy(counts), kind)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def starts(self) -> Tensor:
        return self.counts.cumsum(0) - self.counts

    def index(self) -> Tensor:
        """The group of each row, int64 [M], where every row belongs to one."""
        of = torch.empty_like(self.rows)
        of[self.rows] = torch.arange(len(self)).repeat_interleave(self.counts)
        return of

    def take(self, chosen: Sequence[int]) -> Groups:
        """Those at these places."""
        rows = torch.split(self.rows, self.counts.tolist())
        picked = torch.cat([rows[i] for i in chosen]) if chosen else self.rows[:0]
        return Groups(tuple(self.names[i] for i in chosen), picked, self.counts[list(chosen)], self.kind)

    def among(self, names: Iterable[Hashable]) -> Groups:
        """Those of these names."""
        place = {name: i for i, name in enumerate(self.names)}
        wanted = list(names)
        if unknown := [name for name in wanted if name not in place]:
            raise ValueError(f"the data has no {self.kind} {listed(unknown)}; it has {listed(self.names)}")
        return self.take(sorted({place[name] for name in wanted}))

    def of_at_least(self, least: int, *, skip_small: bool) -> Groups:
        """Those of at least ``least`` rows; DataError that names the others unless they may be left out."""
        small = (self.counts < least).nonzero().flatten().tolist()
        if small and not skip_small:
            shown = listed([f"{self.names[i]} ({self.counts[i]})" for i in small], quote=False)
            raise DataError(
                f"{self.kind} with fewer examples than shots + queries = {least}: {shown}. Take fewer of them, "
                f"or leave such a {self.kind} out by skip_small=True"
            )
        return self.take([i for i in range(len(self)) if i not in set(small)]) if small else self

    def split(
        self,
        fractions: Sequence[float],
        *,
        names: Mapping[str, Iterable[Hashable]] | None,
        seed: int,
        least: int,
        taken: int,
        skip_small: bool,
    ) -> tuple[Groups, Groups, Groups]:
        """Three parts without a common group: those named, or random ones of about these fractions.

        A random part has at least ``least`` groups, taken from the training part where its fraction gives fewer.
        Groups with fewer rows than ``taken`` are an error or left out, unless they are in no part anyhow.
        """
        if names is not None:
            return self._split_by_name(names, taken if skip_small else 0)
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions: expected three numbers that add up to 1, got {tuple(fractions)}")
        large = self.of_at_least(taken, skip_small=skip_small)
        count = len(large)
        validation, test = (max(least, round(part * count)) for part in fractions[1:])
        train = count - validation - test
        if train < least:
            raise DataError(
                f"{count} {plural(self.kind)} cannot be split by fractions {tuple(fractions)} into three parts "
                f"of at least {least} each, which the tasks need"
            )
        order = torch.randperm(count, generator=seeded(seed, SPLIT)).tolist()
        bounds = (0, train, train + validation, count)
        first, second, third = (large.take(sorted(order[a:b])) for a, b in pairwise(bounds))
        return first, second, third

    def _split_by_name(self, names: Mapping[str, Iterable[Hashable]], least: int) -> tuple[Groups, Groups, Groups]:
        if set(names) != set(PARTS):
            raise ValueError(f"names: expected a dict with the keys {', '.join(PARTS)}, got {listed(list(names))}")
        first, second, third = parts = [self.among(names[part]).of_at_least(least, skip_small=True) for part in PARTS]
        seen: dict[Hashable, str] = {}
        for part, groups in zip(PARTS, parts, strict=True):
            for name in groups.names:
                if name in seen:
                    raise ValueError(
                        f"names: {self.kind} {name!r} is in {seen[name]} and in {part}; parts are disjoint"
                    )
                seen[name] = part
        return first, second, third

    def draw(self, tasks: int, groups: int, taken: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """For each task distinct groups [T, groups] in random order, and of each distinct rows [T, groups, taken]."""
        drawn = torch.rand(tasks, len(self), generator=generator).topk(groups).indices
        places = self.starts[drawn].unsqueeze(-1) + distinct(self.counts[drawn], taken, generator)
        return drawn, self.rows[places]


def distinct(counts: Tensor, taken: int, generator: torch.Generator) -> Tensor:
    """For each of ``counts`` [...], ``taken`` distinct whole numbers below it in random order, [..., taken]."""
    if int(counts.min()) < max(MANY, taken * taken):
        most = int(counts.max())
        keys = torch.rand(*counts.shape, most, generator=generator)
        keys.masked_fill_(torch.arange(most) >= counts.unsqueeze(-1), 2.0)  # behind all others
        return keys.argsort(-1)[..., :taken]
    flat = counts.flatten().unsqueeze(-1)
    drawn = torch.empty(len(flat), taken, dtype=torch.int64)
    again = torch.arange(len(flat))
    while len(again):  # of those left about a half at most, for the count is the square of what is taken or more
        uniform = torch.rand(len(again), taken, generator=generator, dtype=torch.float64)
        drawn[again] = (uniform * flat[again]).long()
        ordered = drawn[again].sort(-1).values
        again = again[(ordered[:, 1:] == ordered[:, :-1]).any(-1)]
    return drawn.view(*counts.shape, taken)


def number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value.__index__())


def listed(names: Sequence[Any], *, quote: bool = True, most: int = 10) -> str:
    """Names for a message: all of a few, the first of many."""
    text: Callable[[Any], str] = repr if quote else str
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(text, names[:most])) + more


def plural(kind: str) -> str:
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"
