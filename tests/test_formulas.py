"""Layers written out, with every option: values and first derivatives are torch's own, in which torch is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.engine import higher_order, recurrent


def compare(function: Callable[..., Any], *inputs: Tensor) -> None:
    def run(*at: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in at]
        outputs = function(*leaves)
        first: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return (first, *torch.autograd.grad(first.sin().sum(), [t for t in leaves if t.requires_grad]))

    with higher_order.WrittenOut():
        found = run(*inputs)
    for a, b in zip(found, run(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_running_statistics_move_as_torch_moves_them(kind: Any, training: bool) -> None:
    torch.manual_seed(0)
    one, two = (kind(3, affine=True, momentum=0.3, track_running_stats=True).double().train(training) for _ in "ab")
    for _ in range(2):
        x = 2 + torch.randn(4, 3, 5, dtype=torch.float64)
        with higher_order.WrittenOut():
            a = one(x)
        torch.testing.assert_close(a, two(x), rtol=1e-12, atol=1e-12)
    for name, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value, rtol=1e-12, atol=0)


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]]).bool()},
    "a query that sees nothing": {"attn_mask": torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()},
    "bias": {"attn_mask": torch.tensor([[0.5, -1, 0], [1, -float("inf"), 0], [1, 0, 2]]).double()},
}


@pytest.mark.parametrize("mask", MASKS)
def test_attention(mask: str) -> None:
    q, k, v = torch.randn(3, 2, 4, 3, 5, dtype=torch.float64)
    compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **MASKS[mask]), q, k, v)


def test_attention_of_grouped_queries_and_what_excludes_itself() -> None:
    q, k, v = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 2, 3, 5).double(), torch.randn(2, 2, 3, 5).double()
    compare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), q, k, v)
    with higher_order.WrittenOut(), pytest.raises(RuntimeError, match="exclude each other"):
        F.scaled_dot_product_attention(q, q, q, MASKS["bool"]["attn_mask"], is_causal=True)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("last", [True, False])
def test_embedding_bag(mode: str, padding: int | None, last: bool) -> None:
    indices, offsets = torch.tensor([0, 2, 4, 2, 1, 4, 4]), torch.tensor([0, 3, 3, 5, *[7] * last])
    settings: dict[str, Any] = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    weight = torch.randn(5, 3, dtype=torch.float64)
    compare(lambda w: F.embedding_bag(indices, w, offsets, **settings), weight)
    if mode == "sum":
        weights = torch.randn(7, dtype=torch.float64)
        compare(lambda w, s: F.embedding_bag(indices, w, offsets, per_sample_weights=s, **settings), weight, weights)


def test_an_embedding_bag_that_scales_its_gradient_is_refused_by_name() -> None:
    with higher_order.WrittenOut(), pytest.raises(NotImplementedError, match="scale_grad_by_freq=True"):
        nn.EmbeddingBag(5, 3, scale_grad_by_freq=True)(torch.tensor([[0, 1]]))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_margin_losses(reduction: str) -> None:
    x, y, weight = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1]), torch.rand(3).double()
    many = torch.tensor([[0, 2, -1], [1, -1, 0], [-1, 0, 0], [2, 1, 0]])
    for p in (1, 2):
        compare(lambda x: F.multi_margin_loss(x, y, p=p, margin=0.7, weight=weight, reduction=reduction), x)  # noqa: B023
    compare(lambda x: F.multilabel_margin_loss(x, many, reduction=reduction), x)
    compare(lambda x: F.multi_margin_loss(x, torch.tensor(1), reduction=reduction), x[0])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("together", [True, False])
def test_ctc(reduction: str, together: bool) -> None:
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    frames, lengths = torch.tensor([7, 5, 6]), torch.tensor([3, 1, 2])
    short = torch.full((3,), 2)
    targets = torch.tensor([[1, 2, 2], [3, 0, 0], [4, 4, 0]])
    if together:
        targets = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])
    compare(lambda x: F.ctc_loss(x.log_softmax(2), targets, frames, lengths, reduction=reduction), x)
    compare(lambda x: F.ctc_loss(x.log_softmax(2), targets, (7, 5, 6), (3, 1, 2)), x)
    compare(lambda x: F.ctc_loss(x[:, 0].log_softmax(1), torch.tensor([2, 1]), torch.tensor(7), torch.tensor(2)), x)
    compare(lambda x: F.ctc_loss(x[:2].log_softmax(2), targets, short, lengths, zero_infinity=True), x)
    with higher_order.WrittenOut():
        assert F.ctc_loss(x[:2].log_softmax(2), targets, short, lengths, reduction="none")[0] == float("inf")


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"batch_first": True}, {"proj_size": 2}])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_layers_written_out(kind: str, settings: dict[str, Any]) -> None:
    """As cuDNN would run them; torch's own on the CPU is the judge."""
    if "proj_size" in settings and kind != "lstm":
        pytest.skip("only an LSTM projects")
    build = {"lstm": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
    extra = {"nonlinearity": kind[4:]} if kind.startswith("rnn") else {}
    layer = build(3, 4, 2, bidirectional=True, **extra, **settings).double()
    x, h, c = torch.randn(5, 5, 3), torch.randn(4, 5, settings.get("proj_size", 4)), torch.randn(4, 5, 4)
    x, h, c = x.double(), h.double(), c.double()
    state = (h, c) if kind == "lstm" else h
    rest = (layer._flat_weights, layer.bias, 2, 0.0, True, True, layer.batch_first)
    found, expected = getattr(recurrent, kind)(x, state, *rest), getattr(torch, kind)(x, state, *rest)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = list(layer.parameters())
    slopes = [torch.autograd.grad(o[0].sin().sum(), weights, materialize_grads=True) for o in (found, expected)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
