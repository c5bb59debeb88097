"""Recurrent layers written out in plain operations, for devices whose fused ones have no second derivative (cuDNN).

Arguments are those of ``torch.lstm``, ``torch.gru``, ``torch.rnn_tanh`` and ``torch.rnn_relu`` for padded sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: (what the input gives to the gates, what the state gives, the state's tensors) -> the state's tensors
Cell = Callable[[Tensor, Tensor, Sequence[Tensor]], Sequence[Tensor]]


def _lstm_cell(gates: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
    i, f, g, o = (gates + hidden).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_cell(gates: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
    (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), hidden.chunk(3, -1)
    z = (z + hz).sigmoid()
    return ((1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * state[0],)


def _tanh_cell(gates: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
    return ((gates + hidden).tanh(),)


def _relu_cell(gates: Tensor, hidden: Tensor, state: Sequence[Tensor]) -> Sequence[Tensor]:
    return ((gates + hidden).relu(),)


def _run(
    cell: Cell,
    input: Tensor,
    state: Sequence[Tensor],
    parameters: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and the last state's tensors [layers * directions, N, *]."""
    x = input.transpose(0, 1) if batch_first else input
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    last: list[Sequence[Tensor]] = []
    for layer in range(layers):
        made = []
        for way in range(directions):
            number = layer * directions + way
            own = parameters[number * each : (number + 1) * each]
            start = [t[number] for t in state]
            outputs, end = _layer(cell, x.flip(0) if way else x, start, own, has_biases)
            made.append(outputs.flip(0) if way else outputs)
            last.append(end)
        x = torch.cat(made, -1)
        if dropout and train and layer < layers - 1:
            x = torch.dropout(x, dropout, True)
    return x.transpose(0, 1) if batch_first else x, [torch.stack(t) for t in zip(*last, strict=True)]


def _layer(
    cell: Cell, x: Tensor, state: Sequence[Tensor], own: Sequence[Tensor], has_biases: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    bias_ih, bias_hh = own[2:4] if has_biases else (None, None)
    projection = own[-1] if len(own) % 2 else None  # of an LSTM with proj_size
    outputs = []
    for gates in F.linear(x, own[0], bias_ih).unbind(0):
        state = cell(gates, F.linear(state[0], own[1], bias_hh), state)
        if projection is not None:
            state = (F.linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs), state


def lstm(input: Tensor, hx: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs, (h, c) = _run(_lstm_cell, input, hx, *settings)
    return outputs, h, c


def _of_one(cell: Cell) -> Callable[..., tuple[Tensor, Tensor]]:
    def layer(input: Tensor, hx: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        outputs, (h,) = _run(cell, input, (hx,), *settings)
        return outputs, h

    return layer


gru, rnn_tanh, rnn_relu = _of_one(_gru_cell), _of_one(_tanh_cell), _of_one(_relu_cell)
