"""Few-shot classification of your own images, which lie in a folder for each class.

The classes are divided at random into those to train on, to choose the best weights by, and to test with. A task has
some classes, and some support and query images of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from metafast.experiments.experiment import Examples, Experiment, Inputs, Prepared
from metafast.experiments.settings import setting
from metafast.tasks import DataError, ImageFolder, archive
from metafast.tasks.sampler import TaskSampler, scaled


@dataclass(frozen=True, kw_only=True)
class Images(Experiment):
    NAME: ClassVar[str] = "images"
    LOSS: ClassVar[str] = "cross_entropy"
    METRIC: ClassVar[str] = "accuracy"
    TAKES_FILES: ClassVar[bool] = True

    data: Path = setting(..., "folder, or zip file, with a folder of images for each class", fixed=False)
    ways: int = setting(5, "classes of a task", least=2)
    shots: int = setting(5, "support images of a class", least=1)
    queries: int = setting(5, "query images of a class", least=1)
    size: int = setting(28, "height and width to which images are resized", least=16)
    colour: bool = setting(False, "keep colours, instead of shades of grey")
    skip_small: bool = setting(False, "leave out classes of too few images, instead of stopping")
    channels: int = setting(32, "channels of each convolution of the network (Conv-4)", least=1)
    lr: float = setting(0.4, "learning rate of the inner loop", least=0)
    steps: int = setting(1, "inner steps in training", least=0)
    meta_lr: float = setting(0.003, "learning rate of the meta-steps", least=0)
    schedule: str = setting("cosine", "how it goes over the budget", choices=("constant", "cosine"))

    def prepare(self) -> Prepared:
        folder = ImageFolder.load(self.data, self.size, 3 if self.colour else 1)
        tasks = folder.splits(
            ways=self.ways, shots=self.shots, queries=self.queries, seed=self.seed, skip_small=self.skip_small
        )
        assert isinstance(tasks.test, TaskSampler)
        return Prepared(
            tasks,
            "conv4",
            {
                "channels": self.channels,
                "ways": self.ways,
                "in_channels": 3 if self.colour else 1,
                "image_size": self.size,
            },
            {"ways": self.ways, "shots": self.shots, "size": self.size, "colour": self.colour},
            tuple(map(str, tasks.test.class_names)),
        )

    @classmethod
    def read_examples(cls, task: dict[str, Any], path: Path) -> Examples:
        folder = ImageFolder.load(path, task["size"], 3 if task["colour"] else 1)
        if not 2 <= len(folder.class_names) <= task["ways"]:
            raise DataError(
                f"{path} has {len(folder.class_names)} classes; the network tells 2 to {task['ways']} apart, "
                "the ways it was trained with"
            )
        return Examples(scaled(folder.images), folder.labels, folder.class_names)

    @classmethod
    def read_inputs(cls, task: dict[str, Any], path: Path) -> Inputs:
        source: archive.Archive
        if path.is_file() and path.suffix.lower() in archive.SUFFIXES:
            source, names = archive.Folder(path.parent), [path.name]
        elif path.is_dir() or path.is_file():
            source = archive.Folder(path) if path.is_dir() else archive.Zip(path)
            names = source.names()
        else:
            raise DataError(f"{path} does not exist")
        if not names:
            raise DataError(f"{path} holds no image ({', '.join(sorted(archive.SUFFIXES))})")
        size = (task["size"], task["size"])
        pixels = archive.decode(source, names, size, 3 if task["colour"] else 1)
        return Inputs(scaled(torch.from_numpy(pixels)), tuple(names))
