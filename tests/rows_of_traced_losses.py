"""Rows whose loss is a function of the user's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from row import L, Row


class TwoHeads(nn.Module):
    """Classes, and two by two numbers, of one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.label, self.box = L(3, 4), L(4, 3), L(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.label(h), self.box(h).view(-1, 2, 2)


def both(outputs: Any, targets: Any) -> Tensor:
    """Each head's loss, and a term that reads both heads."""
    (label, box), (y, at) = outputs, targets
    return F.cross_entropy(label, y) + 0.5 * F.mse_loss(box, at) + 0.1 * (label[:, :2] * box[:, 0]).mean()


def squares(output: Tensor, target: Tensor) -> Tensor:
    """A sum over the examples, and multiples of sums."""
    loss = 0.5 * F.mse_loss(output, target, reduction="sum")
    loss += 0.1 * (output - target).abs().sum()
    return loss - output.tanh().sum() / 4


def by_count(output: Tensor, target: Tensor) -> Tensor:
    """Means written as sums over the number of examples."""
    divergence = F.kl_div(F.log_softmax(output, -1), F.softmax(target, -1), reduction="batchmean")
    return divergence + (output - target).square().sum() / len(output)


def counts(output: Tensor, target: Tensor) -> Tensor:
    return F.poisson_nll_loss(output, target.square()) + F.poisson_nll_loss(
        F.softplus(output), target.abs(), log_input=False
    )


def reinforce(logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    """A categorical policy gradient: the chosen action's log-probability times its advantage, and an entropy."""
    action, advantage = targets
    log_probabilities = F.log_softmax(logits, -1)
    chosen = log_probabilities.gather(1, action[:, None])[:, 0]
    return -(chosen * advantage).mean() + 0.01 * (log_probabilities.exp() * log_probabilities).sum(1).mean()


class ActorCritic(nn.Module):
    """The mean of an action, its learnt standard deviation, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.value = L(3, 4), L(4, 2), L(4, 1)
        self.log_std = nn.Parameter(torch.tensor([-0.3, 0.2]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.mean(h), self.log_std.expand(len(x), 2), self.value(h)[:, 0]


def proximal_policy(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """The clipped surrogate of PPO, and half the squared error of the value."""
    (mean, log_std, value), (action, before, advantage, returns) = outputs, targets
    z = (action - mean) * torch.exp(-log_std)
    log_probability = (-0.5 * z.square() - log_std).sum(1)
    ratio = torch.exp(log_probability - before)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return 0.5 * F.mse_loss(value, returns) - surrogate.mean()


def margins(output: Tensor, target: Tensor) -> Tensor:
    """Of labels 1 and -1, of two vectors, and of three."""
    sign = torch.where(target > 0, 1.0, -1.0)
    same = torch.where(target[:, 0] != 0, sign[:, 0], sign[:, 1])
    loss = F.soft_margin_loss(output, sign) + F.hinge_embedding_loss(output, sign, margin=0.7)
    loss = loss + F.cosine_embedding_loss(output, target + 2, same, margin=0.3)
    loss = loss + F.margin_ranking_loss(output[:, 0], output[:, 1], same, margin=0.2)
    return loss + F.triplet_margin_loss(output, target, target.flip(1), margin=0.4, swap=True)


def deviations(output: Tensor, target: Tensor) -> Tensor:
    """Of a mean and a variance, some of which is below eps; and of a variance that is known."""
    mean, variance = output.chunk(2, 1)
    loss = F.gaussian_nll_loss(mean, target[:, :1], F.softplus(variance), full=True, eps=0.6)
    return (
        loss
        + F.gaussian_nll_loss(output, target, torch.square(variance[:, 0]), eps=0.1)
        + F.gaussian_nll_loss(mean, target[:, 1:], 2.0)
    )


def autoencodes(output: Tensor, target: Tensor) -> Tensor:
    """Probabilities against others, beside a baseline that is held constant."""
    likely, advantage = output.sigmoid(), (target - output).detach()
    return F.binary_cross_entropy(likely, target.sigmoid()) - 0.1 * (advantage * likely.log()).mean()


def regressor() -> nn.Module:
    return nn.Sequential(L(3, 4), nn.Tanh(), L(4, 2))


TRACED = [
    Row("loss/two-heads", TwoHeads, loss=both, targets=(((), 3), ((2, 2), 0))),
    Row(
        "loss/reinforce", lambda: nn.Sequential(L(3, 4), nn.Tanh(), L(4, 3)), loss=reinforce, targets=(((), 3), ((), 0))
    ),
    Row(
        "loss/actor-critic",
        ActorCritic,
        loss=proximal_policy,
        targets=(((2,), 0), ((), 0), ((), 0), ((), 0)),
        smooth=False,
        lr=0.02,
    ),
    Row("loss/sum-over-examples", regressor, loss=squares, smooth=False, lr=0.02),
    Row("loss/sum-over-their-number", regressor, loss=by_count),
    Row("loss/margins", regressor, loss=margins, smooth=False),
    Row("loss/gaussian", regressor, loss=deviations, smooth=False, lr=0.02),
    Row(
        "loss/probabilities",
        lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Tanh(), L(6, 2)),
        (3,),
        loss=autoencodes,
        vocabulary=5,
        smooth=False,
    ),
    Row("loss/poisson-by-hand", regressor, loss=counts),
]
