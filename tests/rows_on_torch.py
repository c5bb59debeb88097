"""Rows of the one table (rows.py) that torch runs, in part or altogether: models with static parts, and those without a
native form."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

import models
from models import Cumulative, Recurrent, Reused, Sign, Tied, Transformer, Twice, conv4, frozen, mlp, seq
from row import L, Row

#: What the inner loop does not move stands before what it moves. Where that has no native form, torch runs it, and the
#: inner loop is native all the same.
STATIC = [
    Row("option/static-cumulative", lambda: seq(L(3, 5), Cumulative(5), nn.Tanh(), L(5, 2)), adapt_params="3.*"),
    Row(
        "option/static-cumulative-two-layers",
        lambda: seq(L(3, 5), Cumulative(5), nn.Tanh(), L(5, 4), nn.Tanh(), L(4, 2)),
        adapt_params=lambda name: name[0] in "35",
        lr_form="per_element",
        steps=3,
        weighted=True,
    ),
    Row(
        "option/static-cumulative-constant",
        lambda: frozen(seq(L(3, 5), Cumulative(5), nn.Tanh(), L(5, 3)), "0.", "1."),
        loss="cross_entropy",
        steps=3,
    ),
    Row(
        "option/static-cumulative-stepwise",
        lambda: seq(L(3, 5), Cumulative(5), L(5, 2)),
        adapt_params="2.*",
        stepwise=True,
    ),
    Row(
        "option/static-first-order",
        lambda: seq(L(3, 5), Cumulative(5), L(5, 2)),
        adapt_params="2.*",
        first_order=True,
    ),
    Row("option/static-lstm", Recurrent, (4, 3), "cross_entropy", adapt_params="head.*"),
    Row(
        "option/static-batch-norm-3d",
        lambda: seq(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten(), L(16, 2)),
        (1, 3, 3, 3),
        adapt_params="4.*",
    ),
    Row(
        "option/static-body-then-norm",
        lambda: seq(L(3, 5), Cumulative(5), L(5, 4), nn.BatchNorm1d(4), nn.Tanh(), L(4, 2)),
        adapt_params=lambda name: name[0] in "35",
        shots=4,
        queries=3,
    ),
]
STATIC = [replace(row, static=True, by_torch=True) for row in STATIC]
STATIC += [  # native in both halves
    Row("option/static-transformer", Transformer, (3, 4), adapt_params="head.*", steps=3, static=True),
    Row("option/static-conv4", conv4, (1, 16, 16), "cross_entropy", adapt_params="17.*", smooth=False, static=True),
    Row("option/static-tied", Tied, (4,), adapt_params="second.bias", static=True),
    Row("option/static-called-twice", Twice, adapt_params="head.*", static=True),
    Row("option/static-residual", Reused, adapt_params="right.*", static=True),
]

FALLBACK = [
    Row("torch/cumulative", lambda: seq(L(3, 5), Cumulative(5), nn.Tanh(), L(5, 2)), native=False),
    Row(
        "torch/batch-norm-3d", lambda: seq(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh()), (1, 3, 3, 3), native=False
    ),
    Row("torch/by-hand", Sign, lr=0.01, native=False),
    Row("torch/own-loss", mlp, loss=models.cumulative_loss, native=False),
]
