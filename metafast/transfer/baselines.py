"""The plain ways to learn a new task from a network trained before, and MAML and ANIL, on the same tasks."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metafast.learner import MAML
from metafast.tasks import TEST, VALIDATION, Episode, Splits, Tasks, generator
from metafast.tasks.episode import Pair
from metafast.training import Every, meta_train, random_state
from metafast.training.progress import bar
from metafast.transfer.comparison import Comparison, Result
from metafast.transfer.fine_tuning import fine_tune
from metafast.transfer.surgery import head_of, transfer

#: From the support and query sets of T tasks, the classes [T, Nq]; labels of the query set are not used.
Predict = Callable[[Pair, Pair], Tensor]
SCRATCH, ALL, HEAD, MEAN = "from scratch", "fine-tune all", "fine-tune head", "nearest class mean"
META = ("MAML", "ANIL")
METHODS = (SCRATCH, ALL, HEAD, MEAN, *META)
#: Says what runs now, and how many tasks and meta-steps of it are done.
Show = Callable[[str, int], None]


def baselines(
    model: nn.Module,
    tasks: Tasks | Splits,
    *,
    methods: Sequence[str] = METHODS,
    head: str | None = None,
    steps: int = 5,
    lr: float | Sequence[float] = (0.0001, 0.001, 0.01, 0.1),
    scratch_steps: int = 50,
    scratch_lr: float | Sequence[float] = (0.0001, 0.001, 0.01),
    count: int = 200,
    validation_count: int = 20,
    meta_steps: int = 200,
    meta_batch: int = 4,
    meta_lr: float = 0.001,
    seed: int = 0,
    batch: int = 10,
    progress: bool = True,
) -> Comparison:
    """Classify the query sets of ``count`` tasks by each method, all from ``model`` and all on the same tasks.

    ====================  =============================================================================================
    "from scratch"        every weight drawn anew; ``scratch_steps`` steps of Adam on the support set, BatchNorm and
                          dropout in train mode, and eval mode for the query set
    "fine-tune all"       ``steps`` steps of gradient descent on the support set by every parameter, frozen or not
    "fine-tune head"      the same by the head alone
    "nearest class mean"  the class whose mean of the head's inputs is nearest, by Euclidean distance; nothing is
                          trained
    "MAML"                what requires grad is meta-learnt on the training tasks (Finn et al. 2017); ``steps`` steps by
                          all of it
    "ANIL"                the same; steps by the head alone (Raghu et al. 2020)
    ====================  =============================================================================================

    All but the first use the model in eval mode: BatchNorm takes the statistics of the base, as it does where
    :func:`metafast.transfer` froze it.

    Args:
        model: a network for the tasks' number of classes, as :func:`metafast.transfer` makes it; it is left as it is.
        tasks: of integer classes: splits, of which ``train`` is for meta-training, ``validation`` for choosing ``lr``
            and ``test`` for the comparison; or one distribution, from which all three are drawn.
        methods: some of the names above.
        head: the submodule that is the head; None is the last linear layer.
        lr, scratch_lr: learning rates on the support set. Of several each method takes the best on
            ``validation_count`` tasks; MAML and ANIL choose before meta-training, and learn it on from there.
        count: tasks of the comparison, at least 2.
        meta_steps, meta_batch, meta_lr: of :func:`metafast.meta_train`: meta-steps of Adam, their tasks, their rate.
        batch: how many tasks of the comparison are in memory at a time; the results do not depend on it but for
            rounding, as a task is one of a number.
        progress: show a bar, if tqdm is installed.

    Raises:
        ValueError, TypeError: an argument that does not fit; targets that are no classes; a layer that "from scratch"
            cannot draw anew.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods: expected some of {', '.join(map(repr, METHODS))}; got {list(methods)}")
    if count < 2:
        raise ValueError(f"count: an interval needs at least 2 tasks; it is {count}")
    parts = tasks if isinstance(tasks, Splits) else Splits(tasks, tasks, tasks)
    if not isinstance(parts.test, Tasks):
        raise TypeError(f"tasks must be a metafast.tasks.Tasks or Splits; it is a {type(tasks).__name__}")
    given = _Given(copy.deepcopy(model).eval(), head_of(model) if head is None else head, steps, scratch_steps, seed)
    given.model.get_submodule(given.head)
    results = []
    training = {"max_iters": meta_steps, "meta_batch": meta_batch, "meta_lr": meta_lr}
    total = sum(count + meta_steps * (method in META) for method in methods)
    with bar("baselines", 0.0, progress) as report:
        done = 0

        def show(what: str, now: int) -> None:
            report((done + now) / total, {what: ""})

        for method in methods:
            show(method, 0)
            begin = time.perf_counter()
            validation = _Drawn(parts.validation, VALIDATION, seed, validation_count, batch)
            rates = _rates(scratch_lr if method == SCRATCH else lr)
            chosen = None if method == MEAN else _best_rate(given, method, rates, validation)
            predict = given.predictor(method, chosen)
            if method in META:
                predict = given.meta_trained(method, chosen, parts.train, show, **training)
                done += meta_steps
            prepared = time.perf_counter()
            per_task = _score(predict, _Drawn(parts.test, TEST, seed, count, batch), partial(show, method))
            seconds = time.perf_counter() - prepared
            done += count
            preparation = 0.0 if method == MEAN else prepared - begin
            results.append(Result(method, per_task, chosen, preparation, seconds / count))
    return Comparison(tuple(results))


