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


TRACED = [Row("loss/two-heads", TwoHeads, loss=both, targets=(((), 3), ((2, 2), 0)))]
