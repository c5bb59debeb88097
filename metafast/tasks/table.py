"""Regression tasks from tables whose rows lie in groups: a group (a country, a patient, a machine) is a task."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metafast.tasks import columns
from metafast.tasks.archive import DataError
from metafast.tasks.distribution import Splits, Tasks
from metafast.tasks.episode import Episode, Pair
from metafast.tasks.groups import FRACTIONS, Groups, number

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Scale:
    """Columns shifted and scaled to mean 0 and standard deviation 1."""

    mean: Tensor  # float64 [columns]
    deviation: Tensor  # float64 [columns], 1 for a column that does not vary

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """Fitted to values [M, columns]; the deviation is the root of the mean square."""
        values = values.double()
        deviation = values.std(0, correction=0)
        return cls(values.mean(0), torch.where(deviation > 0, deviation, 1.0))

    @classmethod
    def identity(cls, columns: int) -> Scale:
        return cls(torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64))

    def apply(self, values: Tensor) -> Tensor:
        return ((values - self.mean.to(values)) / self.deviation.to(values)).to(values.dtype)

    def undo(self, values: Tensor) -> Tensor:
        """In the table's own units, for example of predictions [..., columns]."""
        return values * self.deviation.to(values) + self.mean.to(values)


class GroupTasks(Tasks):
    """Tasks of ``shots`` support and ``queries`` query rows of one group each, all distinct and drawn at random.

    Args:
        x, y: rows [M, ...] and [M, outputs], as they are to be drawn.
        groups: which rows belong to which group; each has at least shots + queries.
        x_scale, y_scale: how x and y came from the data; ``y_scale.undo`` brings predictions back to its units.
        left_out: groups of the data that have too few rows, and are in no split.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        groups: Groups,
        *,
        shots: int,
        queries: int,
        x_scale: Scale,
        y_scale: Scale,
        left_out: int = 0,
    ) -> None:
        self.shots, self.queries = number("shots", shots), number("queries", queries)
        self.groups = groups.of_at_least(shots + queries, skip_small=False)
        if not len(groups):
            raise DataError(f"there is no {groups.kind} to draw tasks from")
        self.x, self.y, self.x_scale, self.y_scale, self.left_out = x, y, x_scale, y_scale, left_out

    @classmethod
    def splits(
        cls,
        x: Tensor,
        y: Tensor,
        groups: Groups,
        *,
        shots: int,
        queries: int,
        fractions: Sequence[float],
        names: Mapping[str, Iterable[Hashable]] | None,
        seed: int,
        skip_small: bool,
        standardise: tuple[bool, bool],
    ) -> Splits:
        """Three parts without a common group; x and y scaled, if so said, by the rows of the training groups."""
        taken = number("shots", shots) + number("queries", queries)
        parts = groups.split(fractions, names=names, seed=seed, least=1, taken=taken, skip_small=skip_small)
        fitted = parts[0].rows
        scales = [
            Scale.of(values[fitted]) if wanted else Scale.identity(values.shape[-1] if values.ndim > 1 else 1)
            for values, wanted in zip((x, y), standardise, strict=True)
        ]
        held = [
            scale.apply(values).to(torch.get_default_dtype()) if values.is_floating_point() else values
            for scale, values in zip(scales, (x, y), strict=True)
        ]
        settings = dict(shots=shots, queries=queries, x_scale=scales[0], y_scale=scales[1])
        left_out = int((groups.counts < taken).sum())
        return Splits(*(cls(held[0], held[1], part, left_out=left_out, **settings) for part in parts))  # type: ignore[arg-type]

    @property
    def group_names(self) -> tuple[Hashable, ...]:
        return self.groups.names

    def to(self, device: torch.device | str) -> Self:
        """Move the rows, in place; tasks are drawn on the CPU, so a seed gives the same ones on every device."""
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        """xs [T, shots, ...], ys [T, shots, outputs] and xq, yq with ``queries`` rows."""
        _, rows = self.groups.draw(tasks, 1, self.shots + self.queries, generator)
        rows = rows.squeeze(1)
        return Episode(self._take(rows[:, : self.shots]), self._take(rows[:, self.shots :]))

    def _take(self, rows: Tensor) -> Pair:
        rows = rows.to(self.x.device)
        return self.x[rows], self.y[rows]


class GroupedTable:
    """A table in memory: features, targets, and the group of each row.

    Args:
        x: features [M, F] or [M], numbers.
        y: targets [M, outputs] or [M], numbers.
        group: of each row, whole numbers or texts [M].
        features, targets: names of the columns.
        missing: "drop" leaves out rows in which a number is NaN, and ``dropped`` counts them; "error" refuses them.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        group: Any,
        *,
        features: Sequence[str] = (),
        targets: Sequence[str] = (),
        missing: str = "drop",
    ) -> None:
        if missing not in ("drop", "error"):
            raise ValueError(f"missing: expected 'drop' or 'error', got {missing!r}")
        x, y = as_matrix("x", x), as_matrix("y", y)
        labels = group.numpy(force=True) if isinstance(group, Tensor) else np.asarray(group)
        if not len(x) == len(y) == len(labels):
            raise ValueError(f"x, y, group: expected as many rows of each, got {len(x)}, {len(y)} and {len(labels)}")
        whole = ~(torch.cat([x, y], 1).isnan().any(1))
        self.dropped = int((~whole).sum())
        if self.dropped and missing == "error":
            raise DataError(f"{self.dropped} rows lack a number, the first of them row {int(whole.long().argmin())}")
        if self.dropped == len(x):
            raise DataError("no row has all its numbers")
        self.x, self.y = x[whole], y[whole]
        self.groups = Groups.of(labels[whole.numpy()], argument="group")
        self.features = tuple(features) or tuple(f"x{i}" for i in range(x.shape[1]))
        self.targets = tuple(targets) or tuple(f"y{i}" for i in range(y.shape[1]))

    @classmethod
    def read_csv(
        cls,
        path: str | Path,
        *,
        group: str,
        target: str | Sequence[str],
        features: Sequence[str] | None = None,
        missing: str = "drop",
        delimiter: str | None = None,
    ) -> GroupedTable:
        """Read a CSV or TSV file, plain or .gz, whose first line names the columns.

        Args:
            group: the column that says to which group a row belongs, numbers or texts.
            target: the column, or columns, to be predicted.
            features: the columns to predict from; None takes all others.
            missing: what is done with rows in which a cell is empty (or NA, NaN, null), as for the class.
            delimiter: a tab for .tsv and .tab and a comma for others, unless said otherwise.

        Raises:
            DataError: it names the file, and the line and column: a column that is not there, text among numbers.
        """
        table = columns.read(path, delimiter=delimiter)
        targets = [target] if isinstance(target, str) else list(target)
        chosen = [name for name in table.names if name not in (group, *targets)] if features is None else list(features)
        if not chosen:
            raise DataError(f"{path}: no column is left for features beside {group!r} and {targets}")
        if missing == "error":
            table.require(texts=(group,), numbers=(*chosen, *targets))
        labels = np.array(table.texts(group))
        x, y = (np.stack([table.numbers(name) for name in names], 1) for names in (chosen, targets))
        x[labels == ""] = np.nan  # a row of no group is one that lacks something
        try:
            return cls(x, y, labels, features=chosen, targets=targets, missing=missing)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return len(self.x)

    def splits(
        self,
        *,
        shots: int,
        queries: int,
        fractions: Sequence[float] = FRACTIONS,
        names: Mapping[str, Iterable[Hashable]] | None = None,
        seed: int = 0,
        skip_small: bool = False,
        standardise: bool = True,
    ) -> Splits:
        """Train, validation and test tasks (:class:`GroupTasks`) that share no group.

        Args:
            fractions: how the groups are divided, at random by ``seed``.
            names: the groups themselves instead, ``{"train": [...], "validation": [...], "test": [...]}``.
            skip_small: leave out groups with fewer than shots + queries rows, which else are an error.
            standardise: scale features and targets by mean and deviation of the training groups' rows alone.
        """
        return GroupTasks.splits(
            self.x,
            self.y,
            self.groups,
            shots=shots,
            queries=queries,
            fractions=fractions,
            names=names,
            seed=seed,
            skip_small=skip_small,
            standardise=(standardise, standardise),
        )


def as_matrix(name: str, value: Any) -> Tensor:
    """float64 [M, columns]"""
    array = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"{name}: expected numbers [M, columns] or [M], got {array.dtype} {list(array.shape)}")
    return torch.as_tensor(array).double().reshape(len(array), -1)
