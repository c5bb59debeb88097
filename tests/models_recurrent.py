"""Small models that go through a sequence step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


class PackedState(nn.Module):
    """The last states of sequences of several lengths, which are given without 1."""

    def __init__(self, kind: Any = nn.LSTM, **settings: Any) -> None:
        super().__init__()
        self.body, self.head = kind(2, 3, batch_first=True, **settings), L(3, 2)

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, (more + 1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.body(packed)
        h, c = last if isinstance(last, tuple) else (last, last)
        return self.head(h[-1] + c[0])


class PackedOutputs(nn.Module):
    """All that two layers in both directions give, behind the end too; they begin with a state that depends on x."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = L(2, 12), nn.GRU(2, 3, num_layers=2, bidirectional=True)
        self.head = L(6, 2)

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        start = torch.tanh(self.first(x[:, 0])).reshape(-1, 4, 3).transpose(0, 1).contiguous()
        steps = x.transpose(0, 1)
        packed = nn.utils.rnn.pack_padded_sequence(steps, more.cpu() + 1, enforce_sorted=False)
        output, h = self.body(packed, start)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output, padding_value=0.5, total_length=x.shape[1])
        return self.head(torch.tanh(padded.transpose(0, 1))) + h.mean((0, 2))[:, None, None]


class PackedSum(nn.Module):
    """The mean of a sequence's steps: of the outputs as long as the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(5, 2, padding_idx=0), nn.RNN(2, 3, batch_first=True), L(6, 2)

    def forward(self, ids: Tensor, more: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), more.cpu() + 1, True, enforce_sorted=False)
        output, lengths = pad_packed_sequence(self.body(packed)[0], batch_first=True)
        last = output[torch.arange(len(ids)), lengths - 1]
        return self.head(torch.cat([output.sum(1) / lengths.unsqueeze(-1), last], 1))


class LastSteps(nn.Module):
    """The step at which each sequence ends, by indexing, by gather and by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(5, 2), nn.GRU(2, 3, batch_first=True), L(9, 2)

    def forward(self, ids: Tensor, more: Tensor) -> Tensor:
        h, _ = self.body(self.embed(ids))
        lengths = more.long() + 1
        index = more.view(-1, 1, 1).expand(-1, 1, h.shape[2])
        turned = h.transpose(0, 1)[lengths - 2, torch.arange(h.size(0), device=h.device)]
        last = h[torch.arange(h.size(0)), lengths - 1]
        return self.head(torch.cat([last, h.gather(1, index).squeeze(1), turned], 1))
