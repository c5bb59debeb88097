"""Few-shot classification tasks from images sorted by class, as many of each."""

from __future__ import annotations

import torch
from torch import Tensor

from metafast.tasks.sampler import TaskSampler


class ImageTasks(TaskSampler):
    """A :class:`TaskSampler` over ``images`` [classes, examples, channels, height, width], uint8."""

    def __init__(self, images: Tensor, *, ways: int, shots: int, queries: int) -> None:
        if images.ndim != 5 or images.dtype != torch.uint8:
            raise ValueError(
                "images: expected uint8 [classes, examples, channels, height, width], "
                f"got {images.dtype} {list(images.shape)}"
            )
        classes = torch.arange(len(images)).repeat_interleave(images.shape[1])
        super().__init__(images.flatten(0, 1), classes, ways=ways, shots=shots, queries=queries)
