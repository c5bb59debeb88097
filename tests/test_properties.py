"""Architectures, shapes and options that nobody thought of: drawn at random, run natively, judged by the oracle."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st
from torch import nn

import judge
from judge import Case, assert_close
from laws_of_bits import PER_TASK, take
from models import Residual
from row import Row

SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33])
SMALL = st.integers(1, 4)
ACTIVATIONS = st.sampled_from(
    [
        nn.ReLU(), nn.LeakyReLU(0.1), nn.ELU(0.7), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.Tanh(),
        nn.Sigmoid(), nn.Softplus(), nn.Softplus(beta=2.0, threshold=3.0), nn.Identity(),
    ]
)  # fmt: skip
LOSSES = st.sampled_from(
    [
        "mse", "bce_with_logits", "huber", nn.HuberLoss(delta=0.3), "cross_entropy", "multi_margin",
        nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss(p=2, margin=0.5),
    ]
)  # fmt: skip

#: A layer that does not take the shape it is offered is one of these; anything else is a fault worth hearing about.
REFUSALS = ("size", "dimension", "padding", "Kernel", "kernel", "Output", "more than 1 value")


def image_layer(draw: st.DrawFn, channels: int) -> nn.Module:
    kernel = draw(st.tuples(SMALL, SMALL))
    stride, dilation = draw(st.tuples(SMALL, SMALL)), draw(st.sampled_from([1, 1, 2]))
    padding = tuple(draw(st.integers(0, side // 2)) for side in kernel)  # the most that pooling allows
    ceil = draw(st.booleans())
    kinds = {
        "conv": lambda: nn.Conv2d(channels, draw(SIZES), kernel, stride, padding, dilation, bias=draw(st.booleans())),
        "norm": lambda: nn.BatchNorm2d(channels, affine=draw(st.booleans()), track_running_stats=draw(st.booleans())),
        "activation": lambda: draw(ACTIVATIONS),
        "max": lambda: nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil),
        "avg": lambda: nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=draw(st.booleans())),
        "adaptive": lambda: nn.AdaptiveAvgPool2d(draw(st.tuples(SMALL, SMALL))),
        "residual": lambda: Residual(nn.Sequential(draw(ACTIVATIONS), nn.Conv2d(channels, channels, 3, padding=1))),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]()


def flat_layer(draw: st.DrawFn, width: int) -> nn.Module:
    kinds = {
        "linear": lambda: nn.Linear(width, draw(SIZES), bias=draw(st.booleans())),
        "norm": lambda: nn.BatchNorm1d(width, affine=draw(st.booleans()), track_running_stats=draw(st.booleans())),
        "activation": lambda: draw(ACTIVATIONS),
        "residual": lambda: Residual(nn.Sequential(nn.Linear(width, width), draw(ACTIVATIONS))),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]()


def fresh(layers: list[nn.Module]) -> nn.Module:
    """The same architecture with values of its own, which depend on the seed in force alone."""
    model = copy.deepcopy(nn.Sequential(*layers))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Layers, each made for the shape that the ones before it give, and the shape of an example."""
    image = draw(st.booleans())
    example = (draw(SMALL), draw(st.integers(2, 9)), draw(st.integers(2, 9))) if image else (draw(SIZES),)
    layers: list[nn.Module] = []
    x = torch.randn(3, *example)

    def append(layer: nn.Module) -> None:
        nonlocal x
        try:
            x = layer(x)
        except (RuntimeError, ValueError) as error:
            assert any(word in str(error) for word in REFUSALS), error
            assume(False)
        assume(0 not in x.shape and x[0].numel() <= 400)
        layers.append(layer)

    if image:
        for _ in range(draw(st.integers(1, 4))):
            append(image_layer(draw, x.shape[1]))
        append(nn.Flatten())
    for _ in range(draw(st.integers(0, 3))):
        append(flat_layer(draw, x.shape[1]))
    append(nn.Linear(x.shape[1], draw(st.integers(1, 5))))
    return layers, example


@st.composite
def rows(draw: st.DrawFn) -> Row:
    layers, example = draw(networks())
    steps, stepwise = draw(st.integers(0, 3)), draw(st.booleans())
    forms = ["scalar", "per_tensor", "per_element"] + ["per_step"] * (steps > 0)
    options: dict[str, Any] = dict(
        loss=draw(LOSSES),
        tasks=draw(st.integers(1, 4)),
        shots=draw(st.integers(2, 5)),
        queries=draw(st.integers(2, 5)),
        steps=steps,
        stepwise=stepwise and steps > 0,
        lr=draw(st.sampled_from([0.01, 0.05])),
        lr_form=draw(st.sampled_from(forms)),
        first_order=draw(st.booleans()),
        weighted=draw(st.booleans()),
        reduction=draw(st.sampled_from(["weighted_mean", "mean", "sum"])),
        adapt_params=draw(st.sampled_from([None, f"{len(layers) - 1}.*", "*.weight"])),
        training=draw(st.booleans()),
    )
    options["soft"] = draw(st.booleans()) and "ross" in str(options["loss"])
    note(f"{nn.Sequential(*layers)} of {example}, {options}")
    return Row("drawn", lambda: fresh(layers), example, **options)


@given(rows(), st.integers(0, 3))
def test_any_network_equals_the_oracle(row: Row, seed: int) -> None:
    """Outputs, and gradients of all outputs at once, of every differentiable input."""
    case = Case(row, torch.float64, "cpu", "native")
    truth = case.problem(seed)
    expected = judge.run_oracle(row, truth)
    # Two rows of a batch that a norm cannot tell apart blow any rounding up: such a net has no digits to compare.
    assume(all(value.isfinite().all() and value.abs().max() < 1e4 for value in expected.values() if value.numel()))
    kinds = ("loss", "together", "adapted")
    pulled = {kind: judge.gradients(expected, truth, kind, retain_graph=True) for kind in kinds}
    assume(all(value.abs().max() < 1e4 for kind in kinds for value in pulled[kind].values() if value.numel()))

    problem = case.problem(seed)
    actual = judge.run(case, problem)
    assert_close(actual, expected)
    for kind in kinds:
        assert_close(judge.gradients(actual, problem, kind, retain_graph=True), pulled[kind])


@given(rows(), st.integers(0, 3))
def test_any_network_gives_a_task_the_same_bits_alone(row: Row, seed: int) -> None:
    case = Case(row, torch.float32, "cpu", "native")
    problem = case.problem(seed)
    last = take(problem, [row.tasks - 1])
    together, alone = judge.run(case, problem), judge.run(case, last)
    judge.assert_same_bits(
        {name: value[0] for name, value in judge.part(alone, *PER_TASK).items()},
        {name: value[-1] for name, value in judge.part(together, *PER_TASK).items()},
    )
