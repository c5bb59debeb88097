"""Rows of losses: each with its settings, torch's reductions, weights of examples, and more positions than one."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from models import mlp, seq
from row import C, L, Row

mlp3 = functools.partial(mlp, outputs=3)


def pixels() -> nn.Module:
    return seq(C(2, 3, 2), nn.Tanh(), C(3, 3, 1))


class Tagger(nn.Module):
    """A class for each of a sequence's tokens, as torch's losses want them: [N, C, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = L(4, 5), L(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.token(x))).transpose(1, 2)


def weighing(kind: type[nn.Module], **settings: Any) -> nn.Module:
    """A loss with weights for three classes."""
    return kind(weight=torch.tensor([0.5, 2.0, 1.25]), **settings)


LOSSES = [
    Row("loss/cross-entropy", mlp, loss="cross_entropy"),
    Row("loss/cross-entropy-module", mlp, loss=nn.CrossEntropyLoss()),
    Row("loss/cross-entropy-31", lambda: mlp(outputs=31), loss="cross_entropy"),
    Row("loss/cross-entropy-one-class", lambda: mlp(outputs=1), loss="cross_entropy"),
    Row("loss/cross-entropy-smoothing", lambda: mlp(outputs=4), loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
    Row("loss/cross-entropy-weighted", mlp, loss="cross_entropy", weighted=True),
    Row("loss/cross-entropy-smoothing-weighted", mlp, loss=nn.CrossEntropyLoss(label_smoothing=0.1), weighted=True),
    Row("loss/soft-labels", lambda: mlp(outputs=4), loss="cross_entropy", soft=True),
    Row("loss/soft-labels-smoothing", lambda: mlp(outputs=3), loss=nn.CrossEntropyLoss(label_smoothing=0.3), soft=True),
    Row("loss/cross-entropy-sum-weighted", mlp, loss="cross_entropy", weighted=True, reduction="sum"),
    Row("loss/soft-labels-mean-weighted", mlp, loss="cross_entropy", soft=True, weighted=True, reduction="mean"),
    Row("loss/soft-labels-weighted", lambda: mlp(outputs=3), loss="cross_entropy", soft=True, weighted=True),
    Row("loss/cross-entropy-weights", mlp3, loss=weighing(nn.CrossEntropyLoss)),
    Row(
        "loss/cross-entropy-weights-smoothing-weighted",
        mlp3,
        loss=weighing(nn.CrossEntropyLoss, label_smoothing=0.2),
        weighted=True,
    ),
    Row("loss/soft-labels-weights", mlp3, loss=weighing(nn.CrossEntropyLoss), soft=True),
    Row(
        "loss/cross-entropy-ignored", mlp3, loss=nn.CrossEntropyLoss(ignore_index=1), weighted=True, shots=6, queries=6
    ),
    Row("loss/cross-entropy-sum-module", mlp3, loss=weighing(nn.CrossEntropyLoss, reduction="sum"), lr=0.03),
    Row("loss/cross-entropy-pixels", lambda: C(2, 3, 2), (2, 3, 4), loss="cross_entropy"),
    Row(
        "loss/cross-entropy-pixels-weights-weighted",
        pixels,
        (2, 3, 4),
        loss=weighing(nn.CrossEntropyLoss, ignore_index=2, label_smoothing=0.1),
        weighted=True,
    ),
    Row(
        "loss/cross-entropy-pixels-mean",
        pixels,
        (2, 3, 4),
        loss=weighing(nn.CrossEntropyLoss, ignore_index=0),
        weighted=True,
        reduction="mean",
    ),
    Row("loss/cross-entropy-pixels-sum", pixels, (2, 3, 4), loss=nn.CrossEntropyLoss(reduction="sum"), lr=0.01),
    Row("loss/soft-labels-pixels-weighted", pixels, (2, 3, 4), loss="cross_entropy", soft=True, weighted=True),
    Row("loss/cross-entropy-positions", lambda: L(5, 4), (3, 5), loss=nn.CrossEntropyLoss(ignore_index=2)),
    Row("loss/cross-entropy-conv1d", lambda: nn.Conv1d(2, 3, 3), (2, 6), loss=nn.CrossEntropyLoss(ignore_index=1)),
    Row("loss/cross-entropy-tokens", Tagger, (6, 4), loss=nn.CrossEntropyLoss(ignore_index=2), weighted=True),
    Row("loss/nll-pixels", pixels, (2, 3, 4), loss=weighing(nn.NLLLoss, ignore_index=1), weighted=True),
    Row("loss/nll", lambda: mlp(outputs=4), loss=nn.NLLLoss()),
    Row("loss/mse-module", mlp, loss=nn.MSELoss()),
    Row("loss/mse-weighted", mlp, weighted=True),
    Row("loss/mse-sequence-weighted", lambda: mlp(), (4, 3), weighted=True),
    Row("loss/mse-sum", mlp, reduction="sum", lr=0.03),
    Row("loss/mse-mean-weighted", mlp, weighted=True, reduction="mean"),
    Row("loss/bce", mlp, loss="bce_with_logits"),
    Row("loss/bce-module", mlp, loss=nn.BCEWithLogitsLoss()),
    Row("loss/bce-pos-weight", mlp, loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.5]))),
    Row("loss/bce-weighted", mlp, loss="bce_with_logits", weighted=True),
    Row("loss/huber", mlp, loss="huber", smooth=False),
    Row("loss/huber-0.4", mlp, loss=nn.HuberLoss(delta=0.4), smooth=False),
    Row("loss/huber-weighted", mlp, loss=nn.HuberLoss(delta=0.7), weighted=True, smooth=False),
    Row("loss/smooth-l1-0.4", mlp, loss=nn.SmoothL1Loss(beta=0.4), smooth=False),
    Row("loss/l1", mlp, loss="l1", smooth=False),
    Row("loss/l1-sum-weighted", mlp, loss=nn.L1Loss(reduction="sum"), weighted=True, smooth=False, lr=0.03),
    Row("loss/mse-sum-module-image", lambda: C(2, 3, 2), (2, 3, 4), loss=nn.MSELoss(reduction="sum"), lr=0.01),
    Row("loss/bce-of-probabilities", lambda: seq(mlp(outputs=3), nn.Sigmoid()), loss=nn.BCELoss(), soft=True),
    Row("loss/soft-margin", mlp, loss="soft_margin"),
    Row("loss/poisson-nll", mlp, loss="poisson_nll", weighted=True),
    Row(
        "loss/poisson-nll-of-rates",
        lambda: seq(mlp(), nn.Softplus()),
        loss=nn.PoissonNLLLoss(log_input=False, eps=0.1),
    ),
    Row("loss/kl-div", lambda: mlp(outputs=4), loss=nn.KLDivLoss(), soft=True),
    Row("loss/kl-div-batchmean", mlp, loss=nn.KLDivLoss(reduction="batchmean", log_target=True), weighted=True),
    Row("loss/dice", lambda: mlp(outputs=3), loss="dice", soft=True),
    Row("loss/dice-image-weighted", lambda: C(2, 2, 2), (2, 3, 4), loss="dice", soft=True, weighted=True),
    Row("loss/multi-margin", lambda: mlp(outputs=4), loss="multi_margin", smooth=False),
    Row("loss/multi-margin-2", lambda: mlp(outputs=4), loss=nn.MultiMarginLoss(p=2, margin=0.8), smooth=False),
    Row("loss/multi-margin-0.3", lambda: mlp(outputs=3), loss=nn.MultiMarginLoss(margin=0.3), smooth=False),
    Row("loss/multi-margin-weighted", lambda: mlp(outputs=3), loss="multi_margin", weighted=True, smooth=False),
    Row("loss/multi-margin-linear", lambda: L(3, 3), loss="multi_margin", smooth=False),
]
