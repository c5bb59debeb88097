"""Forward code as people publish it lowers, and means what it says."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpreter
import metafast as mf
from idioms import IDIOMS, fc
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


@pytest.mark.parametrize(
    "name", ["LeNet", "timm", "DenseNet", "patches", "a loop over time", "heads by name", "rows of all examples"]
)
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


class Either(nn.Module):
    """Takes images, sequences and vectors, by the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.body, self.head = nn.Conv2d(1, 2, 3), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = self.conv(x).relu()
        n, *sizes = x.shape
        rows = n * sizes[0] if len(sizes) == 2 else n
        x = torch.lgamma(1 + self.body(x.reshape(rows, -1)).square())  # has no native form
        x = x.view(n, -1, 8)
        return self.head(x.view(rows, 8)).view(n, -1, 3).mean(1)


@pytest.mark.parametrize(("cast", "dtype"), [("float", torch.float32), ("double", torch.float64)])
def test_a_cast_to_what_a_tensor_is_does_nothing(cast: str, dtype: torch.dtype) -> None:
    model = fc(lambda m, x: m.fc(getattr(x, cast)()))().to(dtype)
    assert [node.op for node in lower(model, (6,), dtype=dtype).nodes] == ["linear"]


def gradients(model: nn.Module, example: tuple[int, ...], backend: str, **options: object) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 4, *s, dtype=torch.float64, generator=generator) for s in (example, (3,)))
    maml = mf.MAML(model, 0.1, 2, "mse", backend=backend, **options)  # type: ignore[arg-type]
    return list(maml.meta_gradient((x, y), (x, y))[1])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.pair = nn.Linear(8, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return self.fc(x)
        if x.shape[1] == 2:
            return self.pair(x.flatten(1))
        return sum((self.fc(x[:, i]) for i in range(x.shape[1])), self.fc(x[:, 0]))


def test_a_plan_is_for_one_shape() -> None:
    torch.manual_seed(0)
    model = Branching().double()
    for example in ((8,), (2, 8), (3, 8), (8,), (2, 8)):
        ours, theirs = (gradients(model, example, backend) for backend in ("native", "torch"))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


def test_a_module_that_is_no_submodule_is_watched() -> None:
    torch.manual_seed(0)
    model = fc(lambda m, x: m.parts[0](m.fc(x)), 8, 3)().double()
    model.parts = [Bent()]  # type: ignore[assignment]
    for slope in (0.5, 2.0, 0.1):
        model.parts[0].slope = slope
        ours, theirs = (gradients(model, (8,), backend) for backend in ("native", "torch"))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("example", [(8,), (3, 8), (1, 4, 4)])
def test_a_cut_goes_through_code_that_decides_by_shapes(example: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Either().double()

    def adapts(name: str) -> bool:
        return name.startswith("head")

    maml = mf.MAML(model, 0.1, 2, "mse", adapt_params=adapts, strict=True)  # behind the cut it is native
    x = torch.randn(2, 4, *example, dtype=torch.float64)
    assert "native behind" in maml._plans().plan("x", x).words
    ours, theirs = (gradients(model, example, backend, adapt_params=adapts) for backend in ("auto", "torch"))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
