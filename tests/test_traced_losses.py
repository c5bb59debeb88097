"""Losses of the user's own in the Program: the same as on torch, and refused where they are no means of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
from judge import assert_close

Loss = Callable[[Tensor, Tensor], Tensor]


class Policy(nn.Module):
    """A Gaussian policy: the mean of an action, and a learnt logarithm of its deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.log_std = nn.Parameter(torch.tensor([-0.3, 0.2]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.mean(x), self.log_std.expand(len(x), 2)], 1)


def surrogate(output: Tensor, target: Tensor) -> Tensor:
    """Minus the advantage times the log-probability of the action; the target holds both."""
    mean, log_std = output.chunk(2, dim=1)
    action, advantage = target[:, :2], target[:, 2]
    log_probability = (-0.5 * ((action - mean) / log_std.exp()) ** 2 - log_std).sum(1)
    return -(log_probability * advantage).mean()


def clipped(output: Tensor, target: Tensor) -> Tensor:
    """PPO: the smaller of the ratio and the clipped ratio, times the advantage."""
    ratio = torch.exp(output[:, 0] - target[:, 0])
    advantage = target[:, 1]
    return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()


def smoothed(output: Tensor, target: Tensor) -> Tensor:
    """Label smoothing by hand."""
    log_probabilities = F.log_softmax(output, dim=-1)
    each = F.nll_loss(log_probabilities, target, reduction="none")
    return (0.9 * each - 0.1 * log_probabilities.mean(dim=-1)).mean()


def added_up(output: Tensor, target: Tensor) -> Tensor:
    """Terms written over a loss that has another name."""
    total = first = F.mse_loss(output, target)
    total += 0.3 * output.abs().mean()
    total *= 2
    return first


def divergence_from_classes(output: Tensor, target: Tensor) -> Tensor:
    """Its targets hold zeros, whose logarithm must not be met."""
    sure = F.one_hot(target, 3).to(output.dtype)
    return F.kl_div(F.log_softmax(output, dim=-1), sure, reduction="batchmean")


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(4, n, *shape, dtype=torch.float64)


def classes(count: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(count, (4, n))


CASES: list[tuple[Callable[[], nn.Module], Loss, Callable[[int], Tensor]]] = [
    (Policy, surrogate, numbers(3)),
    (lambda: mlp(1), clipped, numbers(2)),
    (lambda: mlp(3), smoothed, classes(3)),
    (lambda: mlp(3), lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2) + 0.1 * o.square().mean(), classes(3)),
    (lambda: mlp(2), lambda o, y: F.mse_loss(o, y) / 2 - 0.3 * (1 - F.cosine_similarity(o, y)).mean(), numbers(2)),
    (lambda: mlp(2), lambda o, y: F.huber_loss(o, y, delta=0.5) + F.smooth_l1_loss(o, y, beta=0.7), numbers(2)),
    (lambda: mlp(2), lambda o, y: F.binary_cross_entropy_with_logits(o, torch.sigmoid(y)), numbers(2)),
    (lambda: mlp(2), lambda o, y: nn.L1Loss()(o, y) * 3, numbers(2)),
    (lambda: mlp(2), added_up, numbers(2)),
    (lambda: mlp(3), divergence_from_classes, classes(3)),
]


def gradients(model: nn.Module, loss: Loss, backend: str, support: Any, query: Any) -> dict[str, Tensor]:
    maml = mf.MAML(model, lr=0.1, steps=2, loss=loss, backend=backend)
    out = maml(support, query)
    total = out.loss + (out.logits * torch.linspace(-1, 1, out.logits.numel()).reshape(out.logits.shape)).sum()
    inputs = [*model.parameters(), support[0], query[0]]
    inputs += [t for t in (support[1], query[1]) if t.requires_grad]
    meta = maml.meta_gradient(support, query)[1]
    made = [out.loss, out.task_loss, out.logits, *torch.autograd.grad(total, inputs), *meta]
    return {str(i): tensor for i, tensor in enumerate(made)}


def problem(target: Callable[[int], Tensor]) -> tuple[Any, Any]:
    sets = []
    for n in (5, 6):
        y = target(n)
        x = torch.randn(4, n, 3, dtype=torch.float64, requires_grad=True)
        sets.append((x, y.requires_grad_() if y.is_floating_point() else y))
    return sets[0], sets[1]


@pytest.mark.parametrize(("build", "loss", "target"), CASES)
def test_it_is_native_and_the_same_as_on_torch(
    build: Callable[[], nn.Module], loss: Loss, target: Callable[[int], Tensor]
) -> None:
    torch.manual_seed(0)
    model = build().double()
    support, query = problem(target)
    assert_close(*(gradients(model, loss, backend, support, query) for backend in ("native", "torch")))


def test_it_may_read_the_parameters_that_the_inner_loop_has_reached() -> None:
    torch.manual_seed(0)
    model = mlp(2).double()

    def penalised(output: Tensor, target: Tensor) -> Tensor:
        decay = sum(p.square().sum() for name, p in model.named_parameters() if "weight" in name)
        return F.mse_loss(output, target) + 0.05 * decay

    support, query = problem(numbers(2))
    assert_close(*(gradients(model, penalised, backend, support, query) for backend in ("native", "torch")))


def test_a_call_without_targets_needs_no_loss() -> None:
    """predict runs the model alone, whatever the loss is."""
    model = mlp(2).double()
    maml = mf.MAML(model, loss=lambda o, y: torch.logcumsumexp(o - y, 1).mean(), backend="native")
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    assert_close({"y": maml.predict({}, x)}, {"y": model(x)})


def test_verify_tells_that_it_is_native() -> None:
    support, query = problem(numbers(3))
    assert mf.verify(mf.MAML(Policy().double(), loss=surrogate), support, query).engine == "native"


def test_a_number_that_it_reads_may_change() -> None:
    model, settings = mlp(2).double(), {"strength": 0.0}

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + settings["strength"] * output.square().mean()

    maml = mf.MAML(model, lr=0.1, loss=loss, backend="native")
    support, query = problem(numbers(2))
    before = maml(support, query).loss
    settings["strength"] = 2.0
    after = maml(support, query).loss
    there = mf.MAML(model, lr=0.1, loss=loss, backend="torch")(support, query).loss
    assert_close({"loss": after}, {"loss": there})
    assert after > before


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda o, y: F.poisson_nll_loss(o, y.abs(), full=True), "is not native with full=True"),
        (lambda o, y: (o - y).square().mean().sqrt(), "a mean over the examples"),
        (lambda o, y: (o - y).square().sum() + 1, "adds a number to a sum over the examples"),
        (lambda o, y: (o - y).square().sum() + (o - y).mean(), "counts with a sum over the examples"),
        (lambda o, y: (o - y).square().mean() * (o - y).abs().mean(), "a mean over the examples"),
    ],
)
def test_what_is_no_mean_over_the_examples_is_refused(loss: Loss, says: str) -> None:
    support, query = problem(numbers(2))
    with pytest.raises(RuntimeError, match=says):
        mf.MAML(mlp(2).double(), loss=loss, backend="native")(support, query)
