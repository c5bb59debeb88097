"""Rows of recurrent layers."""

from __future__ import annotations

from torch import nn

from models_recurrent import Cells, Encoder, FinalState, Last, LastSteps, PackedOutputs, PackedState, PackedSum
from row import Row

RECURRENT = [
    Row("recurrent/rnn", lambda: Last(nn.RNN), (4, 2)),
    Row("recurrent/rnn-relu-no-bias", lambda: Last(nn.RNN, nonlinearity="relu", bias=False), (4, 2), smooth=False),
    Row("recurrent/gru", lambda: Last(nn.GRU), (4, 2)),
    Row("recurrent/gru-both-directions", lambda: Last(nn.GRU, bidirectional=True), (4, 2), steps=1),
    Row("recurrent/lstm", lambda: Last(nn.LSTM), (4, 2)),
    Row("recurrent/lstm-two-layers-both", lambda: Last(nn.LSTM, num_layers=2, bidirectional=True), (3, 2), steps=1),
    Row("recurrent/lstm-head-alone", lambda: Last(nn.LSTM), (4, 2), adapt_params="head.*", static=True, steps=3),
    Row("recurrent/final-state", FinalState, (3, 2)),
    Row("recurrent/encoder-decoder", Encoder, (3, 2), lr_form="per_element"),
    Row("recurrent/packed-lstm", PackedState, inputs=(((3, 2), 0), ((), 3)), stepwise=True),
    Row("recurrent/packed-both-directions", PackedOutputs, inputs=(((3, 2), 0), ((), 3)), steps=1),
    Row("recurrent/packed-head-alone", PackedState, inputs=(((3, 2), 0), ((), 3)), adapt_params="head.*", static=True),
    Row("recurrent/packed-sum", PackedSum, inputs=(((4,), 5), ((), 4)), loss="cross_entropy", smooth=False),
    Row("recurrent/last-steps", LastSteps, inputs=(((4,), 5), ((), 4)), lr_form="per_element"),
    Row("recurrent/cells", Cells, (3, 2), stepwise=True),
]
