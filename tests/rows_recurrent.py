"""Rows of recurrent layers."""

from __future__ import annotations

from torch import nn

from models_recurrent import Cells, Encoder, FinalState, Last
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
    Row("recurrent/cells", Cells, (3, 2), stepwise=True),
]
