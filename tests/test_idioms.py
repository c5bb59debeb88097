"""Forward code as people publish it lowers, and means what it says."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import interpreter
import metafast as mf
from idioms import IDIOMS
from metafast.model.lowering import Unsupported, lower
from metafast.model.program import Program

NATIVE = [name for name, idiom in IDIOMS.items() if not idiom.lacks]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = IDIOMS[name].build().double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.track_running_stats = False
    return model


def check_meaning(model: nn.Module, program: Program, example: tuple[int, ...]) -> None:
    named = dict(model.named_buffers()) | dict(model.named_parameters())
    for n in (1 if not any(node.op == "batch_norm" for node in program.nodes) else 3, 2, 5):
        x = torch.randn(n, *example, dtype=torch.float64)
        expected = copy.deepcopy(model)(x.clone())
        meant = interpreter.run(program, [named[p.name] for p in program.parameters], x).reshape(expected.shape)
        torch.testing.assert_close(meant, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NATIVE)
def test_code_as_it_is_published_is_native(name: str) -> None:
    model, example = made(name), IDIOMS[name].example
    program = lower(model, example, dtype=torch.float64)
    check_meaning(model, program, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert mf.explain(model, (2, 3, *example)).native


@pytest.mark.parametrize("name", [name for name in IDIOMS if name not in NATIVE])
def test_what_is_lacking_is_named(name: str) -> None:
    """Until it is there: then the code is native and right."""
    model, idiom = made(name), IDIOMS[name]
    try:
        program = lower(model, idiom.example, dtype=torch.float64)
    except Unsupported as unsupported:
        with pytest.raises(Unsupported, match=idiom.lacks):
            raise unsupported from None
    else:
        check_meaning(model, program, idiom.example)


@pytest.mark.parametrize("name", ["LeNet", "timm", "DenseNet", "patches", "a loop over time", "heads by name"])
def test_its_meta_gradient_is_that_of_torch(name: str) -> None:
    model, example = made(name), IDIOMS[name].example

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(2, n, *example, dtype=torch.float64)
        return x, torch.randn(2, *model(x[0]).shape, dtype=torch.float64)

    support, query = draw(4), draw(3)
    ours, theirs = (
        mf.MAML(model, 0.05, 2, "mse", backend=backend, strict=backend != "torch").meta_gradient(support, query)[1]
        for backend in ("auto", "torch")
    )
    assert any(g.abs().max() > 1e-3 for g in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
