"""Each method of a comparison against a loop written out for it, and that all of them see the same tasks."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from bases import EXAMPLE, trained
from judge import assert_same_bits
from metafast.tasks import TEST, VALIDATION, Episode, Splits, Tasks, TaskSampler, generator
from metafast.training.evaluation import Estimate
from metafast.transfer.baselines import ALL, HEAD, MEAN, METHODS, SCRATCH, class_means

WAYS, COUNT = 3, 6
SETTINGS: dict[str, Any] = dict(
    count=COUNT, validation_count=3, lr=0.1, scratch_lr=0.01, scratch_steps=4, meta_steps=3, meta_batch=2,
    steps=3, progress=False,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:metafast.*running on torch")


def tasks() -> Splits:
    """Classes of images that differ in their mean."""
    labels = torch.arange(15).repeat_interleave(6)
    images = torch.randn(15, *EXAMPLE)[labels] + torch.randn(90, *EXAMPLE)
    return TaskSampler.splits(images, labels, ways=WAYS, shots=2, queries=4, fractions=(0.4, 0.3, 0.3))


class Base(nn.Module):
    """Random features that tell classes apart, behind norms that have seen data."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(72, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


def network(freeze: str = "features.[01].*") -> nn.Module:
    return mf.transfer(trained(Base), head=WAYS, freeze=freeze)


def drawn(part: Tasks, stream: int, count: int = COUNT) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Each task's support and query set."""
    episodes = [part.sample(1, generator(0, stream, i)) for i in range(count)]
    return [(xs[0], ys[0], xq[0], yq[0]) for (xs, ys), (xq, yq) in episodes]


def accuracies(predictions: list[Tensor], episodes: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> list[float]:
    return [float((p == yq).double().mean()) for p, (_, _, _, yq) in zip(predictions, episodes, strict=True)]


def by_gradient_descent(model: nn.Module, x: Tensor, y: Tensor, xq: Tensor, moved: str) -> Tensor:
    own = copy.deepcopy(model).eval()
    chosen = [p.requires_grad_() for n, p in own.named_parameters() if n.startswith(moved)]
    for _ in range(3):
        gradients = torch.autograd.grad(F.cross_entropy(own(x), y), chosen)
        with torch.no_grad():
            for parameter, gradient in zip(chosen, gradients, strict=True):
                parameter -= 0.1 * gradient
    return own(xq).argmax(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("method", "moved"), [(ALL, ""), (HEAD, "classifier.1.")])
def test_fine_tuning_is_gradient_descent_on_each_task(method: str, moved: str) -> None:
    model, parts = network(), tasks()
    found = mf.baselines(model, parts, methods=[method], **SETTINGS)[method]
    episodes = drawn(parts.test, TEST)
    expected = [by_gradient_descent(model, x, y, xq, moved) for x, y, xq, _ in episodes]
    assert found.per_task.tolist() == accuracies(expected, episodes)
    assert 1 / WAYS < found.accuracy.mean <= 1 and found.lr == 0.1


def test_the_nearest_class_mean_is_that_of_the_heads_inputs() -> None:
    model, parts = network(), tasks()
    found = mf.baselines(model, parts, methods=[MEAN], **SETTINGS)[MEAN]
    expected = []
    episodes = drawn(parts.test, TEST)
    for x, y, xq, _ in episodes:
        with torch.no_grad():
            features, queries = (model.features(each).flatten(1) for each in (x, xq))  # type: ignore[operator]
        means = torch.stack([features[y == c].mean(0) for c in range(WAYS)])
        expected.append(torch.stack([(means - q).square().sum(1).argmin() for q in queries]))
    assert found.per_task.tolist() == accuracies(expected, episodes)
    assert found.lr is None and found.preparation == 0


def test_a_class_without_examples_is_never_the_nearest() -> None:
    means = class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]))
    assert means.tolist() == [[2.0], [torch.inf], [5.0]]


def test_from_scratch_keeps_nothing_of_the_base() -> None:
    """Adam on the support set from weights that do not depend on the model's, and running statistics of its own."""
    parts = tasks()
    found = [mf.baselines(model, parts, methods=[SCRATCH], **SETTINGS)[SCRATCH] for model in (network(), network())]
    fresh = mf.transfer(network(), unfreeze="*").train()
    torch.manual_seed(0)
    for module in fresh.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    expected = []
    episodes = drawn(parts.test, TEST)
    for x, y, xq, _ in episodes:
        torch.manual_seed(0)
        own = copy.deepcopy(fresh)
        optimizer = torch.optim.Adam(own.parameters(), 0.01)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(own(x), y).backward()
            optimizer.step()
        expected.append(own.eval()(xq).argmax(1))
    assert found[0].per_task.tolist() == found[1].per_task.tolist() == accuracies(expected, episodes)


