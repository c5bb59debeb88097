"""The random generators that a model may draw from, as plain values that a checkpoint holds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def capture() -> State:
    """The states of torch's generators on the CPU and on every CUDA device, of numpy's and of Python's."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [
            torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            int(numpy["state"]["pos"]),
            int(numpy["has_gauss"]),
            float(numpy["gauss"]),
        ],
        "python": [version, words, next_gauss],
    }


def restore(state: Mapping[str, Any]) -> None:
    """Put back what :func:`capture` gave. States of CUDA devices that this machine lacks are left out."""
    torch.set_rng_state(state["torch"])
    for index, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value, index)
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, words, next_gauss = state["python"]
    random.setstate((version, words, next_gauss))


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Generators that begin at ``seed`` within the block, and are as they were after it."""
    kept = capture()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        restore(kept)
