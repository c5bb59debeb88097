"""The regression tasks of Finn, Abbeel and Levine (2017), section 5.1: sine waves of random amplitude and phase.

y = A sin(x - phi),   A ~ U[0.1, 5],   phi ~ U[0, pi],   x ~ U[-5, 5]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metafast.tasks.distribution import Tasks
from metafast.tasks.episode import TRAIN, Episode, generator

#: Meta-steps whose tasks are drawn in one vectorised sweep. Fixed, because it decides which numbers a seed gives.
CHUNK = 500


class Waves(NamedTuple):
    """Sine waves and points on them."""

    amplitude: Tensor  # [..., 1, 1]
    phase: Tensor  # [..., 1, 1]
    x: Tensor  # [..., N, 1]
    y: Tensor  # [..., N, 1]

    def at(self, x: Tensor) -> Tensor:
        return self.amplitude * torch.sin(x - self.phase)


@dataclass(frozen=True)
class Sinusoids(Tasks):
    """Tasks of ``shots`` support points and ``queries`` query points each, all drawn independently."""

    shots: int = 10
    queries: int = 10
    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    x: tuple[float, float] = (-5.0, 5.0)

    def waves(self, *batch: int, points: int, generator: torch.Generator) -> Waves:
        """Waves of batch shape ``[*batch]``, float32, with ``points`` points each."""

        def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
            return torch.empty(*batch, *shape).uniform_(*bounds, generator=generator)

        amplitude, phase, x = uniform(self.amplitude, 1, 1), uniform(self.phase, 1, 1), uniform(self.x, points, 1)
        return Waves(amplitude, phase, x, amplitude * torch.sin(x - phase))

    def split(self, waves: Waves) -> Episode:
        """The first ``shots`` points as support, the others as query."""
        x, y, n = waves.x, waves.y, self.shots
        return Episode((x[..., :n, :], y[..., :n, :]), (x[..., n:, :], y[..., n:, :]))

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        """xs, ys [T, shots, 1] and xq, yq [T, queries, 1], float32."""
        return self.split(self.waves(tasks, points=self.shots + self.queries, generator=generator))

    def stream(
        self,
        tasks: int,
        *,
        seed: int = 0,
        start: int = 0,
        device: torch.device | str | None = None,
        stream: int = TRAIN,
    ) -> Iterator[Episode]:
        """The meta-batches of meta-steps start, start + 1, ... without end.

        Drawn :data:`CHUNK` at a time, so that a meta-step costs a few microseconds: it only takes a slice.
        """
        chunk, offset = divmod(start, CHUNK)
        while True:
            waves = self.waves(CHUNK, tasks, points=self.shots + self.queries, generator=generator(seed, stream, chunk))
            support, query = self.split(waves)
            columns = [values.contiguous().to(device or "cpu").unbind(0)[offset:] for values in (*support, *query)]
            for xs, ys, xq, yq in zip(*columns, strict=True):
                yield Episode((xs, ys), (xq, yq))
            chunk, offset = chunk + 1, 0
