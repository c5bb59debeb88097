"""Few-shot classification tasks from examples with labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metafast.tasks.archive import DataError
from metafast.tasks.distribution import Splits, Tasks
from metafast.tasks.episode import Episode, Pair
from metafast.tasks.groups import FRACTIONS, Groups, listed, number, plural

if TYPE_CHECKING:
    from typing_extensions import Self


class TaskSampler(Tasks):
    """Tasks of ``ways`` classes with ``shots`` support and ``queries`` query examples of each.

    A task takes distinct classes in random order, which numbers them, and of each class distinct examples. Everything
    is drawn and gathered for all tasks at once. Classes may be of different sizes.

    Args:
        x: inputs [M, ...], a tensor or an array; or a map-style dataset of (input, label), which is read once into
            memory (:func:`read_dataset`), and then ``y`` is not given.
        y: labels [M], whole numbers or texts.
        ways, shots, queries: at least 1 each.
        skip_small: leave out classes with fewer than shots + queries examples, which else are an error.

    uint8 inputs are taken for images: they are held as they are and scaled to [0, 1] when drawn. Other inputs are held
    in torch's default dtype if they are real and in int64 if they are whole numbers.

    Raises:
        DataError: too few classes, or a class of too few examples.
    """

    def __init__(self, x: Any, y: Any = None, *, ways: int, shots: int, queries: int, skip_small: bool = False) -> None:
        inputs, classes = labelled(x, y)
        self._set(inputs, classes, ways=ways, shots=shots, queries=queries, skip_small=skip_small)

    def _set(self, x: Tensor, classes: Groups, *, ways: int, shots: int, queries: int, skip_small: bool) -> None:
        self.ways, self.shots, self.queries = number("ways", ways), number("shots", shots), number("queries", queries)
        self.groups = classes.of_at_least(shots + queries, skip_small=skip_small)
        if ways > len(self.groups):
            raise DataError(
                f"ways: expected between 1 and the {len(self.groups)} {plural(self.groups.kind)} there are "
                f"({listed(self.groups.names)}), got {ways}"
            )
        self.shape = x.shape[1:]
        # One row per example: gathering whole rows is a copy of each, much faster than indexing two axes.
        self.x = x.reshape(len(x), -1)

    @classmethod
    def _of(cls, x: Tensor, classes: Groups, **settings: Any) -> Self:
        made = cls.__new__(cls)
        TaskSampler._set(made, x, classes, **settings)
        return made

    @classmethod
    def splits(
        cls,
        x: Any,
        y: Any = None,
        *,
        ways: int,
        shots: int,
        queries: int,
        fractions: Sequence[float] = FRACTIONS,
        names: Mapping[str, Iterable[Hashable]] | None = None,
        seed: int = 0,
        skip_small: bool = False,
    ) -> Splits:
        """Train, validation and test tasks that share no class.

        Args:
            fractions: how the classes are divided, at random by ``seed``. Each part has at least ``ways`` of them.
            names: the classes themselves instead, ``{"train": [...], "validation": [...], "test": [...]}``; a class
                that is in none is left out.
        """
        inputs, classes = labelled(x, y)
        settings = dict(ways=number("ways", ways), shots=shots, queries=queries, skip_small=skip_small)
        taken = number("shots", shots) + number("queries", queries)
        parts = classes.split(fractions, names=names, seed=seed, least=ways, taken=taken, skip_small=skip_small)
        return Splits(*(cls._of(inputs, part, **settings) for part in parts))

    @property
    def class_names(self) -> tuple[Hashable, ...]:
        """The classes that tasks are drawn from, sorted: the labels of ``y``."""
        return self.groups.names

    def to(self, device: torch.device | str) -> Self:
        """Move the examples of these classes, in place; tasks are drawn on the CPU, so a seed gives the same ones on
        every device."""
        if self.x.device != torch.device(device):
            own = self.groups
            self.x = self.x[own.rows.to(self.x.device)].to(device)
            self.groups = Groups(own.names, torch.arange(len(own.rows)), own.counts, own.kind)
        return self

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        """xs [T, ways * shots, ...], ys [T, ways * shots] int64 in 0 .. ways - 1; and queries. Ordered by class."""
        _, rows = self.groups.draw(tasks, self.ways, self.shots + self.queries, generator)
        return Episode(self._take(rows[..., : self.shots]), self._take(rows[..., self.shots :]))

    def label_names(self, tasks: int, generator: torch.Generator) -> list[tuple[str, ...]]:
        drawn, _ = self.groups.draw(tasks, self.ways, self.shots + self.queries, generator)
        return [tuple(_named(self.groups.names[i]) for i in row) for row in drawn.tolist()]

    def _take(self, rows: Tensor) -> Pair:
        tasks, ways, each = rows.shape
        x = self.x.index_select(0, rows.flatten().to(self.x.device))
        labels = torch.arange(ways, device=x.device).repeat_interleave(each).expand(tasks, -1).contiguous()
        return scaled(x).view(tasks, ways * each, *self.shape), labels


def _named(label: Hashable) -> str:
    return label if isinstance(label, str) else f"class {label}"


def scaled(x: Tensor) -> Tensor:
    """Images of bytes as float32 in [0, 1]; anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def labelled(x: Any, y: Any) -> tuple[Tensor, Groups]:
    """Inputs and classes of arrays or of a dataset."""
    if y is None:
        if isinstance(x, (Tensor, np.ndarray)) or not (hasattr(x, "__len__") and hasattr(x, "__getitem__")):
            raise TypeError(f"y: labels [M] must be given unless x is a dataset of (input, label); x is {kind_of(x)}")
        x, y = read_dataset(x)
    inputs, classes = as_inputs("x", x), Groups.of(y, kind="class")
    if len(inputs) != len(classes.rows):
        raise ValueError(
            f"x, y: expected one label for each input, got {len(inputs)} inputs, {len(classes.rows)} labels"
        )
    return inputs, classes


def as_inputs(name: str, value: Any) -> Tensor:
    """[M, ...], bytes as they are, other numbers as TaskSampler holds them."""
    x = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if x.ndim < 1 or not len(x) or x.is_complex():
        raise ValueError(f"{name}: expected numbers [M, ...] of at least one example, got {x.dtype} {list(x.shape)}")
    if x.dtype == torch.uint8:
        return x
    return x.to(torch.get_default_dtype() if x.is_floating_point() else torch.int64)


def read_dataset(dataset: Any) -> tuple[Any, Any]:
    """All examples of a map-style dataset (``torch.utils.data.Dataset``, or a list) as inputs [M, ...] and labels [M].

    An item is (input, label) or begins so. An input is a tensor, an array, a number, or a picture of Pillow, which
    becomes uint8 [channels, height, width].
    """
    if not len(dataset):
        raise ValueError("x: the dataset is empty")
    inputs, labels = [], []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise TypeError(f"x: item {i} of the dataset must be (input, label); it is {kind_of(item)}")
        inputs.append(_as_array(item[0]))
        labels.append(item[1].item() if isinstance(item[1], (Tensor, np.generic)) else item[1])
        if inputs[i].shape != inputs[0].shape:
            raise ValueError(
                f"x: inputs of the dataset must be of one shape; item 0 has {list(inputs[0].shape)}, "
                f"item {i} has {list(inputs[i].shape)}"
            )
    return np.stack(inputs), labels


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    array = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
    if not hasattr(value, "getbands"):  # which a picture of Pillow has
        return array
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def kind_of(value: Any) -> str:
    return f"a {type(value).__name__}"
