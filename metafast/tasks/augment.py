"""Augmentation of image tasks, of a whole meta-batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from metafast.tasks.distribution import Tasks
from metafast.tasks.episode import Episode, Pair
from metafast.tasks.groups import number

PLACES = ("both", "support", "query")


class Augmented(Tasks):
    """The tasks of another distribution of images [T, N, channels, height, width], changed at random.

    The changes are drawn from the generator that drew the tasks, so that a stream gives the same ones again. They are
    drawn on the CPU: a seed gives the same ones on every device.

    Args:
        tasks: gives the images, of real numbers, and labels [T, N] in 0 .. ways - 1.
        rotate: turn all images of a class of a task by 0, 90, 180 or 270 degrees, support and query alike: further
            classes, four of each (Santoro and others, 2016). Images must be square.
        flip: mirror each image from left to right with probability 1/2.
        crop: shift each image by up to so many pixels in each direction; its edge pixels fill what appears. That is
            padding by edge pixels and then a crop to the size before.
        noise: standard deviation of normal noise on every pixel. The result is not cut off at 0 and 1.
        on: whether flip, crop and noise change "support", "query" or "both".
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        rotate: bool = False,
        flip: bool = False,
        crop: int = 0,
        noise: float = 0.0,
        on: str = "both",
    ) -> None:
        if on not in PLACES:
            raise ValueError(f"on: expected one of {', '.join(map(repr, PLACES))}, got {on!r}")
        if not noise >= 0:
            raise ValueError(f"noise: expected a standard deviation >= 0, got {noise!r}")
        self.tasks, self.rotate, self.flip, self.noise, self.on = tasks, rotate, flip, noise, on
        self.crop = number("crop", crop, 0)

    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        support, query = (self._own(pair) for pair in self.tasks.sample(tasks, generator))
        if self.rotate:
            ways = 1 + int(torch.maximum(support[1].max(), query[1].max()))
            turns = torch.randint(4, (tasks, ways), generator=generator)
            for pair in (support, query):
                _turn(pair, turns.to(pair[1].device))
        if self.on != "query":
            support = self._changed(support, generator)
        if self.on != "support":
            query = self._changed(query, generator)
        return Episode(support, query)

    def label_names(self, tasks: int, generator: torch.Generator) -> list[tuple[str, ...]] | None:
        return self.tasks.label_names(tasks, generator)

    def _own(self, pair: Pair) -> Pair:
        """The pair, with an x that may be written to where that is done."""
        x, y = pair
        if x.ndim != 5 or not x.is_floating_point():
            raise ValueError(
                f"tasks: expected images [T, N, channels, height, width] of real numbers, got {x.dtype} {list(x.shape)}"
            )
        return (x.clone(memory_format=torch.contiguous_format) if self.rotate or self.flip else x), y

    def _changed(self, pair: Pair, generator: torch.Generator) -> Pair:
        x, y = pair
        images = x.flatten(0, 1)
        if self.flip:
            mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(x.device)
            images[mirrored] = images[mirrored].flip(-1)
        if self.crop:
            shifts = torch.randint(-self.crop, self.crop + 1, (2, len(images)), generator=generator)
            images = shifted(images, shifts.to(x.device), self.crop)
        if self.noise:
            normal = torch.randn(images.shape, dtype=x.dtype, generator=generator)
            images = normal.mul_(self.noise).to(x.device).add_(images)
        return images.view(x.shape), y


def _turn(pair: Pair, turns: Tensor) -> None:
    """Turn each image counter-clockwise by ``turns`` [T, ways] times 90 degrees, as its class says, in place."""
    x, y = pair
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"rotate: expected square images, got {list(x.shape)}")
    of_image = turns.gather(1, y)
    for times in range(1, 4):
        chosen = of_image == times
        x[chosen] = x[chosen].rot90(times, (-2, -1))


def shifted(images: Tensor, shifts: Tensor, most: int) -> Tensor:
    """[n, channels, height, width], row i and column j of image k taken from i + shifts[0, k] and j + shifts[1, k].

    Rows are gathered whole, from all windows as wide as a row of the images padded to the left and right.
    """
    n, channels, height, width = images.shape
    wide = pad(images, (most, most, 0, 0), mode="replicate").contiguous()
    rows = (torch.arange(height, device=images.device) + shifts[0].unsqueeze(1)).clamp(0, height - 1)  # [n, height]
    planes = torch.arange(n * channels, device=images.device).view(n, channels, 1) * height
    starts = (planes + rows.unsqueeze(1)) * wide.shape[-1] + most + shifts[1].view(n, 1, 1)
    windows = wide.flatten().unfold(0, width, 1)
    return windows.index_select(0, starts.flatten()).view(images.shape)
