"""Layers that are random in training mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from metafast.model.builder import Builder, Place
from metafast.model.layers.table import lowers, lowers_module


@lowers(torch.dropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
def dropout(b: Builder, input: Place, p: float = 0.5, training: bool = True, inplace: bool = False) -> Place:
    b.read(input)
    if training and p != 0:
        b.refuse(f"is random in training mode (p={p}); after eval() it is native")
    return input


@lowers_module(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def _dropout(b: Builder, m: nn.Dropout, x: Place) -> Place:
    return dropout(b, x, m.p, m.training)
