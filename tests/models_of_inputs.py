"""Small models that read integers, or several tensors, as users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import seq

L, C = nn.Linear, nn.Conv2d


class TextCNN(nn.Module):
    """Kim's: convolutions of several widths over embeddings, and the greatest answer of each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.convs = nn.ModuleList(C(4, 3, (1, width)) for width in (2, 3))
        self.head = L(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids).transpose(1, 2).unsqueeze(2)
        answers = [torch.tanh(conv(h)) for conv in self.convs]
        pooled = [F.max_pool2d(a, (1, a.shape[-1])).flatten(1) for a in answers]
        return self.head(torch.cat(pooled, 1))


class Tokens(nn.Module):
    """Embeddings with learnt positions, and their mean; the first row is that of the padding."""

    def __init__(self, padding: int | None = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 5, padding_idx=padding)
        self.positions = nn.Parameter(torch.linspace(-1, 1, 20).reshape(4, 5))
        self.hidden, self.head = L(5, 5), L(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.positions
        return self.head(torch.tanh(self.hidden(h)).mean(1))


class Columns(nn.Module):
    """Two columns of categories, each with a table of its own, the second also as one_hot; one of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(5, 3), nn.Embedding(9, 2)
        self.body = seq(L(3 + 2 + 5 + 1, 4), nn.Tanh(), L(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        first, hot = self.first(x[:, 0]), F.one_hot(x[:, 1], 5).to(self.first.weight.dtype)
        return self.body(torch.cat([first * x[:, 2:], self.second(x[:, 1]), hot, x[:, 2:].to(hot.dtype)], 1))


class Twice(nn.Module):
    """One table read by two columns, and as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, 15).reshape(5, 3))
        self.head = L(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.embedding(x[:, 0], self.table, padding_idx=-1), F.embedding(x[:, 1], self.table)
        centre = self.table.mean(0, keepdim=True).expand(len(x), 3)
        return self.head(torch.tanh(torch.cat([a, b, centre], 1)))
