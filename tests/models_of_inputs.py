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
        h = self.embed(ids.reshape(-1)).view(*ids.shape, 4).transpose(1, 2).unsqueeze(2)
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


class TiedOutput(nn.Module):
    """The next token's logits by the table of embeddings, as a linear layer with a bias or as a function of rows."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(6, 4, padding_idx=1), L(4, 4), L(4, 6)
        self.head.weight = self.embed.weight
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(self.embed(ids)))
        if self.rows:
            return F.linear(h.reshape(-1, 4), self.embed.weight).view(len(ids), -1, 6).mean(1)
        return self.head(h).mean(1)


class TwoTowers(nn.Module):
    """A recommender: the product of what is known of a user and of an item."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(6, 4), nn.Embedding(5, 3)
        self.user, self.item = L(4, 3), L(3, 3)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (torch.tanh(self.user(self.users(user))) * self.item(self.items(item))).sum(-1)


class Masked(nn.Module):
    """The mean of the embeddings that a mask leaves, and of a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(6, 4), L(4, 4), L(4, 2)
        self.register_buffer("one", torch.ones(1))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(self.embed(ids)))
        return self.head((h * mask.unsqueeze(-1)).sum(1) / (mask.to(h.dtype).sum(1, keepdim=True) + self.one))


class MasksByHand(nn.Module):
    """Positions, the greatest step that is no padding, and the mean of the first steps of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions, self.head = nn.Embedding(6, 4), nn.Embedding(5, 4), L(8, 2)

    def forward(self, ids: Tensor, more: Tensor) -> Tensor:
        steps = torch.arange(ids.shape[1], device=ids.device)
        h = torch.tanh(self.embed(ids) + self.positions(steps))
        first = (steps[None, :] <= more[:, None]).to(h.dtype).unsqueeze(-1)
        mean = (h * first).sum(1) / first.sum(1)
        greatest = h.masked_fill((ids == 0).unsqueeze(-1), -2.0).max(1).values
        few = (ids != 0).sum(1) < 3
        return self.head(torch.cat([mean, torch.where(few.unsqueeze(1), greatest, mean)], 1))


class ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.vector, self.head = C(2, 3, 2), L(3, 4), L(16, 2)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        h = torch.tanh(self.conv(image)).flatten(1)
        return self.head(torch.cat([h, torch.tanh(self.vector(vector))], 1))


class Bilinear(nn.Module):
    """Without native form."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.both = nn.Embedding(5, 3), nn.Bilinear(3, 2, 2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.both(self.embed(ids), x)).cumsum(1)