def test_what_is_drawn_is_nobody_elses() -> None:
    model, parts = network(), tasks()
    before = torch.random.get_rng_state()
    mf.baselines(model, parts, methods=[SCRATCH], **SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", ["MAML", "ANIL"])
def test_meta_learning_is_a_learner_and_torchs_adam(method: str) -> None:
    model, parts = network(), tasks()
    found = mf.baselines(model, parts, methods=[method], **SETTINGS)[method]
    adapted = "classifier.1.*" if method == "ANIL" else None
    maml = mf.MAML(copy.deepcopy(model).eval(), 0.1, 3, adapt_params=adapted, learn_lr=True)
    optimizer = torch.optim.Adam([p for p in maml.parameters() if p.requires_grad], 0.001)
    for episode, _ in zip(parts.train.stream(2), range(3), strict=False):
        optimizer.zero_grad()
        maml(*episode).loss.backward()
        optimizer.step()
    episodes = drawn(parts.test, TEST)
    predictions = [maml((x[None], y[None]), (xq[None], yq[None])).logits[0].argmax(-1) for x, y, xq, yq in episodes]
    assert found.per_task.tolist() == accuracies(predictions, episodes)


def test_without_meta_training_meta_learning_is_fine_tuning() -> None:
    model = network("features.*")
    found = mf.baselines(model, tasks(), methods=[HEAD, "MAML", "ANIL"], **{**SETTINGS, "meta_steps": 0})
    per_task = [result.per_task.tolist() for result in found.results]
    assert per_task[0] == per_task[1] == per_task[2]


def test_all_methods_on_the_same_tasks_in_any_batches_leave_the_model_as_it_is() -> None:
    model, parts = network(), tasks()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wants = [p.requires_grad for p in model.parameters()]
    whole, single = (mf.baselines(model, parts, **{**SETTINGS, "batch": batch}) for batch in (4, 1))
    assert [result.method for result in whole.results] == list(METHODS)
    for one, other in zip(whole.results, single.results, strict=True):
        assert one.per_task.tolist() == other.per_task.tolist()
    assert_same_bits(model.state_dict(), before)
    assert [p.requires_grad for p in model.parameters()] == wants


def test_the_rate_is_the_best_on_validation_tasks() -> None:
    model, parts = network(), tasks()
    rates = (1e-5, 0.1, 100.0)
    found = mf.baselines(model, parts, methods=[HEAD], **{**SETTINGS, "lr": rates, "validation_count": 5})[HEAD]
    validation = Splits(parts.train, parts.validation, _Stream(parts.validation))
    scores = [
        mf.baselines(model, validation, methods=[HEAD], **{**SETTINGS, "lr": rate, "count": 5})[HEAD].accuracy.mean
        for rate in rates
    ]
    assert max(scores) > min(scores)
    assert found.lr == rates[scores.index(max(scores))] and found.preparation > 0


class _Stream(Tasks):
    """Tests on the tasks that another comparison validates on."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks, self.i = tasks, 0

    def sample(self, tasks: int, generator_: torch.Generator) -> Episode:
        self.i += 1
        return self.tasks.sample(tasks, generator(0, VALIDATION, self.i - 1))


def test_a_comparison_prints_a_table_and_gives_plain_values() -> None:
    found = mf.baselines(network(), tasks(), methods=[MEAN, HEAD], **SETTINGS)
    first, second = (result.per_task for result in found.results)
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain[MEAN]["per_task"] == first.tolist() and plain[HEAD]["tasks"] == COUNT
    assert plain[HEAD]["accuracy"] == Estimate.of(second).mean
    assert found.difference(HEAD, MEAN) == Estimate.of(second - first)
    lines = str(found).splitlines()
    assert [line.split("  ")[0] for line in lines[2:4]] == [MEAN, HEAD]
    assert found[HEAD].accuracy.percent() in lines[3] and lines[4] == "mean of 6 tasks, 95 % interval"
    assert len({len(line) for line in lines[:4]}) == 1
    with pytest.raises(KeyError, match="'MAML' was not compared; there are 'nearest class mean', 'fine-tune head'"):
        found["MAML"]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc = nn.Parameter(torch.ones(1)), nn.Linear(3, WAYS)


class Numbers(Tasks):
    def sample(self, tasks: int, generator: torch.Generator) -> Episode:
        pair = torch.zeros(tasks, 2, *EXAMPLE), torch.zeros(tasks, 2)
        return Episode(pair, pair)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"methods": ["Maml"]}, ValueError, r"methods: expected some of .*; got \['Maml'\]"),
        ({"methods": []}, ValueError, "methods: expected some of"),
        ({"count": 1}, ValueError, "an interval needs at least 2 tasks; it is 1"),
        ({"tasks": [1]}, TypeError, "tasks must be a metafast.tasks.Tasks or Splits; it is a list"),
        ({"model": Odd(), "methods": [SCRATCH]}, ValueError, r"\(model\) have parameters and no reset_parameters"),
        ({"methods": [MEAN], "head": "fc"}, AttributeError, "fc"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"model": Base(), "tasks": tasks(), **SETTINGS, **change}
    with pytest.raises(error, match=match):
        mf.baselines(given.pop("model"), given.pop("tasks"), **given)


def test_targets_that_are_no_classes_are_named() -> None:
    with pytest.raises(TypeError, match=r"expected integer classes; the targets are torch\.float32"):
        mf.baselines(network(), Numbers(), methods=[MEAN], **SETTINGS)
