"""Small models that multiply computed values, and attend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L = nn.Linear


class Weights(nn.Module):
    """Parameters as factors on either side, as they are and transposed, of rows and of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(3, 5) / 2), nn.Parameter(torch.randn(5, 5) / 2)
        self.mix, self.vector = nn.Parameter(torch.randn(4, 4) / 2), nn.Parameter(torch.randn(5) / 2)
        self.head = L(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.first)
        h = self.mix @ torch.tanh(h @ self.second.t())
        h = h @ (self.second @ self.first.t() @ self.first)
        return self.head(torch.cat([h @ self.vector, self.mix[1] @ h], -1))


class Products(nn.Module):
    """Values of examples on both sides: batches, what broadcasts, and a value with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = L(3, 6), L(12, 2)
        self.each = nn.Parameter(torch.randn(3, 2, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        heads = h.view(-1, 4, 3, 2).transpose(1, 2)  # [N, 3, 4, 2]
        scores = torch.matmul(heads, heads.transpose(-2, -1))
        by_parameter = torch.tanh(heads) @ self.each  # its own for each head
        from_left = self.each.transpose(-2, -1) @ heads.transpose(-2, -1)
        one_for_all = scores @ h.unsqueeze(1)[..., :2]
        gram = torch.bmm(h.transpose(1, 2), h)
        mixed = (scores * by_parameter + from_left).sum(1).mean(1)
        return self.head(torch.cat([mixed, one_for_all.sum((1, 2)), gram.mean(1)], 1))


class Autoencoder(nn.Module):
    """The decoder's weight is the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = L(5, 3), nn.Parameter(torch.randn(5) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


class LowRank(nn.Module):
    """A weight that is its own plus a product of two thin ones, as LoRA has it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = L(4, 5), L(5, 2)
        self.down, self.up = nn.Parameter(torch.randn(2, 4) / 2), nn.Parameter(torch.randn(5, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, self.frozen.weight + self.up @ self.down, self.frozen.bias)))


class Equations(nn.Module):
    """Products by einsum, and a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bilinear, self.head = L(3, 4), nn.Bilinear(4, 3, 5), L(5, 2)
        self.mix = nn.Parameter(torch.randn(2, 4, 6) / 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        several = torch.einsum("nlc,hcd->nhld", h, self.mix)
        scores = torch.tanh(torch.einsum("nhid,nhjd->nihj", several, several))
        joined = torch.einsum("nihj,njc->nihc", scores, h).mean(2)
        return self.head(self.bilinear(joined, x).mean(1))


class Attends(nn.Module):
    """Attention of heads split by hand: causal, or with a mask that is added."""

    def __init__(self, causal: bool = False, masked: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.projections, self.head = L(3, 12), L(4, 2)
        self.causal, self.scale = causal, scale
        mask = torch.zeros(4, 4)
        mask[0, 2:], mask[3, 0], mask[2] = -torch.inf, -torch.inf, torch.tensor([0.5, -0.3, 0.1, -torch.inf])
        self.register_buffer("mask", mask if masked else None)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (part.view(n, length, 2, 2).transpose(1, 2) for part in self.projections(x).chunk(3, -1))
        settings = dict(attn_mask=self.mask, is_causal=self.causal, scale=self.scale)
        y = F.scaled_dot_product_attention(q, k, v, **settings)
        return self.head(y.transpose(1, 2).flatten(2)).mean(1)


class Weighed(nn.Module):
    """Attention of one sequence to another, and the weights."""

    def __init__(self, **settings: bool) -> None:
        super().__init__()
        self.keys, self.queries = L(3, 4), nn.Parameter(torch.randn(2, 4) / 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **settings)
        self.head = L(8 + 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(x)
        found, weights = self.attention(self.queries.expand(len(x), -1, -1), keys, keys)
        return self.head(torch.cat([found.flatten(1), weights.flatten(1)], 1))


class Transformer(nn.Module):
    """A regressor on sequences."""

    def __init__(self, layers: int = 1, first: bool = False, batch_first: bool = True, mask: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            4, 2, 6, dropout=0.0, activation="gelu", batch_first=batch_first, norm_first=first
        )
        self.stem, self.head, self.batch_first = L(2, 4), L(4, 2), batch_first
        self.position = nn.Parameter(torch.randn(3, 4) / 4)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(4), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3) if mask else None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x) + self.position
        if not self.batch_first:
            return self.head(self.encoder(h.transpose(0, 1), mask=self.mask).mean(0))
        return self.head(self.encoder(h, mask=self.mask).mean(1))


class Padded(nn.Module):
    """Tokens of which some are padding, which attention and the sum leave out: by hand, by a function, by a layer or
    by an encoder. Where all are padding, torch's functions give zeros."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.head, self.kind = nn.Embedding(4, 4), L(4, 2), kind
        if kind == "encoder":
            layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        elif kind == "layer":
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        else:
            self.projection = L(4, 12)
        self.register_buffer("future", torch.ones(3, 3, dtype=torch.bool).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        h, padding = self.embed(ids), ids == 0
        if self.kind == "encoder":
            h = self.encoder(h, src_key_padding_mask=padding)
        elif self.kind == "layer":
            settings = dict(key_padding_mask=padding, attn_mask=self.future, need_weights=False)
            h = h + self.attention(h, h, h, **settings)[0]
        else:
            q, k, v = self.projection(h).chunk(3, -1)
            if self.kind == "function":
                h = F.scaled_dot_product_attention(q, k, v, attn_mask=(~padding).unsqueeze(1))
            else:
                scores = (q @ k.transpose(1, 2)).masked_fill(padding.unsqueeze(1), -1e9)
                h = torch.softmax(scores, -1) @ v
        keep = torch.where((ids > 0).unsqueeze(-1), torch.tanh(h), 0.0)
        return self.head(keep.sum(1))


class Translator(nn.Module):
    """Decoder layers that look at a sequence of another length, parts of which are masked."""

    def __init__(self, first: bool, batch_first: bool) -> None:
        super().__init__()
        settings = dict(dropout=0.0, activation="gelu", batch_first=batch_first, norm_first=first)
        self.target, self.source, self.head = L(3, 4), L(2, 4), L(4, 2)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 5, **settings), 1, nn.LayerNorm(4))
        self.batch_first = batch_first
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))

    def forward(self, target: Tensor, source: Tensor, padding: Tensor) -> Tensor:
        x, memory = self.target(target), self.source(source)
        if not self.batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        x = self.decoder(x, memory, tgt_mask=self.mask, memory_key_padding_mask=padding)
        return self.head(x.mean(int(self.batch_first)))
