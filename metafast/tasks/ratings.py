"""Ratings: a user is a task, whose few known ratings are the support set (cold start in a recommender)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metafast.tasks import columns
from metafast.tasks.archive import DataError
from metafast.tasks.distribution import Splits
from metafast.tasks.groups import FRACTIONS, Groups
from metafast.tasks.table import GroupTasks, as_matrix


class Ratings:
    """(user, item, rating) in memory. Of several ratings of one item by one user the last counts.

    Args:
        users, items: whole numbers or texts [M].
        ratings: numbers [M].

    ``item_names`` are the items sorted, and an item's index is its place there. ``repeated`` counts the ratings that a
    later one replaced.
    """

    def __init__(self, users: Any, items: Any, ratings: Any) -> None:
        values = as_matrix("ratings", ratings).squeeze(1)
        people = Groups.of(users, kind="user", argument="users")
        things = Groups.of(items, kind="item", argument="items")
        if values.ndim != 1 or not len(values) == len(people.rows) == len(things.rows):
            raise ValueError(
                "users, items, ratings: expected as many of each, [M], got "
                f"{len(people.rows)} users, {len(things.rows)} items and ratings {list(values.shape)}"
            )
        if not values.isfinite().all():
            raise DataError(f"ratings: number {int(values.isfinite().long().argmin())} is not finite")
        user, item = people.index(), things.index()
        pairs = (user * len(things) + item).flip(0).numpy()
        last = len(values) - 1 - np.unique(pairs, return_index=True)[1]
        kept = torch.from_numpy(np.sort(last))
        self.repeated = len(values) - len(kept)
        self.items, self.ratings, self.item_names = item[kept], values[kept], things.names
        self.users = Groups.of(np.asarray(people.names)[user[kept].numpy()], kind="user")

    @classmethod
    def read_csv(cls, path: str | Path, *, user: str, item: str, rating: str, delimiter: str | None = None) -> Ratings:
        """Read three columns of a CSV or TSV file, plain or .gz, whose first line names the columns."""
        table = columns.read(path, delimiter=delimiter)
        table.require(texts=(user, item), numbers=(rating,))
        return cls(table.texts(user), table.texts(item), table.numbers(rating))

    def __len__(self) -> int:
        return len(self.ratings)

    def splits(
        self,
        *,
        shots: int,
        queries: int,
        item_features: Any = None,
        fractions: Sequence[float] = FRACTIONS,
        names: Mapping[str, Iterable[Hashable]] | None = None,
        seed: int = 0,
        standardise: bool = True,
    ) -> Splits:
        """Train, validation and test tasks (:class:`GroupTasks`) that share no user.

        x holds the indices of items, int64 [T, N], or their rows of ``item_features`` [items, F], float [T, N, F]. y
        holds ratings [T, N, 1], scaled by those of the training users unless ``standardise`` is False. Users with fewer
        than shots + queries ratings are left out; ``left_out`` of the tasks counts them.
        """
        x = self.items if item_features is None else self._features(item_features)[self.items]
        return GroupTasks.splits(
            x,
            self.ratings.unsqueeze(1),
            self.users,
            shots=shots,
            queries=queries,
            fractions=fractions,
            names=names,
            seed=seed,
            skip_small=True,
            standardise=(False, standardise),
        )

    def _features(self, value: Any) -> Tensor:
        features = as_matrix("item_features", value)
        if len(features) != len(self.item_names):
            raise ValueError(
                f"item_features: expected [{len(self.item_names)}, F], a row for each of item_names, "
                f"got {list(features.shape)}"
            )
        return features.to(torch.get_default_dtype())
