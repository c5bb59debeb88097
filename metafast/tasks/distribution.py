"""What meta-training asks of a source of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch

from metafast.tasks.episode import TRAIN, Episode, generator


class Tasks(ABC):
    """A distribution of tasks: :meth:`sample` draws some, :meth:`stream` draws them for meta-step after meta-step.

    A subclass says how a meta-batch is drawn from a generator. What it draws is a function of the generator alone, so
    the tasks of meta-step i are a function of (seed, i), and a run can stop anywhere and continue.
    """

    @abstractmethod
    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        """Support and query sets of ``tasks`` tasks: xs [T, N, *example] and ys [T, N] or [T, N, *output] each."""

    def label_names(self, tasks: int, generator: torch.Generator) -> list[tuple[str, ...]] | None:
        """What labels 0, 1, ... stand for in each of the tasks that :meth:`sample` draws from this generator; None
        where they have no names."""
        return None

    def stream(
        self,
        tasks: int,
        *,
        seed: int = 0,
        start: int = 0,
        device: torch.device | str | None = None,
        stream: int = TRAIN,
    ) -> Iterator[Episode]:
        """The meta-batches of meta-steps start, start + 1, ... without end, each of ``tasks`` tasks."""
        while True:
            episode = self.sample(tasks, generator(seed, stream, start))
            yield episode if device is None else episode.to(device)
            start += 1


class Splits(NamedTuple):
    """Three distributions that share no class, group or user: to train on, to choose by, and to report."""

    train: Tasks
    validation: Tasks
    test: Tasks
