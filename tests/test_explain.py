"""explain: costs that can be counted by hand, and reasons for every layer at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.explain import explain
from models import Cumulative


def conv() -> nn.Sequential:
    body = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.0), nn.MaxPool2d(2)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 5))


def test_costs() -> None:
    told = explain(conv(), (7, 10, 3, 4, 4), loss="cross_entropy", adapt_params="6.*")
    assert told.native and (told.tasks, told.examples, told.example) == (7, 10, (3, 4, 4))
    assert [(row.layer, row.op, row.shape) for row in told.rows] == [
        ("0", "conv2d", (4, 4, 4)),
        ("1", "batch_norm", (4, 4, 4)),
        ("2", "relu", (4, 4, 4)),
        ("3", "(nothing)", (4, 4, 4)),
        ("4", "max_pool2d", (4, 2, 2)),
        ("5", "flatten", (16,)),
        ("6", "linear", (5,)),
    ]
    assert [row.parameters for row in told.rows] == [3 * 4 * 9 + 4, 8, 0, 0, 0, 0, 16 * 5 + 5]
    assert told.rows[0].flops == 10 * 64 * (2 * 27 + 1)
    assert told.rows[6].flops == 10 * 5 * (2 * 16 + 1)
    assert told.rows[0].bytes == 10 * 64 * 4 and told.rows[3].bytes == told.rows[5].bytes == 0
    assert told.parameters == {"meta": 112 + 8, "adapted": 85}
    assert told.flops == sum(row.flops for row in told.rows)


def test_what_is_made_of_parameters_alone_is_there_once() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    told = explain(model, (2, 5, 3))
    squares = next(row for row in told.rows if row.op == "square")
    assert squares.shared and (squares.flops, squares.bytes) == (12, 48)
    text = str(told)
    assert "square     [4, 3]" in text and "matmul     [N, 4]" in text
    assert f"forward pass: {told.flops} FLOP, activations {sum(row.bytes for row in told.rows)} B" in text


def test_meta_step_grows_with_steps_and_queries() -> None:
    small = explain(conv(), (7, 10, 3, 4, 4), steps=1, queries=10)
    large = explain(conv(), (7, 10, 3, 4, 4), steps=3, queries=30)
    assert small.meta_step_flops == 7 * small.flops * 15
    assert large.meta_step_flops == 7 * small.flops * (3 * 12 + 9)


def test_text_is_a_table() -> None:
    text = str(explain(conv(), (7, 10, 3, 4, 4), loss="cross_entropy"))
    assert "T=7 tasks, N=10 examples of shape [3, 4, 4]" in text and "runs natively" in text
    lines = [line for line in text.splitlines() if line.endswith("  yes")]
    assert len(lines) == 7 and len({len(line) for line in lines}) == 1


def test_a_loss_of_ones_own_is_traced() -> None:
    model, weight = nn.Linear(4, 3), {"decay": 0.1}

    def classes(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + weight["decay"] * output.square().mean()

    assert explain(model, (2, 3, 4), classes).native
    assert explain(model, ((2, 3, 4),), lambda o, y: (o - y).abs().mean()).native
    told = explain(model, (2, 3, 4), lambda o, y: torch.logcumsumexp(o - y, 1).mean())
    assert not told.native and "loss: logcumsumexp() in the function has no native form" in told.reason


def test_every_layer_without_a_native_form_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Cumulative(6), nn.RReLU(), nn.Linear(6, 2), nn.FeatureAlphaDropout())
    told = explain(model, torch.zeros(2, 3, 4), loss=nn.MultiLabelSoftMarginLoss())
    assert not told.native
    assert [(row.layer, row.op) for row in told.rows if not row.native] == [
        ("1", "logcumsumexp"), ("2", "RReLU"), ("4", "FeatureAlphaDropout"),
    ]  # fmt: skip
    assert [(row.layer, row.op) for row in told.rows if row.native] == [
        ("0", "linear"), ("1", "parameter"), ("1", "multiply"), ("1", "parameter"), ("1", "add"), ("3", "linear"),
    ]  # fmt: skip
    assert [row.shape for row in told.rows] == [(6,)] * 7 + [(2,)] * 2
    for expected in (
        "'1': logcumsumexp() in Cumulative has",
        "'2': RReLU has",
        "'4': FeatureAlphaDropout has",
        "MultiLabelSoftMarginLoss has no native form",
    ):
        assert expected in told.reason and expected.split(": ")[-1] in str(told)


def test_a_layer_whose_output_is_unknown_stops_those_that_follow() -> None:
    told = explain(nn.Sequential(nn.LSTM(4, 3, batch_first=True, proj_size=2), nn.ReLU()), (2, 3, 4))
    assert [row.reason for row in told.rows] == [
        "LSTM is not native with proj_size", "ReLU follows a layer whose output is not known",
    ]  # fmt: skip
    assert "?" in str(told)


def test_a_model_that_cannot_be_traced() -> None:
    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    told = explain(nn.Sequential(nn.Linear(4, 4), Decides()), (2, 3, 4))
    assert not told.native and "layer '1': Decides cannot be traced" in told.reason


def test_a_loss_that_does_not_fit_the_output() -> None:
    told = explain(nn.Linear(4, 3), (2, 3, 5, 4), loss="multi_margin")
    assert "loss: multi_margin is native for outputs [N, C]" in told.reason


@pytest.mark.parametrize("shape", [(), (3,), (0, 2, 4), (2, 3.0, 4)])
def test_shape_needs_tasks_and_examples(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected that of the support inputs, \[T, N, \*example\]"):
        explain(nn.Linear(4, 3), shape)
