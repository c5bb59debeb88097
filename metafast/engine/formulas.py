"""Layers that torch differentiates by a fused formula of its own, written out in plain operations.

torch's first derivative of each is right. Its second or third is missing or, for some normalisations, wrong without a
word: the fused backward takes the mean, the deviation or the norm that it saved for constants. Plain operations have
every derivative. Arguments are those of the function of the same name in ``torch`` or ``torch._C._nn``;
:mod:`metafast.engine.higher_order` says which function is replaced by which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------------ normalisation


def _normalise(input: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) over ``dims``; also the mean, the variance, and 1 / sqrt(var + eps)."""
    x = input if input.dtype in (torch.float32, torch.float64) else input.float()  # as torch, which adds up in float32
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    var = centred.square().mean(dims, keepdim=True)
    scale = torch.rsqrt(var + eps)
    return (centred * scale).to(input.dtype), mean, var, scale


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``weight`` and ``bias`` [C] for x [N, C, ...]."""
    shape = (-1, *[1] * (x.ndim - 2))
    return _affine(x, weight if weight is None else weight.view(shape), bias if bias is None else bias.view(shape))


def native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = tuple(normalized_shape)
    if tuple(input.shape[-len(sizes) :]) != sizes:
        raise RuntimeError(f"layer_norm of shape {list(sizes)} expects an input [*, {sizes}], not {list(input.shape)}")
    normal, mean, _, scale = _normalise(input, tuple(range(-len(sizes), 0)), eps)
    return _affine(normal, weight, bias), mean, scale


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    x = input if input.dtype in (torch.float32, torch.float64) else input.float()
    squares = x.square().mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    scale = torch.rsqrt(squares + (torch.finfo(input.dtype).eps if eps is None else eps))
    return _affine((x * scale).to(input.dtype), weight, None)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    n, channels = input.shape[:2]
    if channels % num_groups:
        raise RuntimeError(f"group_norm: {channels} channels cannot be divided into {num_groups} groups")
    normal = _normalise(input.reshape(n, num_groups, -1), (2,), eps)[0]
    return _by_channel(normal.view(input.shape), weight, bias)


def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if training:
        dims = (0, *range(2, input.ndim))
        normal, mean, var, scale = _normalise(input, dims, eps)
        count = input.numel() / max(input.shape[1], 1)
        _move(running_mean, mean.flatten(), momentum)
        _move(running_var, var.flatten() * (count / max(count - 1, 1)), momentum)
        return _by_channel(normal, weight, bias), mean.flatten(), scale.flatten()
    if running_mean is None or running_var is None:
        raise RuntimeError("batch_norm expects running_mean and running_var where training is False")
    scale = torch.rsqrt(running_var + eps)
    normal = _by_channel(_by_channel(input, None, -running_mean), scale, None)
    return _by_channel(normal.to(input.dtype), weight, bias), running_mean, scale


def _move(running: Tensor | None, statistic: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.mul_(1 - momentum).add_(statistic.to(running.dtype), alpha=momentum)


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    return native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)[0]


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    if not use_input_stats:
        return batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)
    dims = tuple(range(2, input.ndim))
    normal, mean, var, _ = _normalise(input, dims, eps)
    count = math.prod(input.shape[2:])
    _move(running_mean, mean.mean(0).flatten(), momentum)
    _move(running_var, var.mean(0).flatten() * (count / max(count - 1, 1)), momentum)
    return _by_channel(normal, weight, bias)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


# ---------------------------------------------------------------------------------------------------------- attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K' + mask) V; a query that may look at nothing gets zero, as torch gives it."""
    if is_causal and attn_mask is not None:
        raise RuntimeError("scaled_dot_product_attention: attn_mask and is_causal=True exclude each other")
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (t.repeat_interleave(heads // t.shape[-3], -3) for t in (key, value))
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.softmax(-1) if attn_mask is None else _masked_softmax(scores, attn_mask)
    if dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, True)
    return weights @ value


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        scores = scores + mask
        mask = (scores != -math.inf).detach()
    nothing = ~mask.any(-1, keepdim=True)  # a softmax of -inf alone would be NaN, with NaN for a gradient
    weights = scores.masked_fill(~mask, -math.inf).masked_fill(nothing, 0.0).softmax(-1)
    return weights.masked_fill(nothing, 0.0)


# ----------------------------------------------------------------------------------------------- tables and distances


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum (mode 0), mean (1) or maximum (2) of the rows in each bag: [bags, dim], the bag of each index, bag sizes."""
    if scale_grad_by_freq:
        raise NotImplementedError("embedding_bag with scale_grad_by_freq=True has no second derivative; expected False")
    starts = offsets[:-1] if include_last_offset else offsets
    bag = torch.searchsorted(starts, torch.arange(len(indices), device=starts.device, dtype=starts.dtype), right=True)
    bag, rows = bag - 1, weight.index_select(0, indices)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    if padding_idx is not None:
        used = indices != padding_idx % len(weight)
        bag, rows = bag[used], rows[used]
    made = rows.new_zeros(len(starts), weight.shape[1])
    sizes = torch.bincount(bag, minlength=len(starts))
    if mode == 2:
        made = made.scatter_reduce(0, bag[:, None].expand_as(rows), rows, "amax", include_self=False)
    else:
        made = made.index_add(0, bag, rows)
        made = made / sizes.clamp(min=1)[:, None] if mode == 1 else made
    return made, bag, sizes, sizes.new_empty(0)


def _p_norm(difference: Tensor, p: float) -> Tensor:
    """Over the last axis, with derivatives of zero where all is zero."""
    zero = (difference == 0).all(-1)
    norm: Tensor = torch.linalg.vector_norm(torch.where(zero[..., None], 1.0, difference), p, -1)
    return norm.masked_fill(zero, 0.0)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    return _p_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _p_norm(input[i] - input[j], p)


# ------------------------------------------------------------------------------------------- activations and losses


def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    sums = list(input.unbind(dim))
    for i in range(1, len(sums)):
        sums[i] = torch.logaddexp(sums[i - 1], sums[i])
    return torch.stack(sums, dim)


def hardsigmoid(input: Tensor) -> Tensor:
    return (input + 3).clamp(0, 6) / 6


def hardsigmoid_(input: Tensor) -> Tensor:
    return input.copy_(hardsigmoid(input))


def _reduced(each: Tensor, reduction: int) -> Tensor:
    """By torch's numbers: none, mean, sum."""
    return each if reduction == 0 else each.mean() if reduction == 1 else each.sum()


def multi_margin_loss(
    input: Tensor, target: Tensor, p: float = 1, margin: float = 1, weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """sum_{c != y} w_y max(0, margin - x_y + x_c)^p / C"""
    x, y = input.reshape(-1, input.shape[-1]), target.reshape(-1)
    excess = (margin - x.gather(1, y[:, None]) + x).clamp(min=0) ** p
    if weight is not None:
        excess = excess * weight[y][:, None]
    others = torch.arange(x.shape[1], device=x.device) != y[:, None]
    return _reduced(torch.where(others, excess, 0.0).mean(1).view(target.shape), reduction)


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """sum_{j in labels, c not in labels} max(0, 1 - x_j + x_c) / C; the labels of an example end at the first -1."""
    x, y = (t.reshape(-1, t.shape[-1]) for t in (input, target))
    counts = (y < 0).cumsum(1) == 0
    labels = torch.zeros_like(x).scatter_add(1, y.clamp(min=0), counts.to(x.dtype)) > 0
    excess = (1 - x.gather(1, y.clamp(min=0)).unsqueeze(2) + x.unsqueeze(1)).clamp(min=0)
    each = torch.where(counts.unsqueeze(2) & ~labels.unsqueeze(1), excess, 0.0).sum((1, 2)) / x.shape[1]
    return _reduced(each.view(input.shape[:-1]), reduction)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> Tensor:
    """-log of the sum over all alignments (Graves et al. 2006), by the forward recursion in logarithms.

    ``log_probs`` [T, N, C]; ``targets`` [N, S], or those of all examples in a row.
    """
    frames = log_probs if log_probs.ndim == 3 else log_probs.unsqueeze(1)
    device, (length, n) = frames.device, frames.shape[:2]
    inputs, labels = (torch.as_tensor(t, device=device).view(-1) for t in (input_lengths, target_lengths))
    padded = targets.to(device).view(n, -1) if targets.ndim == 2 or n == 1 else _padded(targets.to(device), labels)
    states = padded.new_full((n, 2 * padded.shape[1] + 1), blank)
    states[:, 1::2] = padded.where(torch.arange(padded.shape[1], device=device) < labels[:, None], blank)
    before = torch.nn.functional.pad(states, (2, 0), value=blank)[:, :-2]
    skips = (states != blank) & (states != before)  # a blank between two labels may be left out if they differ
    never = torch.finfo(frames.dtype).min / 4  # -inf, but with derivatives of zero instead of NaN
    at = torch.arange(states.shape[1], device=device)
    alpha = torch.where(at < 2, frames[0].gather(1, states), never)
    for t in range(1, length):
        one = torch.nn.functional.pad(alpha, (1, 0), value=never)[:, :-1]
        two = torch.where(skips, torch.nn.functional.pad(alpha, (2, 0), value=never)[:, :-2], never)
        reached = torch.logsumexp(torch.stack([alpha, one, two]), 0) + frames[t].gather(1, states)
        alpha = torch.where((t < inputs)[:, None], reached.clamp(min=never), alpha)
    ends = (at == 2 * labels[:, None]) | (at == 2 * labels[:, None] - 1)
    each = -torch.logsumexp(torch.where(ends, alpha, never), 1)
    impossible = each > -never / 2
    each = each.masked_fill(impossible, 0.0 if zero_infinity else math.inf)
    if reduction == 1:
        return (each / labels.clamp(min=1)).mean()
    return _reduced(each if log_probs.ndim == 3 else each[0], reduction)


def _padded(targets: Tensor, lengths: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(targets, lengths.tolist())), batch_first=True)
