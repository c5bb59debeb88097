"""Pointwise functions and arithmetic with numbers, in every way that they are written: the Program means what torch
computes, and has the nodes that are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpreter
from metafast.model.builder import Unsupported
from metafast.model.lowering import lower
from rows_of_pointwise import Calls

Function = Callable[[Tensor], Tensor]
WRITTEN: dict[str, tuple[Function, ...]] = {
    "affine": (
        lambda x: x + 0.3, lambda x: 0.3 + x, lambda x: x - 0.3, lambda x: 0.3 - x, lambda x: x * 0.3,
        lambda x: 0.3 * x, lambda x: x / 0.3, lambda x: -x, lambda x: x.neg(), lambda x: torch.neg(x),
        lambda x: torch.add(x, 2, alpha=0.3), lambda x: x.sub(2, alpha=0.3), lambda x: torch.rsub(x, 2, alpha=0.3),
        lambda x: torch.mul(x, 3), lambda x: torch.div(x, 3), lambda x: x.div(-0.7), lambda x: x.true_divide(3),
        lambda x: x * x.shape[-1] ** -0.5, lambda x: x / 0.0, lambda x: x**1, lambda x: x * True,
    ),
    "affine affine": (
        lambda x: x.mul(2).add_(1), lambda x: x.mul(2).sub_(1, alpha=0.5), lambda x: x.mul(2).div_(3),
        lambda x: x.add(1).mul_(3), lambda x: x.add(1).neg_(),
    ),
    "reciprocal": (lambda x: 1 / x, lambda x: x**-1, lambda x: x.reciprocal(), lambda x: torch.reciprocal(x)),
    "reciprocal affine": (lambda x: 2 / x, lambda x: 0 / x),
    "square": (lambda x: x**2, lambda x: x.pow(2.0), lambda x: torch.square(x)),
    "sqrt": (lambda x: x**0.5, lambda x: x.sqrt(), lambda x: torch.sqrt(x)),
    "rsqrt": (lambda x: x.rsqrt(), lambda x: x**-0.5),
    "pow": (lambda x: x**3, lambda x: x**0, lambda x: x.pow(-2), lambda x: x.pow(1.5), lambda x: x**11),
    "abs": (lambda x: x.abs(), lambda x: torch.absolute(x)),
    "clamp": (
        lambda x: x.clamp(0), lambda x: x.clamp(max=0.5), lambda x: torch.clip(x, -1, 1), lambda x: x.clamp_min(0.1),
        lambda x: torch.clamp_max(x, 0.1), lambda x: torch.clamp(x, 1, -1),
    ),
    "hardtanh": (lambda x: F.hardtanh(x), lambda x: F.relu6(x), nn.ReLU6(), nn.Hardtanh(-0.2, 1)),
    "affine hardtanh affine": (F.hardsigmoid, nn.Hardsigmoid()),
    "threshold": (lambda x: F.threshold(x, 0.5, 2), lambda x: torch.threshold(x, -1, 0.5), nn.Threshold(0, -1)),
    "selu": (torch.selu, nn.SELU()), "celu": (lambda x: torch.celu(x, 2), nn.CELU(-0.5)), "mish": (F.mish, nn.Mish()),
    "hardswish": (F.hardswish, nn.Hardswish()), "log_sigmoid": (F.logsigmoid, nn.LogSigmoid()),
    "sin": (torch.sin, lambda x: x.sin()), "cos": (torch.cos,), "exp": (torch.exp, lambda x: x.exp()),
    "expm1": (torch.expm1,), "log": (torch.log, lambda x: x.log()), "log1p": (torch.log1p,),
    "affine exp": (lambda x: x.mul(2).exp_(),), "affine clamp": (lambda x: (2 * x).clamp_(min=0),),
}  # fmt: skip
CASES = [
    pytest.param(nodes, function, id=f"{nodes}-{i}")
    for nodes, functions in WRITTEN.items()
    for i, function in enumerate(functions)
]
X = torch.tensor([[-4, -3, -1, -0.5], [-0.2, -0.0, 0, 0.1], [0.5, 1, 3, 7]], dtype=torch.float64)


@pytest.mark.parametrize(("nodes", "function"), CASES)
def test_what_is_written_means_what_torch_computes(nodes: str, function: Function) -> None:
    program = lower(nn.Sequential(Calls(function)), (4,), dtype=torch.float64)
    assert " ".join(node.op for node in program.nodes) == nodes
    torch.testing.assert_close(interpreter.run(program, [], X), function(X), rtol=1e-12, atol=1e-15, equal_nan=True)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x.clamp(x, 1), "for a bound"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounds ('floor')"),
        (lambda x: x.exp_(), "overwrites the model's input in place"),
        (lambda x: F.celu(x, 0.0), "alpha=0"),
    ],
)
def test_what_has_no_native_form_is_refused_with_a_reason(function: Function, says: str) -> None:
    with pytest.raises(Unsupported) as caught:
        lower(nn.Sequential(Calls(function)), (4,))
    assert says in str(caught.value)
