"""Rows of products of computed values, and of attention."""

from __future__ import annotations

from models_attention import (
    Attends,
    Autoencoder,
    Equations,
    LowRank,
    Padded,
    Products,
    Transformer,
    Translator,
    Weighed,
    Weights,
)
from row import Row

ATTENTION = [
    Row("matmul/weights", Weights, (4, 3), lr=0.03),
    Row("matmul/weights-weighted", Weights, (4, 3), weighted=True, lr_form="per_element", lr=0.02),
    Row("matmul/products", Products, (4, 3), lr=0.03),
    Row("matmul/tied-autoencoder", Autoencoder, (5,)),
    Row("matmul/low-rank-adapted", LowRank, (4,), adapt_params=("down", "up"), steps=3),
    Row("matmul/equations", Equations, (4, 3), lr=0.05),
    Row("attention/heads", Attends, (4, 3)),
    Row("attention/causal", lambda: Attends(causal=True, scale=0.4), (4, 3)),
    Row("attention/masked", lambda: Attends(masked=True), (4, 3), stepwise=True),
    Row("attention/multihead-across", Weighed, (4, 3)),
    Row("attention/multihead-no-bias", lambda: Weighed(bias=False), (4, 3), lr_form="per_element"),
    Row("attention/transformer", Transformer, (3, 2)),
    Row("attention/transformer-norm-first", lambda: Transformer(2, first=True, mask=True), (3, 2), steps=1),
    Row("attention/transformer-sequence-first", lambda: Transformer(batch_first=False), (3, 2), training=False),
    Row("attention/padded-encoder", lambda: Padded("encoder"), (3,), vocabulary=4, smooth=False, steps=1),
    Row("attention/padded-layer", lambda: Padded("layer"), (3,), vocabulary=4),
    Row("attention/padded-function", lambda: Padded("function"), (3,), vocabulary=3, shots=7),
    Row("attention/padded-by-hand", lambda: Padded("hand"), (3,), vocabulary=4),
    Row("attention/decoder", lambda: Translator(False, True), inputs=(((3, 3), 0), ((4, 2), 0), ((4,), 2)), steps=1),
    Row(
        "attention/decoder-sequence-first",
        lambda: Translator(True, False),
        inputs=(((3, 3), 0), ((2, 2), 0), ((2,), 2)),
        steps=1,
    ),
]
