"""The tensors that go into and come out of an unrolled inner loop, named once for both engines."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Examples of T tasks. A support set may hold another minibatch for each of K steps: then every tensor has a
    second axis K after T."""

    x: Tensor  # [T, N, *example]
    y: Tensor | None  # [T, N] classes, or [T, N, *output] real targets
    w: Tensor | None  # [T, N] per-example weights


class Rates(NamedTuple):
    """Step sizes. ``table[k, a]`` is that of step k for the a-th adapted parameter, unless ``elementwise`` holds
    ``(a, tensor)`` with a tensor of the parameter's shape, or of that shape behind a leading axis K."""

    table: Tensor  # [K, A]
    elementwise: tuple[tuple[int, Tensor], ...] = ()


class Unrolled(NamedTuple):
    loss: Tensor | None  # [] mean of task_loss
    task_loss: Tensor | None  # [T]
    logits: Tensor | None  # [T, Nq, *output]
    support_loss: Tensor  # [T, K] before each step; not differentiable
    adapted: tuple[Tensor, ...] | None  # each [T, *shape], in the order of Program.adapted
    again: Any = None  # what metafast.repeat wants to know of the native engine's call
