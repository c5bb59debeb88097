"""Inputs that are integers: which models read them natively, and what becomes of an index that names no row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metafast as mf
import oracle
from forms import of
from judge import assert_close
from metafast.engine import device
from metafast.model.lowering import Unsupported, lower
from metafast.planning.reading import Limits
from models import seq
from models_of_inputs import Columns, Tokens


def table(**options: Any) -> Callable[[], nn.Module]:
    return lambda: seq(nn.Embedding(5, 3, **options), nn.Linear(3, 2))


def calling(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return of(function, table=lambda: nn.Embedding(5, 3), fc=lambda: nn.Linear(4, 2))


REFUSED: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("a linear layer", lambda: nn.Linear(4, 2), "Linear"),
    ("arithmetic", calling(lambda m, x: m.table(x + x)), "works on torch.int64"),
    ("a sum", calling(lambda m, x: m.table(x.sum(1, keepdim=True))), "works on torch.int64"),
    ("a function", calling(lambda m, x: m.table(x).sum(1) + torch.tanh(x)[:, :3]), "works on torch.int64"),
    ("integers joined to numbers", calling(lambda m, x: torch.cat([x, x.float()], 1)), "works on torch.int64"),
    ("a broadcast", calling(lambda m, x: (x.unsqueeze(1) + x.unsqueeze(2)).flatten(1)), "works on torch.int64"),
    ("another type", calling(lambda m, x: m.fc(x.double())), "casts"),
    ("fewer bits", calling(lambda m, x: m.table(x.int())), "casts"),
    ("an output", calling(lambda m, x: x.flip(1)), "returns integers"),
    ("classes that the data say", calling(lambda m, x: F.one_hot(x).flatten(1).float()), "from the data"),
    (
        "a matrix for a table",
        calling(lambda m, x: m.fc(x.float())[:, None, :1] + F.embedding(x, m.fc.weight)),
        "shares the parameter 'fc.weight'",
    ),
    ("computed integers", calling(lambda m, x: m.table(F.one_hot(x, 9))[:, :, 0]), "integers that are computed"),
    ("a padding and a number", calling(lambda m, x: m.table(F.pad(x, (1, 1)) - 1)), "integers that are computed"),
    ("max_norm", table(max_norm=1.0), "max_norm"),
    ("frequencies", table(scale_grad_by_freq=True), "scale_grad_by_freq"),
    ("a sparse gradient", table(sparse=True), "sparse"),
    ("a bag with padding", lambda: nn.EmbeddingBag(5, 3, padding_idx=0), "padding_idx"),
    ("a greatest of a bag", lambda: nn.EmbeddingBag(5, 3, mode="max"), "mode='max'"),
]


@pytest.mark.parametrize(("build", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_does_not_embed_integers_is_refused(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        lower(build(), (4,), given=torch.int64)


def test_numbers_choose_no_rows() -> None:
    with pytest.raises(Unsupported, match=r"reads torch.float32; native are int64 and int32"):
        lower(table()(), (4,))


def test_a_table_of_more_rows_than_float32_counts_is_refused() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(x, 2**24 + 1).float()

    with pytest.raises(Unsupported, match=r"has 16777217 rows; native are at most 16777216"):
        lower(Large(), (), given=torch.int64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_other_integers_give_what_torch_gives(dtype: torch.dtype) -> None:
    build = of(
        lambda m, x: m.body(m.table(x.long()).mean(1)), table=lambda: nn.Embedding(5, 3), body=lambda: nn.Linear(3, 2)
    )
    model = build().double()
    x, y = torch.randint(5, (2, 3, 4)).to(dtype), torch.randn(2, 3, 2, dtype=torch.float64)
    out = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend="native")((x, y), (x, y))
    expected = oracle.unroll(model, "mse", (x, y), (x, y), lr=0.1, steps=2)
    assert_close({"logits": out.logits}, {"logits": expected.logits})


# ---------------------------------------------------------------------------------------- indices that name no row


def columns(*values: int) -> Tensor:
    return torch.tensor(values).expand(2, 3, 3)


def calls(model: nn.Module, x: Tensor, wrong: Tensor) -> dict[str, tuple[str, Callable[[], Any]]]:
    """name -> the argument that holds what is ``wrong``, and the call."""
    y = torch.zeros(2, 3, 2)
    maml = mf.MAML(model, loss="mse", steps=1, backend="native")
    params = {name: p.detach() for name, p in model.named_parameters()}
    v = {name: torch.ones(2, *p.shape) for name, p in params.items()}
    good, bad = (x, y), (wrong, y)
    for _ in range(2):  # the second is repeated on the short way, and so is what comes next
        maml(good, good)
        mf.hvp(model, params, good, v)
    gradient = mf.MAML(model, loss="mse", steps=1, backend="native")
    gradient.meta_gradient(good, good)
    return {
        "forward": ("support x", lambda: maml(bad, good)),
        "query": ("query x", lambda: maml(good, bad)),
        "meta_gradient": ("query x", lambda: gradient.meta_gradient(good, bad)),
        "stepwise": ("support x", lambda: maml((wrong[:, None], y[:, None]), good, stepwise=True)),
        "adapt": ("support x", lambda: maml.adapt(bad)),
        "predict": ("x", lambda: maml.predict({}, wrong)),
        "grad": ("batch x", lambda: mf.grad(model, params, bad, backend="native")),
        "hvp": ("batch x", lambda: mf.hvp(model, params, bad, v)),
    }


@pytest.mark.parametrize("name", ["forward", "query", "meta_gradient", "stepwise", "adapt", "predict", "grad", "hvp"])
def test_an_index_out_of_range_is_named(name: str) -> None:
    where, call = calls(Columns(), columns(4, 4, -9), columns(4, 5, 9))[name]
    with pytest.raises(IndexError, match=rf"^{where} holds the index 5; expected 0 to 4.*5 rows"):
        call()
    where, call = calls(Columns(), columns(4, 4, -9), columns(-1, 4, 0))[name]
    with pytest.raises(IndexError, match=rf"^{where} holds the index -1; expected 0 to 4.*5 rows"):
        call()


def test_one_table_for_all() -> None:
    x, y = torch.tensor([[[0, 5, 3, 2]]]), torch.zeros(1, 1, 2)
    maml = mf.MAML(Tokens(), loss="mse", steps=1, backend="native")
    maml((x, y), (x, y))
    with pytest.raises(IndexError, match=r"support x holds the index 6; expected 0 to 5, as the table .* has 6 rows"):
        maml((x + 1, y), (x, y))


def test_a_repeated_call_reads_new_indices() -> None:
    torch.manual_seed(0)
    model = Tokens().double()
    maml = mf.MAML(model, lr=0.3, steps=2, loss="mse", backend="native")
    for _ in range(3):
        support, query = ((torch.randint(6, (2, n, 4)), torch.randn(2, n, 2, dtype=torch.float64)) for n in (3, 5))
        out = maml(support, query)
        expected = oracle.unroll(model, "mse", support, query, lr=0.3, steps=2)
        assert_close(out._asdict(), {name: getattr(expected, name) for name in out._fields})
    assert maml._repeat is not None


def test_a_query_of_another_type_is_named() -> None:
    x, y = torch.zeros(1, 1, 4, dtype=torch.int64), torch.zeros(1, 1, 2)
    maml = mf.MAML(Tokens(), loss="mse", steps=1, backend="native")
    with pytest.raises(TypeError, match=r"query x has dtype torch.float32; expected torch.int64"):
        maml((x, y), (x.float(), y))


def test_verify_and_explain_know_integers() -> None:
    torch.manual_seed(0)
    batch = torch.randint(6, (2, 3, 4)), torch.randn(2, 3, 2)
    report = mf.verify(mf.MAML(Tokens(), loss="mse", steps=2), batch, batch)
    assert report.engine == "native"
    report.raise_if_wrong()
    assert mf.explain(Tokens(), batch[0], "mse").native
    assert "embedding" in str(mf.explain(Tokens(), batch[0]))


@pytest.mark.parametrize("index", [-1, 6, 2**40])
def test_on_a_gpu_an_index_out_of_range_makes_its_task_nan(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the host does not read there; METAFAST_CHECK=1 asks for that."""
    pytest.importorskip("metafast._emulated", reason="built without METAFAST_EMULATE=1")
    monkeypatch.setattr(Limits, "check", lambda *_: None)
    x, y = torch.randint(6, (3, 4, 4)), torch.randn(3, 4, 2, dtype=torch.float64)
    wrong = x.clone()
    wrong[1, 2, 3] = index
    maml = mf.MAML(Tokens().double(), lr=0.1, steps=1, loss="mse", backend="native")
    for style in ("persistent", "batched"):
        with device.emulated(style):
            for out in (maml((x, y), (wrong, y)), maml((wrong, y), (x, y))):
                assert out.task_loss.isnan().tolist() == [False, True, False]
