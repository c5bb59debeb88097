"""Few-shot classification of Omniglot's characters, tested on alphabets never seen, by Conv-4.

BatchNorm always uses the statistics of the batch at hand, in testing too, as MAML's published results do: query images
of a task are classified together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from metafast.experiments.experiment import Examples, Experiment, Inputs, Prepared
from metafast.experiments.images import Images
from metafast.experiments.settings import setting
from metafast.tasks import Omniglot, Splits


@dataclass(frozen=True, kw_only=True)
class Characters(Experiment):
    NAME: ClassVar[str] = "omniglot"
    LOSS: ClassVar[str] = "cross_entropy"
    METRIC: ClassVar[str] = "accuracy"
    TAKES_FILES: ClassVar[bool] = True

    data: Path = setting(
        ...,
        "folder of Omniglot: images_background and images_evaluation, as folders or .zip files, in it or one level "
        "below",
        fixed=False,
    )
    subset: bool = setting(False, "accept a part of Omniglot, which else is an error", fixed=False)
    ways: int = setting(5, "classes of a task", least=2)
    shots: int = setting(1, "support images of a class", least=1)
    queries: int = setting(5, "query images of a class in training", least=1)
    test_queries: int = setting(15, "query images of a class in validation and testing", least=1, fixed=False)
    channels: int = setting(64, "channels of each convolution", least=1)
    steps: int = setting(1, "inner steps in training", least=0)
    lr: float = setting(0.5, "learning rate of the inner loop", least=0)
    meta_lr: float = setting(0.003, "learning rate of the meta-steps", least=0)
    schedule: str = setting("cosine", "how it goes over the budget", choices=("constant", "cosine"))
    minutes: float = setting(15.0, "minutes to train at most, validation included; 0: no limit", least=0, fixed=False)
    meta_steps: int = setting(0, "meta-steps to train at most; 0: no limit", least=0, fixed=False)
    validate_every: int | None = setting(200, "meta-steps between two validations", least=1)
    test_tasks: int = setting(1000, "fresh tasks to test on", least=2, fixed=False)

    def prepare(self) -> Prepared:
        data = Omniglot.load(self.data, subset=self.subset)
        queries = {"train": self.queries, "validation": self.test_queries, "test": self.test_queries}
        tasks = Splits(*(data.tasks(s, ways=self.ways, shots=self.shots, queries=q) for s, q in queries.items()))  # type: ignore[arg-type]
        arguments = {"channels": self.channels, "ways": self.ways, "in_channels": 1, "image_size": 28}
        task = {"ways": self.ways, "shots": self.shots, "size": 28, "colour": False}
        return Prepared(tasks, "conv4", arguments, task)

    @classmethod
    def read_examples(cls, task: dict[str, Any], path: Path) -> Examples:
        """Ink is bright on dark in what the network knows."""
        found = Images.read_examples(task, path)
        return found._replace(x=1 - found.x)

    @classmethod
    def read_inputs(cls, task: dict[str, Any], path: Path) -> Inputs:
        found = Images.read_inputs(task, path)
        return found._replace(x=1 - found.x)
