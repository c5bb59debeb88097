"""Losses of torch.nn.functional inside a loss of the user's own, and distances, each made of functions of elements.

The mean of all elements of all examples is a mean over the examples (:class:`~metafast.model.builder.Place`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metafast.model.builder import Builder, Place
from metafast.model.layers.pairs import pair
from metafast.model.layers.rearrangement import of_examples, rearranged
from metafast.model.layers.table import lowered, lowers

_CHOICE = torch.where  #: by itself, as a trace puts another in its place


def _reduced(b: Builder, each: Place, reduction: str) -> Place:
    if reduction == "none":
        return each
    if reduction == "batchmean" and b.in_loss:
        return b.reduction_of(of_examples(b, each, "sum"), "mean", None)
    if reduction not in ("mean", "sum") or not b.in_loss:
        b.refuse(f"is not native with reduction={reduction!r} here")
    return of_examples(b, each, reduction)


def _refuse_old(b: Builder, size_average: Any, reduce: Any) -> None:
    if size_average is not None or reduce is not None:
        b.refuse("is not native with size_average or reduce; reduction says what both did")


def _reduces(function: Callable[..., Tensor], formula: Callable[..., Any]) -> None:
    """Register a loss of tensors whose ``formula(do, *tensors, **settings)`` is that of each element, or example."""

    def handler(
        b: Builder,
        *tensors: Any,
        weight: None = None,
        size_average: None = None,
        reduce: None = None,
        reduction: str = "mean",
        **settings: Any,
    ) -> Place:
        _refuse_old(b, size_average, reduce)
        if weight is not None:
            b.refuse("is not native with weight here")
        return _reduced(b, formula(partial(lowered, b), *tensors, **settings), reduction)

    lowers(function)(handler)


def _square(do: Any, input: Any, target: Any) -> Any:
    return do(torch.square, do(torch.sub, input, target))


def _huber(do: Any, input: Any, target: Any, delta: float = 1.0) -> Any:
    """m (d - m / 2) with d = |input - target| and m the smaller of d and delta."""
    distance = do(torch.abs, do(torch.sub, input, target))
    near = do(torch.clamp, distance, max=delta)
    return do(torch.mul, near, do(torch.sub, distance, do(torch.mul, near, 0.5)))


def _smooth_l1(do: Any, input: Any, target: Any, beta: float = 1.0) -> Any:
    if beta == 0:
        return do(torch.abs, do(torch.sub, input, target))
    return do(torch.div, _huber(do, input, target, beta), beta)


def _of_logits(do: Any, input: Any, target: Any, pos_weight: None = None) -> Any:
    """softplus(z) - z y"""
    return do(torch.sub, do(F.softplus, input), do(torch.mul, input, target))


def _divergence(do: Any, input: Any, target: Any, log_target: bool = False) -> Any:
    """p (log p - input). Where p is 0 its logarithm counts as that of the smallest number, so that the product is 0."""
    if log_target:
        return do(torch.mul, do(torch.exp, target), do(torch.sub, target, input))
    log = do(torch.log, do(torch.clamp, target, min=torch.finfo(torch.float32).tiny))
    return do(torch.mul, target, do(torch.sub, log, input))


def _soft_margin(do: Any, input: Any, target: Any) -> Any:
    """log(1 + exp(-y z))"""
    return do(torch.neg, do(F.logsigmoid, do(torch.mul, input, target)))


def _hinge_embedding(do: Any, input: Any, target: Any, margin: float = 1.0) -> Any:
    """x where y is 1, max(0, margin - x) where it is -1, and the sum of both elsewhere."""
    below = do(torch.clamp, do(torch.rsub, input, margin), min=0)
    return do(torch.add, _where(do, target, torch.ne, 1, below), _where(do, target, torch.ne, -1, input))


def _where(do: Any, target: Any, compare: Callable[..., Any], number: int, chosen: Any) -> Any:
    """``chosen`` where the comparison with a number holds, 0 elsewhere."""
    return do(_CHOICE, do(compare, target, number), chosen, 0.0)


def _cosine_embedding(do: Any, input1: Any, input2: Any, target: Any, margin: float = 0.0) -> Any:
    """1 - c where y is 1, max(0, c - margin) where it is -1, c being the cosine of the angle."""

    def product(left: Any, right: Any) -> Any:
        return do(torch.sum, do(torch.mul, left, right), -1)

    squares = [do(torch.add, product(x, x), 1e-12) for x in (input1, input2)]
    cosine = do(torch.mul, product(input1, input2), do(torch.rsqrt, do(torch.mul, *squares)))
    near = _where(do, target, torch.eq, 1, do(torch.rsub, cosine, 1))
    far = _where(do, target, torch.eq, -1, do(torch.clamp, do(torch.sub, cosine, margin), min=0))
    return do(torch.add, near, far)


def _margin_ranking(do: Any, input1: Any, input2: Any, target: Any, margin: float = 0.0) -> Any:
    """max(0, margin - y (x1 - x2))"""
    apart = do(torch.mul, target, do(torch.sub, input1, input2))
    return do(torch.clamp, do(torch.rsub, apart, margin), min=0)


def _triplet_margin(
    do: Any,
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
) -> Any:
    """max(0, margin + |anchor - positive| - |anchor - negative|)"""
    near, far = (do(F.pairwise_distance, anchor, other, p, eps) for other in (positive, negative))
    if swap:
        far = do(torch.minimum, far, do(F.pairwise_distance, positive, negative, p, eps))
    return do(torch.clamp, do(torch.add, do(torch.sub, near, far), margin), min=0)


_reduces(F.mse_loss, _square)
_reduces(F.soft_margin_loss, _soft_margin)
_reduces(F.hinge_embedding_loss, _hinge_embedding)
_reduces(F.cosine_embedding_loss, _cosine_embedding)
_reduces(F.margin_ranking_loss, _margin_ranking)
_reduces(F.triplet_margin_loss, _triplet_margin)
_reduces(F.kl_div, _divergence)
_reduces(F.l1_loss, lambda do, input, target: do(torch.abs, do(torch.sub, input, target)))
_reduces(F.huber_loss, _huber)
_reduces(F.smooth_l1_loss, _smooth_l1)
_reduces(F.binary_cross_entropy_with_logits, _of_logits)


@lowers(F.poisson_nll_loss)
def poisson_nll_loss(
    b: Builder,
    input: Any,
    target: Any,
    log_input: bool = True,
    full: bool = False,
    size_average: None = None,
    eps: float = 1e-8,
    reduce: None = None,
    reduction: str = "mean",
) -> Place:
    _refuse_old(b, size_average, reduce)
    if full:
        b.refuse("is not native with full=True, whose terms depend on where the target is above 1")
    do = partial(lowered, b)
    if log_input:
        each = do(torch.sub, do(torch.exp, input), do(torch.mul, target, input))
    else:
        each = do(torch.sub, input, do(torch.mul, target, do(torch.log, do(torch.add, input, eps))))
    return _reduced(b, each, reduction)


@lowers(F.binary_cross_entropy)
def binary_cross_entropy(
    b: Builder,
    input: Any,
    target: Any,
    weight: None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
) -> Place:
    """Of probabilities."""
    _refuse_old(b, size_average, reduce)
    if weight is not None:
        b.refuse("is not native with weight here")
    return _reduced(b, pair(b, "binary_cross_entropy", input, target), reduction)


@lowers(F.gaussian_nll_loss)
def gaussian_nll_loss(
    b: Builder,
    input: Any,
    target: Any,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Place:
    """(log v + (x - y)^2 / v) / 2 for the larger v of var and eps, whose slope in var is 1 all the same, as in torch.

    A negative variance, which torch refuses, counts as eps.
    """
    do = partial(lowered, b)
    square = _square(do, input, target)
    if isinstance(var, (int, float)):
        v = max(float(var), eps)
        each = do(torch.add, do(torch.div, square, v), math.log(v))
    else:
        place = b.place(var)
        if len(place.shape) == len(square.shape) - 1 and not place.shared:
            place = do(torch.unsqueeze, place, -1)
        v = do(torch.add, place, do(torch.detach, do(torch.sub, do(torch.clamp, place, min=eps), place)))
        each = do(torch.add, do(torch.log, v), do(torch.div, square, v))
    whole = do(torch.add, each, math.log(2 * math.pi)) if full else each
    return _reduced(b, do(torch.mul, whole, 0.5), reduction)


@lowers(F.pairwise_distance)
def pairwise_distance(b: Builder, x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Place:
    if p != 2:
        b.refuse(f"is not native with p={p}")
    do = partial(lowered, b)
    apart = do(torch.add, do(torch.sub, x1, x2), eps)
    return do(torch.sqrt, do(torch.sum, do(torch.square, apart), -1, keepdim))  # type: ignore[no-any-return]


@lowers(F.nll_loss)
def nll_loss(
    b: Builder,
    input: Any,
    target: Any,
    weight: None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
) -> Place:
    """Of log-probabilities [N, C, ...] and classes [N, ...]."""
    _refuse_old(b, size_average, reduce)
    if weight is not None or ignore_index != -100:
        b.refuse("is not native with weight or ignore_index here")
    do = partial(lowered, b)
    member = do(F.one_hot, target, input.shape[0])
    member = rearranged(b, torch.movedim, [do("to", member, b.dtype), -1, 1], {}, True, "movedim")
    return _reduced(b, do(torch.neg, do(torch.sum, do(torch.mul, member, input), 1)), reduction)


@lowers(F.cross_entropy)
def cross_entropy(
    b: Builder,
    input: Any,
    target: Any,
    weight: None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Place:
    """Of logits [N, C, ...] and classes [N, ...], or probabilities of the logits' shape."""
    _refuse_old(b, size_average, reduce)
    do = partial(lowered, b)
    log_probabilities = do(F.log_softmax, input, 1)
    if isinstance(target, Place) and target.shape == input.shape:
        each = do(torch.neg, do(torch.sum, do(torch.mul, target, log_probabilities), 1))
        if weight is not None:
            b.refuse("is not native with weight here")
    else:
        each = nll_loss(b, log_probabilities, target, weight, ignore_index=ignore_index, reduction="none")
    if label_smoothing:
        every = do(torch.mul, do(torch.mean, log_probabilities, 1), -label_smoothing)
        each = do(torch.add, do(torch.mul, each, 1 - label_smoothing), every)
    return _reduced(b, each, reduction)


@lowers(F.normalize)
def normalize(b: Builder, input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Place:
    """x / max(|x|, eps). Below eps the divisor is constant, as in torch."""
    if p != 2:
        b.refuse(f"is not native with p={p}")
    do = partial(lowered, b)
    squares = do(torch.sum, do(torch.square, input), dim, True)
    return do(torch.mul, input, do(torch.rsqrt, do(torch.clamp, squares, min=eps**2)))  # type: ignore[no-any-return]


@lowers(F.cosine_similarity)
def cosine_similarity(b: Builder, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Place:
    do = partial(lowered, b)
    product = do(torch.mul, normalize(b, x1, 2.0, dim, eps), normalize(b, x2, 2.0, dim, eps))
    return do(torch.sum, product, dim)  # type: ignore[no-any-return]
