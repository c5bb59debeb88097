"""A tuple of tensors as x: the model is called with them as its arguments. Rows of such are in rows_inputs.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from judge import assert_close
from models_of_inputs import Bilinear, ImageAndVector, Masked, TwoTowers

D = torch.float64


def towers(n: int = 3) -> tuple[tuple[Tensor, Tensor], Tensor]:
    return (torch.randint(6, (2, n)), torch.randint(5, (2, n))), torch.randn(2, n, dtype=D)


def learner(**options: Any) -> mf.MAML:
    torch.manual_seed(0)
    settings = dict(lr=0.3, steps=2, loss="mse", backend="native")
    return mf.MAML(TwoTowers().double(), **{**settings, **options})


def test_a_repeated_call_takes_the_short_way_to_the_same_numbers() -> None:
    maml = learner()
    for _ in range(3):
        support, query = towers(), towers(4)
        out = maml(support, query)
        expected = oracle.unroll(maml.model, "mse", support, query, lr=0.3, steps=2)
        assert_close(out._asdict(), {name: getattr(expected, name) for name in out._fields})
        first = torch.autograd.grad(out.loss, [*maml.parameters()])
        second = torch.autograd.grad(expected.loss, [*maml.parameters()])
        assert_close(dict(enumerate(first)), dict(enumerate(second)))
    assert maml._repeat is not None
    assert maml._repeat.gradient(maml, towers(), towers(4)) is not None
    (user, item), y = towers(4)
    assert maml._repeat.gradient(maml, towers(), ((user, item.int()), y)) is None


def test_products_and_gradients_at_any_point_are_those_of_the_loop() -> None:
    model, batch = learner().model, towers()
    at = {name: torch.stack([p.detach(), p.detach() + 0.1]).requires_grad_() for name, p in model.named_parameters()}
    v = {name: torch.randn_like(p) for name, p in at.items()}
    expected = oracle.hvp(model, "mse", at, batch, v)
    for _ in range(2):
        assert_close(mf.hvp(model, at, batch, v, backend="native"), expected)
    losses, slopes = mf.grad(model, at, batch, backend="native")
    assert_close(
        {"l": losses, **slopes},
        dict(zip("l", oracle.gradient(model, "mse", at, batch)[:1], strict=True))
        | oracle.gradient(model, "mse", at, batch)[1],
    )


@pytest.mark.parametrize("build", [ImageAndVector, Bilinear, Masked, TwoTowers])
def test_verify(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = {
        ImageAndVector: (torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4, 3)),
        Bilinear: (torch.randint(5, (2, 4)), torch.randn(2, 4, 2)),
        Masked: (torch.randint(6, (2, 4, 4)), torch.rand(2, 4, 4) < 0.7),
        TwoTowers: (torch.randint(6, (2, 4)), torch.randint(5, (2, 4))),
    }[build]
    y = torch.randn(2, 4) if build is TwoTowers else torch.randn(2, 4, 2)
    report = mf.verify(
        mf.MAML(build(), loss="mse", steps=2, backend="torch" if build is Bilinear else "native"), (x, y), (x, y)
    )
    report.raise_if_wrong()
    floating = {f"x{kind}[{i}]" for kind in "sq" for i, part in enumerate(x) if part.is_floating_point()}
    assert {name for name in report.errors if name.startswith("x")} == floating
    assert all(report.errors[name] <= 1e-9 for name in floating)


def test_explain_takes_their_shapes() -> None:
    told = mf.explain(ImageAndVector(), ((2, 4, 2, 3, 3), (2, 4, 3)), "mse")
    assert told.native
    assert "conv2d" in str(told)
    assert mf.explain(TwoTowers(), towers()[0], "mse").native
    assert "Bilinear has no native form" in mf.explain(Bilinear(), (torch.zeros(2, 4).long(), (2, 4, 2)), "mse").reason


def test_what_has_no_native_form_runs_on_torch_with_one_warning() -> None:
    x, y = (torch.randint(5, (2, 4)), torch.randn(2, 4, 2, dtype=D)), torch.randn(2, 4, 2, dtype=D)
    torch.manual_seed(0)
    model = Bilinear().double()
    with pytest.warns(UserWarning, match="Bilinear has no native form"):
        out = mf.MAML(model, lr=0.1, steps=2, loss="mse")((x, y), (x, y))
    assert_close({"loss": out.loss}, {"loss": oracle.unroll(model, "mse", (x, y), (x, y), lr=0.1, steps=2).loss})


MISTAKES: list[tuple[str, Any, type[Exception], str]] = [
    (
        "another N",
        lambda a, b: (a, b[:, :2]),
        ValueError,
        r"x\[1\] has shape \[2, 2\]; .* = \[2, 3\] as support x\[0\] has",
    ),
    ("no examples", lambda a, b: (a[:, :0], b[:, :0]), ValueError, r"support x\[0\] has shape \[2, 0\]: no examples"),
    ("no axis of examples", lambda a, b: (a, b[0]), ValueError, r"x\[1\] has shape \[3\]; expected \[T, N, ...\]"),
    ("no tensor", lambda a, b: (a, b.tolist()), TypeError, r"support x\[1\] must be a torch.Tensor; it is a list"),
    ("a list", lambda a, b: [a, b], TypeError, r"support x must be a torch.Tensor; it is a list"),
    ("no such row", lambda a, b: (a, b + 5), IndexError, r"x\[1\] holds the index \d; expected 0 to 4"),
    ("another type", lambda a, b: (a, b.float()), TypeError, r"x\[1\] has dtype torch.float32; expected torch.*64"),
    ("too many", lambda a, b: (a, b, b), ValueError, r"takes 3 positional arguments but 4 were given"),
]


@pytest.mark.parametrize(("spoil", "error", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes_are_named(spoil: Any, error: type[Exception], words: str) -> None:
    (x, y), query = towers(), towers()
    with pytest.raises(error, match=words):
        learner()((spoil(*x), y), query)


def test_a_query_of_another_kind_is_named() -> None:
    maml, (x, y) = learner(), towers()
    maml((x, y), (x, y))
    for given, words in [
        (x[0], r"query x is one tensor; expected a tuple of 2"),
        ((*x, x[0]), r"query x is 3 tensors; expected a tuple of 2"),
        ((x[0], x[1][..., None]), r"query x\[1\] has shape \[2, 3, 1\]; expected examples of shape \[\]"),
        ((x[0][:1], x[1][:1]), r"query x has shape \[1, 3\], support x \[2, 2\]|expected the same number of tasks"),
    ]:
        with pytest.raises(ValueError, match=words):
            maml((x, y), (given, y[:1] if isinstance(given, tuple) and len(given[0]) == 1 else y))
    with pytest.raises(TypeError, match=r"query x\[1\] has dtype torch.int32; expected torch.int64"):
        maml((x, y), ((x[0], x[1].int()), y))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_integers_that_the_type_does_not_count_are_named(backend: str) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(torch.cat([a, b.to(a.dtype)], 1))

    x, y = (torch.randn(1, 2, 1), torch.tensor([[[3], [2**24 + 1]]])), torch.zeros(1, 2, 1)
    with pytest.raises(
        ValueError, match=r"support x\[1\] holds 16777217; .* at most 16777216, which torch.float32 counts"
    ):
        mf.MAML(Large(), loss="mse", steps=1, backend=backend)((x, y), (x, y))
