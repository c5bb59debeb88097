"""Rows of models that read integers."""

from __future__ import annotations

from torch import nn

from models import seq
from models_of_inputs import (
    Bilinear,
    Columns,
    ImageAndVector,
    Masked,
    MasksByHand,
    TextCNN,
    TiedOutput,
    Tokens,
    Twice,
    TwoTowers,
)
from row import L, Row

#: The row of a padding has no gradient, which differences do not know: such rows are not smooth.
INPUTS = [
    Row("inputs/text-cnn", TextCNN, (5,), vocabulary=7, loss="cross_entropy", smooth=False),
    Row("inputs/bag-of-words", lambda: seq(nn.EmbeddingBag(8, 3), nn.Tanh(), L(3, 2)), (6,), vocabulary=8, steps=3),
    Row(
        "inputs/bag-of-words-sum",
        lambda: nn.EmbeddingBag(8, 3, mode="sum"),
        (6,),
        vocabulary=8,
        loss="cross_entropy",
        lr_form="per_element",
    ),
    Row("inputs/tokens", Tokens, (4,), vocabulary=6, stepwise=True, weighted=True, smooth=False),
    Row(
        "inputs/tokens-frozen",
        lambda: Tokens(None),
        (4,),
        vocabulary=6,
        adapt_params="h*",
        static=True,
        lr_form="per_tensor",
    ),
    Row("inputs/table-alone-adapted", lambda: Tokens(None), (4,), vocabulary=6, adapt_params="embed.*", steps=3),
    Row("inputs/one-index", lambda: seq(nn.Embedding(5, 1), nn.Tanh(), L(1, 2)), (), vocabulary=5, shots=7),
    Row("inputs/columns", Columns, (3,), vocabulary=5, first_order=True),
    Row("inputs/table-read-twice", Twice, (2,), vocabulary=5, shots=5, smooth=False),
    Row("inputs/wide-rows", lambda: seq(nn.Flatten(), nn.Embedding(5, 18), nn.Flatten()), (2, 2), vocabulary=5),
    Row(
        "inputs/tied-output", lambda: TiedOutput(False), (3,), vocabulary=6, loss="cross_entropy", smooth=False, steps=3
    ),
    Row("inputs/tied-rows", lambda: TiedOutput(True), (3,), vocabulary=6, adapt_params="embed.*", smooth=False),
    Row("inputs/two-towers", TwoTowers, loss="bce_with_logits", inputs=(((), 6), ((), 5)), shots=5),
    Row("inputs/masked-tokens", Masked, inputs=(((4,), 6), ((4,), 2)), stepwise=True, weighted=True),
    Row("inputs/masks-by-hand", MasksByHand, inputs=(((4,), 6), ((), 4)), smooth=False),
    Row("inputs/image-and-vector", ImageAndVector, inputs=(((2, 3, 3), 0), ((3,), 0)), lr_form="per_element"),
    Row(
        "inputs/image-and-vector-head",
        ImageAndVector,
        inputs=(((2, 3, 3), 0), ((3,), 0)),
        adapt_params="head.*",
        static=True,
    ),
    Row("inputs/on-torch", Bilinear, inputs=(((), 5), ((2,), 0)), native=False),
]
