"""Whole models of what is no image, as papers and repositories have them: fields, sets, text, processes, policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import seq

L = nn.Linear


class Sine(nn.Module):
    """A layer of SIREN (Sitzmann et al. 2020), whose frequency and first weights are the paper's."""

    def __init__(self, inputs: int, outputs: int, first: bool, w0: float = 30.0) -> None:
        super().__init__()
        self.linear, self.w0 = L(inputs, outputs), w0
        with torch.no_grad():
            bound = 1 / inputs if first else math.sqrt(6 / inputs) / w0
            self.linear.weight.uniform_(-bound, bound)

    def forward(self, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return torch.sin(self.w0 * (self.linear(x) + shift))


class Siren(nn.Module):
    def __init__(self, width: int, hidden: int, inputs: int = 2, outputs: int = 3) -> None:
        super().__init__()
        layers = [Sine(inputs, width, True), *(Sine(width, width, False) for _ in range(hidden))]
        self.net = seq(*layers, L(width, outputs))

    def forward(self, coordinates: Tensor) -> Tensor:
        return self.net(coordinates)  # type: ignore[no-any-return]


class ModulatedSiren(nn.Module):
    """Functa (Dupont et al. 2022): a latent vector, which alone is adapted, shifts every layer by a linear map."""

    def __init__(self, width: int, hidden: int, latent: int, inputs: int = 2, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Sine(inputs, width, True), *(Sine(width, width, False) for _ in range(hidden))])
        self.latent = nn.Parameter(torch.zeros(latent))
        self.modulation, self.last = L(latent, width * (1 + hidden)), L(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        shifts = self.modulation(self.latent).chunk(len(self.layers), dim=-1)
        for layer, shift in zip(self.layers, shifts, strict=True):
            x = layer(x, shift)
        return self.last(x)  # type: ignore[no-any-return]


class DeepSets(nn.Module):
    """Zaheer et al. 2017: layers that any order of a set's elements passes through, and a sum."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.gamma, self.lambda_ = nn.ModuleList(), nn.ModuleList()
        for i in (inputs, width):
            self.gamma.append(L(i, width))
            self.lambda_.append(L(i, width, bias=False))
        self.rho = seq(L(width, width), nn.ReLU(), L(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        for gamma, lambda_ in zip(self.gamma, self.lambda_, strict=True):
            x = torch.tanh(gamma(x) - lambda_(x.max(dim=1, keepdim=True)[0]))
        return self.rho(x.sum(dim=1))  # type: ignore[no-any-return]


class NeuralProcess(nn.Module):
    """Conditional (Garnelo et al. 2018): the mean of what an encoder says of context points, decoded at others; a mean
    and a deviation of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = seq(L(2, width), nn.ReLU(), L(width, width))
        self.decoder = seq(L(width + 1, width), nn.ReLU(), L(width, 2))

    def forward(self, x_context: Tensor, y_context: Tensor, x_target: Tensor) -> Tensor:
        r = self.encoder(torch.cat([x_context, y_context], dim=-1)).mean(dim=1, keepdim=True)
        r = r.repeat(1, x_target.size(1), 1)
        mean, raw = self.decoder(torch.cat([r, x_target], dim=-1)).split(1, dim=-1)
        return torch.cat([mean, 0.1 + 0.9 * F.softplus(raw)], dim=-1)


def gaussian_nll(output: Tensor, target: Tensor) -> Tensor:
    """Of a mean and a deviation, without the constant; the targets are in the first column."""
    mean, sigma = output.chunk(2, dim=-1)
    return (torch.log(sigma) + 0.5 * ((target[..., :1] - mean) / sigma) ** 2).mean()


class TransformerClassifier(nn.Module):
    """Tokens and their positions, pre-norm blocks, a mean; or a class for each token, some of which are padding."""

    def __init__(self, words: int, length: int, width: int, heads: int, wide: int, blocks: int, classes: int) -> None:
        super().__init__()
        settings: Any = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        block = nn.TransformerEncoderLayer(width, heads, wide, **settings)
        self.embed, self.pos_embed = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(1, length, width))
        self.encoder = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = L(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids) + self.pos_embed).mean(dim=1))  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """A class for each token, with a mask of those that are no padding, which attention and a mean over tokens heed."""

    def __init__(self, words: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(words, width, padding_idx=0), L(width, 3 * width)
        self.mix, self.head = L(2 * width, width), L(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(ids)
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        keep = mask.to(h.dtype)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + (1 - keep).unsqueeze(1) * -1e4
        h = h + torch.softmax(scores, dim=-1) @ v
        mean = (h * keep.unsqueeze(-1)).sum(1, keepdim=True) / (keep.sum(1)[:, None, None] + 1e-3)
        h = torch.tanh(self.mix(torch.cat([h, mean.expand_as(h)], dim=-1)))
        return self.head(h).transpose(1, 2)  # type: ignore[no-any-return]


class RecurrentClassifier(nn.Module):
    """Of tokens, by the last state of each direction."""

    def __init__(
        self, kind: type[nn.RNNBase], words: int, width: int, hidden: int, classes: int, layers: int = 1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.rnn: Any = kind(width, hidden, layers, batch_first=True, bidirectional=True)
        self.fc = L(2 * hidden, classes)

    def forward(self, text: Tensor) -> Tensor:
        _, state = self.rnn(self.embedding(text))
        hidden = state[0] if isinstance(self.rnn, nn.LSTM) else state
        return self.fc(torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1))  # type: ignore[no-any-return]


class TextCNN(nn.Module):
    """Kim 2014, as it is mostly published: an image of one channel, as wide as the embedding."""

    def __init__(self, words: int, width: int, filters: int, kernels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.convs = nn.ModuleList([nn.Conv2d(1, filters, (k, width)) for k in kernels])
        self.dropout, self.fc = nn.Dropout(0.5), L(len(kernels) * filters, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)  # (N, W, D)
        x = x.unsqueeze(1)  # (N, 1, W, D)
        answers = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        pooled = [F.max_pool1d(i, i.size(2)).squeeze(2) for i in answers]
        return self.fc(self.dropout(torch.cat(pooled, 1)))  # type: ignore[no-any-return]


class Policy(nn.Module):
    """Gaussian: the mean of an action, and a learnt logarithm of its deviation behind it."""

    def __init__(self, observation: int, hidden: int, actions: int) -> None:
        super().__init__()
        self.mean = seq(L(observation, hidden), nn.Tanh(), L(hidden, hidden), nn.Tanh(), L(hidden, actions))
        self.log_std = nn.Parameter(torch.full((actions,), -0.2))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)


def log_probability(output: Tensor, action: Tensor) -> Tensor:
    mean, log_std = output.chunk(2, dim=-1)
    z = (action - mean) * torch.exp(-log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


#: The targets of both losses are rows of two actions, an advantage, and what the old log-probability was.
def policy_gradient(output: Tensor, target: Tensor) -> Tensor:
    return -(log_probability(output, target[:, :2]) * target[:, 2]).mean()


def clipped_surrogate(output: Tensor, target: Tensor) -> Tensor:
    """PPO's, with a bonus for entropy."""
    ratio = torch.exp(0.1 * (log_probability(output, target[:, :2]) - target[:, 3]))
    surrogate = torch.min(ratio * target[:, 2], torch.clamp(ratio, 1 - 0.2, 1 + 0.2) * target[:, 2])
    entropy = output.chunk(2, dim=-1)[1].sum(-1)
    return -surrogate.mean() - 0.01 * entropy.mean()


def cross_entropy_and_dice(output: Tensor, target: Tensor) -> Tensor:
    """Of pixels; one minus the mean over classes of the Dice coefficient of each image."""
    p = torch.softmax(output, dim=1)
    both, all_ = (p * target).sum(dim=(2, 3)), (p + target).sum(dim=(2, 3))
    dice = (2 * both + 1) / (all_ + 1)
    return F.cross_entropy(output, target) + 1 - dice.mean()


class ImageFilm(nn.Module):
    """A context, which alone is adapted, makes a scale and a shift of each feature map (Perez et al. 2018)."""

    def __init__(self, channels: int, context: int, classes: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(context))
        self.conv1, self.conv2 = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.film1, self.film2 = L(context, 2 * channels), L(context, 2 * channels)
        self.fc = L(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, film in ((self.conv1, self.film1), (self.conv2, self.film2)):
            gamma, beta = film(self.context).view(2, -1, 1, 1)
            x = torch.relu((1 + gamma) * conv(x) + beta)
        return self.fc(x.mean(dim=(-2, -1)))  # type: ignore[no-any-return]