@dataclass(frozen=True)
class _Drawn:
    """``count`` tasks, drawn again each time one goes through them."""

    tasks: Tasks
    stream: int
    seed: int
    count: int
    batch: int

    def __iter__(self) -> Iterator[Episode]:
        # One task of a generator, so that the tasks do not depend on how many are in memory at a time.
        for first in range(0, self.count, self.batch):
            numbers = range(first, min(first + self.batch, self.count))
            drawn = [self.tasks.sample(1, generator(self.seed, self.stream, i)) for i in numbers]
            (xs, ys), (xq, yq) = (zip(*sets, strict=True) for sets in zip(*drawn, strict=True))
            yield Episode((torch.cat(xs), torch.cat(ys)), (torch.cat(xq), torch.cat(yq)))


@dataclass(frozen=True)
class _Given:
    """The network that all methods begin with, and how they train it."""

    model: nn.Module  # in eval mode
    head: str
    steps: int
    scratch_steps: int
    seed: int

    def predictor(self, method: str, lr: float | None) -> Predict:
        """The method without meta-training."""
        if method == MEAN:
            return self._nearest_class_mean
        assert lr is not None
        if method == SCRATCH:
            return _Scratch(redrawn(self.model, self.seed), self.scratch_steps, lr, self.seed)
        return _adapted(self._learner(method, lr))

    def meta_trained(self, method: str, lr: float | None, tasks: Tasks, show: Show, **settings: Any) -> Predict:
        """MAML or ANIL after meta-training."""
        assert lr is not None
        learner = self._learner(method, lr, learn_lr=True)
        every = Every(1, lambda state: show(f"{method}, meta-training", state.meta_step))
        history = meta_train(learner, tasks, seed=self.seed, progress=False, callbacks=[every], **settings)
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        if history.stopped == "diverged":
            warnings.warn(f"{method}: {history.reason}", stacklevel=3)
        return _adapted(learner)

    def _learner(self, method: str, lr: float, learn_lr: bool = False) -> MAML:
        model = transfer(self.model, unfreeze="*") if method == ALL else copy.deepcopy(self.model)
        if method == HEAD:
            model.get_submodule(self.head).requires_grad_()
        adapted = None if method in (ALL, "MAML") else f"{self.head}.*"
        return MAML(model.eval(), lr, self.steps, adapt_params=adapted, learn_lr=learn_lr)

    @torch.no_grad()
    def _nearest_class_mean(self, support: Pair, query: Pair) -> Tensor:
        network = copy.deepcopy(self.model)
        network.set_submodule(self.head, nn.Identity())
        found = []
        for x, y, xq in zip(*support, query[0], strict=True):
            means = class_means(network(x).flatten(1), y)
            found.append(torch.cdist(network(xq).flatten(1), means).argmin(1))
        return torch.stack(found)


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """[C, F] of features [N, F] with labels [N] in 0 .. C - 1; infinity for a class without examples."""
    member = torch.nn.functional.one_hot(labels).to(features.dtype)
    counts = member.sum(0)[:, None]
    return torch.where(counts > 0, member.T @ features / counts.clamp(min=1), torch.inf)


@dataclass(frozen=True)
class _Scratch:
    network: nn.Module
    steps: int
    lr: float
    seed: int

    def __call__(self, support: Pair, query: Pair) -> Tensor:
        found = []
        for x, y, xq in zip(*support, query[0], strict=True):
            network = copy.deepcopy(self.network)
            with random_state.isolated(self.seed):  # what dropout draws
                fine_tune(network, (x, y), steps=self.steps, batch_size=None, optimizer=self._adam)
            with torch.no_grad():
                found.append(network.eval()(xq).argmax(1))
        return torch.stack(found)

    def _adam(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr)


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A copy of ``model`` that has learnt nothing: all of its layers reset, and nothing frozen."""
    fresh = transfer(model, unfreeze="*")
    lasting = [
        name or "(model)"
        for name, module in fresh.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not hasattr(module, "reset_parameters")
    ]
    if lasting:
        raise ValueError(
            f"model: {', '.join(lasting)} have parameters and no reset_parameters(), so {SCRATCH!r} cannot draw them "
            f"anew; give them that method, or leave {SCRATCH!r} out of methods"
        )
    with random_state.isolated(seed):
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0  # the support set is the one batch there is: its statistics are the running ones
    return fresh


def _adapted(learner: MAML) -> Predict:
    def predict(support: Pair, query: Pair) -> Tensor:
        with torch.no_grad():
            return learner(support, query).logits.argmax(-1)  # type: ignore[no-any-return]

    return predict


def _score(predict: Predict, episodes: Iterable[Episode], tell: Callable[[int], Any] = lambda done: None) -> Tensor:
    """Accuracy [T] on the query sets. ``tell`` hears how many tasks are done."""
    found: list[Tensor] = []
    for support, query in episodes:
        if support[1].is_floating_point():
            shape = list(support[1].shape)
            raise TypeError(f"tasks: expected integer classes; the targets are {support[1].dtype} {shape}")
        found.append((predict(support, query) == query[1]).double().mean(-1).cpu())
        tell(sum(map(len, found)))
    return torch.cat(found)


def _rates(given: float | Sequence[float]) -> Sequence[float]:
    return [float(rate) for rate in given] if isinstance(given, Sequence) else [float(given)]


def _best_rate(given: _Given, method: str, rates: Sequence[float], validation: _Drawn) -> float:
    """The first of the best on the validation tasks."""
    if len(rates) == 1:
        return rates[0]

    def accuracy(rate: float) -> float:
        return float(_score(given.predictor(method, rate), validation).mean())

    return max(rates, key=accuracy)
