"""Rows of what moves, joins, cuts and sums tensors, and of parameters as values."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrizations as P

from models import seq
from models_of_parts import (
    Context,
    Dense,
    Ensemble,
    Film,
    FromVector,
    Gated,
    Heads,
    Mixed,
    Mixture,
    Parts,
    Points,
    Quotients,
    Tokens,
    directed,
)
from row import C, L, Row

PARTS = [
    Row("parts/tokens", Tokens, (4, 3)),
    Row("parts/heads", Heads, (4, 3)),
    Row("parts/heads-input-4-axes", lambda: seq(L(2, 3), nn.Tanh(), nn.Flatten(), L(36, 2)), (2, 3, 2, 2)),
    Row("parts/context", Context),
    Row("parts/context-alone-adapted", Context, adapt_params="context", steps=3),
    Row("parts/dense-block", Dense, (2, 4, 3)),
    Row("parts/parts", Parts),
    Row("parts/images-from-vectors", FromVector, (24,)),
    Row("parts/pixel-shuffle", lambda: seq(C(2, 4, 3), nn.Tanh(), nn.PixelShuffle(2), C(1, 1, 3)), (2, 4, 5)),
    Row("parts/scalar-output", Ensemble),
    Row("parts/scalar-output-rates", Ensemble, lr_form="per_element", first_order=True),
    Row(
        "parts/unflatten",
        lambda: seq(L(3, 8), nn.Unflatten(1, (2, 2, 2)), nn.Tanh(), C(2, 3, 2), nn.Flatten(), L(3, 2)),
    ),
]

PARTS += [
    Row(
        f"parts/upsample-{mode}-{size}",
        lambda mode=mode, size=size: seq(
            C(2, 2, 2), nn.Tanh(), nn.Upsample(size=size, mode=mode), C(2, 1, 3), nn.Flatten()
        ),
        (2, 4, 3),
    )
    for mode, size in (("nearest", (6, 5)), ("bilinear", (5, 3)))
]
PARTS += [
    Row(
        "parts/upsample-aligned",
        lambda: seq(C(2, 2, 2), nn.UpsamplingBilinear2d(scale_factor=2), nn.Tanh(), nn.Flatten(), L(96, 1)),
        (2, 4, 5),
    ),
    Row("parts/points", Points, (5, 3), smooth=False),
]
PARTS += [
    Row("parametrized/linear", lambda: seq(directed(L(3, 4)), nn.Tanh(), directed(L(4, 2)))),
    Row(
        "parametrized/conv1d",
        lambda: seq(directed(nn.Conv1d(2, 3, 3, padding=2, dilation=2)), nn.Tanh(), nn.Flatten(), L(15, 2)),
        (2, 5),
        lr_form="per_element",
    ),
    Row(
        "parametrized/conv2d",
        lambda: seq(
            directed(C(2, 2, (2, 3), padding="same")), nn.Tanh(),
            directed(C(2, 3, 2, stride=(2, 1), padding=(1, 0), bias=False)), nn.Flatten(),
        ),
        (2, 3, 4),
    ),
    Row(
        "parametrized/spectral-norm-eval",
        lambda: seq(P.spectral_norm(L(3, 4)), nn.Tanh(), P.spectral_norm(L(4, 2))),
        training=False,
    ),
]  # fmt: skip

PAIRS = [
    Row("pairs/squeeze-and-excitation", Gated, (2, 4, 3)),
    Row("pairs/film", Film),
    Row("pairs/film-context-alone-adapted", Film, adapt_params="context", steps=3, static=True),
    Row("pairs/film-rates", Film, lr_form="per_element", tasks=3),
    Row("pairs/quotients", Quotients, (5, 3), smooth=False, lr=0.01),
    Row("pairs/quotients-stepwise", Quotients, (5, 3), smooth=False, lr=0.01, stepwise=True),
    Row("pairs/mixed", Mixed, (3, 3)),
    Row("pairs/mixture", Mixture, (2, 4, 3), adapt_params="[!w]*"),
]
