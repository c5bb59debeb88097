"""Small models that go through a sequence step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

L = nn.Linear


class Last(nn.Module):
    """A linear layer of the last output."""

    def __init__(self, kind: Any, bidirectional: bool = False, **settings: Any) -> None:
        super().__init__()
        self.body = kind(2, 3, batch_first=True, bidirectional=bidirectional, **settings)
        self.head = L(3 * (1 + bidirectional), 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.body(x)
        return self.head(output[:, -1])


class FinalState(nn.Module):
    """A linear layer of the last state, of the sequence as torch has it by default: examples second."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(2, 3), L(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, (h, c) = self.body(x.transpose(0, 1))
        return self.head(torch.cat([h.squeeze(0), c[-1]], dim=1)) + output.permute(1, 0, 2).mean((1, 2)).unsqueeze(-1)


class Encoder(nn.Module):
    """Two layers in both directions; the decoder begins with the encoder's state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(2, 3, batch_first=True)
        self.decoder = nn.GRU(2, 3, batch_first=True)
        self.head = L(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.encoder(x)
        output, _ = self.decoder(x.flip(1), h)
        return self.head(output)


class Cells(nn.Module):
    """Cells in a loop of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.rnn, self.head = nn.GRUCell(2, 3), nn.LSTMCell(3, 2), nn.RNNCell(2, 2), L(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, state, last = None, None, None
        for t in range(x.shape[1]):
            h = self.gru(x[:, t], h)
            state = self.lstm(h, state)
            last = self.rnn(state[0], last)
        return self.head(last)
