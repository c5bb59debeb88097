"""What every task distribution gives, and the seeding they share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class Episode(NamedTuple):
    """One meta-batch: ``learner(*episode)``."""

    support: Pair  # xs [T, N, *example], ys [T, N] classes or [T, N, *output]
    query: Pair  # the same for Nq examples

    def to(self, device: torch.device | str) -> Episode:
        (xs, ys), (xq, yq) = self
        return Episode((xs.to(device), ys.to(device)), (xq.to(device), yq.to(device)))


#: First words of streams, so that no seed ever trains on the tasks that it is tested on.
TRAIN, VALIDATION, TEST = 0, 1, 2


def generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator for one of many independent streams of a seed, for example (TRAIN, meta-step).

    torch's own seeding keeps 32 bits and nearby seeds are related, so the words are hashed by numpy's SeedSequence.
    """
    words = np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))
