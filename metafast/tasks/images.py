"""Few-shot classification tasks from images sorted by class, for any data set that fits in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from metafast.tasks.distribution import Tasks
from metafast.tasks.episode import Episode


class ImageTasks(Tasks):
    """C-way classification tasks drawn from ``images`` [classes, examples, channels, height, width], uint8.

    A task takes ``ways`` distinct classes in random order, which numbers them, and of each class ``shots`` support and
    ``queries`` query images, all distinct. Everything is drawn and gathered for all tasks at once.
    """

    def __init__(self, images: Tensor, *, ways: int, shots: int, queries: int) -> None:
        if images.ndim != 5 or images.dtype != torch.uint8:
            raise ValueError(
                "images: expected uint8 [classes, examples, channels, height, width], "
                f"got {images.dtype} {list(images.shape)}"
            )
        classes, examples = images.shape[:2]
        if not 1 <= ways <= classes:
            raise ValueError(f"ways: expected between 1 and the {classes} classes there are, got {ways}")
        if shots < 1 or queries < 1 or shots + queries > examples:
            raise ValueError(
                f"shots, queries: expected at least 1 each and at most {examples} together, the images a class has, "
                f"got {shots} and {queries}"
            )
        self.ways, self.shots, self.queries = ways, shots, queries
        self.classes, self.examples = classes, examples
        self.shape = images.shape[2:]
        # One row per image: gathering whole rows is a copy per image, much faster than indexing two axes.
        self.rows = images.reshape(classes * examples, -1)

    def to(self, device: torch.device | str) -> ImageTasks:
        """Move the images, in place; tasks are drawn on the CPU, so a seed gives the same ones on every device."""
        self.rows = self.rows.to(device)
        return self

    def indices(self, tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Classes [T, ways] and, for each, examples [T, ways, shots + queries]: the first so many of random orders."""
        taken = self.shots + self.queries
        classes = torch.rand(tasks, self.classes, generator=generator).topk(self.ways).indices
        examples = torch.rand(tasks, self.ways, self.examples, generator=generator).argsort(-1)[..., :taken]
        return classes, examples

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        """xs [T, ways * shots, channels, height, width] float32 in [0, 1], ys [T, ways * shots] int64; and queries."""
        classes, examples = self.indices(tasks, generator)
        rows = classes.unsqueeze(-1) * self.examples + examples
        return Episode(self._take(rows[..., : self.shots]), self._take(rows[..., self.shots :]))

    def _take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        tasks, ways, each = rows.shape
        pixels = self.rows.index_select(0, rows.flatten().to(self.rows.device)).float().div_(255)
        labels = torch.arange(ways, device=self.rows.device).repeat_interleave(each).expand(tasks, -1).contiguous()
        return pixels.view(tasks, ways * each, *self.shape), labels
