"""Sequences of several lengths, and what chooses a step of each. Rows of such are in rows_recurrent.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import interpreter
import metafast as mf
from metafast.model.inputs import Inputs
from metafast.model.lowering import Unsupported, lower
from models_recurrent import LastSteps, PackedState

Body = Callable[[nn.GRU, Tensor, Tensor], Any]


class Model(nn.Module):
    def __init__(self, forward: Body, **settings: Any) -> None:
        super().__init__()
        self.function, self.body = forward, nn.GRU(2, 3, **{"batch_first": True, **settings})

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.function(self.body, x, lengths)


def lowered(body: Body, **settings: Any) -> Any:
    return lower(Model(body, **settings), (9,), inputs=Inputs((((4, 2), torch.float32), ((), torch.int64))))


def packed(x: Tensor, lengths: Any, **settings: Any) -> rnn.PackedSequence:
    return rnn.pack_padded_sequence(x, lengths, **{"batch_first": True, "enforce_sorted": False, **settings})


def padded(p: Any, **settings: Any) -> Tensor:
    return rnn.pad_packed_sequence(p, batch_first=True, **settings)[0]


REFUSED: list[tuple[str, Body, str]] = [
    ("sorted ones", lambda m, x, n: m(packed(x, n, enforce_sorted=True))[1][0], "enforce_sorted=False"),
    ("another order", lambda m, x, n: m(packed(x, n, batch_first=False))[1][0], r"sequences \[L, N, C\]"),
    ("real lengths", lambda m, x, n: m(packed(x, x[:, 0, 0]))[1][0], "reads torch.float32; native are int64"),
    ("lengths of a part", lambda m, x, n: m(packed(x, n.view(-1, 1)))[1][0], "for the lengths"),
    ("the longest", lambda m, x, n: padded(m(packed(x, n))[0]), "as long as the longest of the examples"),
    ("its size", lambda m, x, n: x[:, : padded(m(packed(x, n))[0]).shape[1]].mean(1), "as long as the longest"),
    ("its mean", lambda m, x, n: padded(m(packed(x, n))[0]).mean(1), "as long as the longest"),
    ("more steps", lambda m, x, n: padded(m(packed(x, n))[0], total_length=5), "native with total_length=4"),
    ("the data alone", lambda m, x, n: m(packed(x, n).data)[1][0], "'data' of a packed sequence"),
    ("another layer", lambda m, x, n: torch.tanh(packed(x, n)), "a packed sequence"),
    ("other examples", lambda m, x, n: x[torch.arange(1, len(x)), n], r"native for the numbers of the examples"),
    ("steps of another axis", lambda m, x, n: x[:, torch.arange(len(x))], "chooses by the numbers of examples"),
    ("a step of integers", lambda m, x, n: x[torch.arange(len(x)), n, n], "chooses by the numbers of examples"),
    ("a gather of examples", lambda m, x, n: x.gather(0, n.view(-1, 1, 1)), r"along axis 0 by \[N, 1, 1\]"),
    ("a gather of too many", lambda m, x, n: x.gather(1, n.view(-1, 1, 1).expand(-1, 1, 3)), r"by \[N, 1, 3\]"),
]


@pytest.mark.parametrize(("body", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_has_no_native_form_is_refused(body: Body, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        lowered(body)


def test_gather_takes_parts_of_other_axes() -> None:
    program = lowered(lambda m, x, n: x.gather(2, n.view(-1, 1, 1).expand(-1, 3, 2)) + 0 * m(x)[0][:, :3, :2])
    x, n = torch.randn(5, 4, 2), torch.randint(2, (5,))
    row = torch.cat([x.flatten(1), n[:, None]], 1)
    model = nn.GRU(2, 3)
    made = interpreter.run(program, [*model.parameters()], row)
    assert torch.equal(made, x.gather(2, n.view(-1, 1, 1).expand(-1, 3, 2)))


def calls(model: nn.Module, x: tuple[Tensor, Tensor], wrong: int) -> Callable[[], Any]:
    maml, y = mf.MAML(model, loss="mse", steps=1, backend="native"), torch.zeros(2, 3, 2)
    maml((x, y), (x, y))
    bad = x[1].clone()
    bad[1, 2] = wrong
    return lambda: maml((x, y), ((x[0], bad), y))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_length_that_there_is_not_is_named(wrong: int) -> None:
    """The model adds 1."""
    call = calls(PackedState(nn.RNN), (torch.randn(2, 3, 3, 2), torch.randint(3, (2, 3))), wrong)
    with pytest.raises(IndexError, match=rf"query x\[1\] holds the index {wrong}; expected 0 to 2, .* has 3 rows"):
        call()


def test_a_step_may_be_counted_from_the_end_as_in_torch() -> None:
    """By indexing, not by gather: LastSteps does both with more and more - 1."""
    torch.manual_seed(0)
    model = LastSteps().double()
    x = torch.randint(5, (2, 3, 4)), torch.zeros(2, 3, dtype=torch.int64)  # lengths - 2 is -1
    batch = x, torch.randn(2, 3, 2, dtype=torch.float64)
    mf.verify(mf.MAML(model, loss="mse", steps=1, backend="native"), batch, batch).raise_if_wrong()
    with pytest.raises(IndexError, match=r"query x\[1\] holds the index -1; expected 0 to 3"):
        calls(LastSteps(), x, -1)()


def test_tracing_leaves_torch_as_it_was() -> None:
    before = {name: getattr(module, name) for module in (rnn, torch) for name in dir(module)}
    lowered(lambda m, x, n: m(packed(x, n))[1][0])
    after = {name: getattr(module, name) for module in (rnn, torch) for name in dir(module)}
    assert all(after[name] is before[name] for name in before if callable(before[name]))
