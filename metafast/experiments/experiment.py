"""What a run on the command line is: its tasks, its network, its two loops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from metafast.experiments.settings import SettingsError, setting
from metafast.learner import MAML
from metafast.tasks import Splits
from metafast.training import inner_rules, networks
from metafast.training.checkpoint import Checkpoint
from metafast.training.history import History

#: Headings of flags.
INNER, OUTER, JUDGED = "inner loop", "meta-steps", "validation and test"
#: Rules of the inner loop.
RULES = ("momentum", *inner_rules.OPTIMISERS)


class Prepared(NamedTuple):
    """The data of an experiment, and the network that fits it."""

    tasks: Splits
    network: str  # a name of metafast.training.networks
    arguments: dict[str, Any]  # its keyword arguments
    task: dict[str, Any]  # what a checkpoint must know to read new data: plain values
    class_names: tuple[str, ...] = ()  # of the test tasks, where classes have names


class Examples(NamedTuple):
    """Labelled data of one new task."""

    x: Tensor  # [N, ...]
    y: Tensor  # [N] or [N, outputs]
    class_names: tuple[str, ...] = ()  # what the labels mean


class Inputs(NamedTuple):
    """Data to predict."""

    x: Tensor  # [N, ...]
    names: tuple[str, ...]  # a file or a row each


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """The settings that all experiments have. A subclass adds those of its tasks and of its network."""

    NAME: ClassVar[str]
    LOSS: ClassVar[str]
    METRIC: ClassVar[str]
    #: Inner steps after which the test tasks are judged, beside ``test_steps``.
    CURVE: ClassVar[tuple[int, ...]] = (0, 1, 5, 10)
    #: Meta-steps between two looks at the losses.
    BLOCK: ClassVar[int] = 10
    #: Whether new tasks are read from files, as ``metafast adapt`` does.
    TAKES_FILES: ClassVar[bool] = False
    #: Whether a meta-step is compared with the same one in torch.func: plain SGD on squared error.
    COMPARED: ClassVar[bool] = False

    shots: int = setting(1, "support examples of a class, or of a task", least=1)
    queries: int = setting(5, "query examples of a class, or of a task, in training", least=1)

    steps: int = setting(5, "inner steps in training", least=0, group=INNER)
    test_steps: int | None = setting(
        None, "inner steps in validation (default: those of training)", least=0, group=INNER
    )
    rule: str = setting("sgd", "rule of the inner loop", choices=RULES, group=INNER)
    lr: float = setting(0.01, "learning rate of the inner loop", least=0, group=INNER)
    learn_lr: bool = setting(False, "meta-learn the learning rate of the inner loop too", group=INNER)
    adapt: str = setting(
        "all", "what the inner loop moves: all, head (the last layer: ANIL), or a glob of names", group=INNER
    )
    first_order: bool = setting(False, "ignore second derivatives (FOMAML)", group=INNER)
    inner_clip_norm: float | None = setting(
        None, "largest norm of an inner gradient (default: no limit)", least=0, group=INNER
    )
    inner_weight_decay: float = setting(0.0, "weight decay of the inner loop", least=0, group=INNER)
    soft_threshold: float = setting(
        0.0, "strength of the L1 penalty of the inner loop (soft threshold)", least=0, group=INNER
    )

    optimizer: str = setting(
        "adam", "optimiser of the meta-steps", choices=("adam", "adamw", "sgd", "rmsprop"), group=OUTER
    )
    meta_lr: float = setting(0.001, "learning rate of the meta-steps", least=0, group=OUTER)
    schedule: str = setting("constant", "how it goes over the budget", choices=("constant", "cosine"), group=OUTER)
    weight_decay: float = setting(0.0, "weight decay of the meta-steps", least=0, group=OUTER)
    clip_norm: float | None = setting(None, "largest norm of a meta-gradient (default: no limit)", least=0, group=OUTER)
    tasks: int = setting(16, "tasks per meta-step", least=1, group=OUTER)
    meta_steps: int = setting(1000, "meta-steps to train at most; 0: no limit", least=0, fixed=False, group=OUTER)
    minutes: float = setting(0.0, "minutes to train at most; 0: no limit", least=0, fixed=False, group=OUTER)

    validate_every: int | None = setting(
        None, "meta-steps between two validations (default: a twentieth)", least=1, group=JUDGED
    )
    validation_tasks: int = setting(200, "tasks of each validation", least=2, group=JUDGED)
    patience: int | None = setting(
        None, "stop after so many validations without improvement", least=1, fixed=False, group=JUDGED
    )
    target_value: float | None = setting(None, "stop when validation reaches this", fixed=False, group=JUDGED)
    test_tasks: int = setting(600, "fresh tasks to test on", least=2, fixed=False, group=JUDGED)
    seed: int = setting(0, "seed of weights, tasks and splits", least=0)

    # ---- What a subclass says --------------------------------------------------------------------------------------
    @abstractmethod
    def prepare(self) -> Prepared:
        """Read the data."""

    @classmethod
    def read_examples(cls, task: dict[str, Any], path: Path) -> Examples:
        """Labelled data of a new task, as a checkpoint with this ``task`` takes it."""
        raise SettingsError(f"{cls.NAME}: tasks of this kind are not read from files; adapt them in Python")

    @classmethod
    def read_inputs(cls, task: dict[str, Any], path: Path) -> Inputs:
        """Data to predict, likewise."""
        raise SettingsError(f"{cls.NAME}: tasks of this kind are not read from files; predict them in Python")

    @classmethod
    def columns(cls, task: dict[str, Any], outputs: Tensor, class_names: tuple[str, ...]) -> dict[str, list[Any]]:
        """What ``predict`` writes of outputs [N, ...]: of the classes of the adapted task the likeliest, and the
        probabilities of all."""
        chances = outputs[:, : len(class_names)].double().softmax(-1)
        found: dict[str, list[Any]] = {"predicted": [class_names[i] for i in chances.argmax(-1).tolist()]}
        for place, name in enumerate(class_names):
            found[f"probability of {name}"] = [round(value, 6) for value in chances[:, place].tolist()]
        return found

    def draw(self, out: Path, learner: MAML, history: History) -> None:  # noqa: B027
        """Pictures of this kind of tasks, into the folder ``out``, if there are any."""

    def check_budget(self) -> None:
        if not self.meta_steps and not self.minutes:
            raise SettingsError("a budget is needed: --meta-steps, --minutes or both")

    # ---- What follows ----------------------------------------------------------------------------------------------
    @property
    def judged_steps(self) -> int:
        """Inner steps in validation."""
        return self.steps if self.test_steps is None else self.test_steps

    def describe(self, prepared: Prepared) -> Checkpoint:
        """The checkpoint of an untrained learner, which says all that rebuilds it."""
        network = networks.build(prepared.network, prepared.arguments)
        return Checkpoint(
            network=prepared.network,
            arguments=prepared.arguments,
            task={"name": self.NAME, **prepared.task},
            learner={
                "steps": self.steps,
                "loss": self.LOSS,
                "first_order": self.first_order,
                "learn_lr": self.learn_lr,
                "adapt_params": adapted(self.adapt, network),
                "rule": self._rule(),
            },
        )

    def _rule(self) -> list[list[Any]]:
        """For :func:`metafast.training.inner_rules.build`."""
        links: list[list[Any]] = []
        if self.inner_clip_norm is not None:
            links.append(["clip_norm", {"max_norm": self.inner_clip_norm}])
        name, settings = self.rule, {"lr": self.lr}
        if name == "momentum":
            name, settings = "sgd", {"lr": self.lr, "momentum": 0.9}
        if self.inner_weight_decay:
            settings["weight_decay"] = self.inner_weight_decay
        links.append([name, settings])
        if self.soft_threshold:
            links.append(["soft_threshold", {"strength": self.soft_threshold}])
        return links

    def training(self, prepared: Prepared) -> dict[str, Any]:
        """Keyword arguments of :func:`metafast.meta_train`."""
        return dict(
            optimizer=self.optimizer,
            meta_lr=self.meta_lr,
            weight_decay=self.weight_decay,
            scheduler="cosine" if self.schedule == "cosine" else None,
            clip_norm=self.clip_norm,
            meta_batch=self.tasks,
            max_iters=self.meta_steps if self.meta_steps or not self.minutes else None,
            seconds=60 * self.minutes if self.minutes else None,
            seed=self.seed,
            validation=prepared.tasks.validation,
            validate_every=self.validate_every,
            validation_tasks=self.validation_tasks,
            validation_steps=self.judged_steps,
            metric=self.METRIC,
            patience=self.patience,
            target=self.target_value,
            block=self.BLOCK,
        )

    def curve(self) -> tuple[int, ...]:
        """Inner steps after which the test tasks are judged."""
        return tuple(sorted({*self.CURVE, self.judged_steps}))


def adapted(adapt: str, network: nn.Module) -> Any:
    """The learner's ``adapt_params``: None for all, or names."""
    if adapt == "all":
        return None
    if adapt != "head":
        return adapt
    names = [name for name, _ in network.named_parameters()]
    layer = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == layer]


def adapt_one(learner: MAML, examples: Examples, steps: int | None) -> dict[str, Tensor]:
    """The state_dict of the model after adaptation to one task, for ``model.load_state_dict``."""
    device = next(learner.parameters()).device
    with torch.no_grad():
        moved = learner.adapt((examples.x[None].to(device), examples.y[None].to(device)), steps=steps)
    state = {name: value.detach().cpu().clone() for name, value in learner.model.state_dict().items()}
    return {**state, **{name: value[0].cpu().contiguous() for name, value in moved.items()}}
