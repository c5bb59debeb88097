"""Regression tasks from a family of functions: a task is a function with its own parameters, seen at random points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast.tasks.distribution import Tasks
from metafast.tasks.episode import TRAIN, Episode, generator
from metafast.tasks.groups import number

#: Meta-steps whose tasks are drawn in one vectorised sweep, unless said otherwise.
CHUNK = 500

Bounds = tuple[float, float]
#: Draws a tensor that begins with this shape.
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


class Curves(NamedTuple):
    """Functions of a family, and points on them."""

    function: Callable[..., Tensor]
    parameters: dict[str, Tensor]  # each [*batch, ...]
    x: Tensor  # [*batch, N, inputs]
    y: Tensor  # [*batch, N, outputs]

    def at(self, x: Tensor) -> Tensor:
        """The functions without noise at other points [*batch, N, inputs]."""
        return self.function(x, **self.parameters)


class RegressionFamily(Tasks):
    """Tasks y = f(x; parameters) + noise, of ``shots`` support and ``queries`` query points, drawn independently.

    Args:
        function: ``function(x, **parameters)``, for many tasks at once: x is [*batch, N, inputs] and the result
            [*batch, N, outputs]. *batch is of any number of axes.
        parameters: name -> (low, high), which draws a uniform number for each task, [*batch, 1, 1]; or a callable
            (batch shape, generator) -> [*batch, ...], of a shape that the function can use beside x.
        x: (low, high) for one uniform input, a sequence of such pairs for several, or a callable
            ((*batch, N), generator) -> [*batch, N, inputs].
        noise: standard deviation of normal noise on every y.
        chunk: meta-steps that a stream draws at once. It decides which numbers a seed gives, and how much memory the
            stream takes: chunk * tasks * (shots + queries) points.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        parameters: Mapping[str, Bounds | Draw],
        x: Bounds | Sequence[Bounds] | Draw,
        *,
        shots: int = 10,
        queries: int = 10,
        noise: float = 0.0,
        chunk: int = CHUNK,
    ) -> None:
        self.function = function
        self.parameters = {
            name: value if callable(value) else _bounds(name, value) for name, value in parameters.items()
        }
        self.x = x
        self._inputs = x if callable(x) else [_bounds("x", b) for b in (x if _nested(x) else (x,))]
        self.shots, self.queries = number("shots", shots), number("queries", queries)
        self.chunk = number("chunk", chunk)
        if not noise >= 0:
            raise ValueError(f"noise: expected a standard deviation >= 0, got {noise!r}")
        self.noise = noise

    def curves(self, *batch: int, points: int, generator: torch.Generator) -> Curves:
        """Functions of batch shape [*batch], with ``points`` points each."""
        parameters = {
            name: value(batch, generator) if callable(value) else _uniform(value, (*batch, 1, 1), generator)
            for name, value in self.parameters.items()
        }
        x = self._points((*batch, points), generator)
        y = self.function(x, **parameters)
        if y.ndim != x.ndim or y.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"function: expected [*batch, N, outputs] beginning with {list(x.shape[:-1])} for x {list(x.shape)}, "
                f"got {list(y.shape)}"
            )
        if self.noise:
            y = y + self.noise * torch.randn(y.shape, dtype=y.dtype, generator=generator)
        return Curves(self.function, parameters, x, y)

    def _points(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if callable(self._inputs):
            x = self._inputs(shape, generator)
            if x.shape[:-1] != shape:
                raise ValueError(f"x: expected [*batch, N, inputs] beginning with {list(shape)}, got {list(x.shape)}")
            return x
        columns = [_uniform(bounds, (*shape, 1), generator) for bounds in self._inputs]
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        """xs [T, shots, inputs], ys [T, shots, outputs] and xq, yq with ``queries`` points."""
        return self._split(self.curves(tasks, points=self.shots + self.queries, generator=generator))

    def _split(self, curves: Curves) -> Episode:
        """The first ``shots`` points as support, the others as query."""
        x, y, n = curves.x, curves.y, self.shots
        return Episode((x[..., :n, :], y[..., :n, :]), (x[..., n:, :], y[..., n:, :]))

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

        Drawn ``chunk`` at a time, so that a meta-step costs a few microseconds: it only takes a slice.
        """
        chunk, offset = divmod(start, self.chunk)
        points = self.shots + self.queries
        while True:
            curves = self.curves(self.chunk, tasks, points=points, generator=generator(seed, stream, chunk))
            support, query = self._split(curves)
            columns = [values.contiguous().to(device or "cpu").unbind(0)[offset:] for values in (*support, *query)]
            for xs, ys, xq, yq in zip(*columns, strict=True):
                yield Episode((xs, ys), (xq, yq))
            chunk, offset = chunk + 1, 0


def _uniform(bounds: Bounds, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(*bounds, generator=generator)


def _nested(x: Any) -> bool:
    return isinstance(x, Sequence) and bool(x) and isinstance(x[0], Sequence)


def _bounds(name: str, value: Any) -> Bounds:
    if not (isinstance(value, Sequence) and len(value) == 2 and value[0] <= value[1]):
        raise ValueError(f"{name}: expected (low, high) with low <= high, or a callable that draws, got {value!r}")
    return float(value[0]), float(value[1])
