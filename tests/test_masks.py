"""Truth values that code makes of integers, and constants: what they come to, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpreter
from metafast.model.inputs import Inputs
from metafast.model.lowering import Unsupported, lower

D = torch.float64
Body = Callable[["Model", Tensor, Tensor], Any]


class Model(nn.Module):
    def __init__(self, forward: Body) -> None:
        super().__init__()
        self.embed, self.positions, self.padded = nn.Embedding(6, 4), nn.Embedding(5, 4), nn.Embedding(5, 4, 0)
        self.function = forward

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.function(self, x, n)


def lowered(model: nn.Module) -> Any:
    inputs = Inputs((((5,), torch.int64), ((), torch.int32)))
    return lower(model, (6,), dtype=D, inputs=inputs)


NATIVE: dict[str, Body] = {
    "less": lambda m, x, n: m.embed(x) * (torch.arange(x.shape[1])[None, :] < n[:, None]).unsqueeze(-1),
    "at most, turned": lambda m, x, n: m.embed(x) * (n.unsqueeze(1) <= torch.arange(5)).to(D)[:, :, None],
    "greater": lambda m, x, n: m.embed(x) * torch.gt(x, 2).unsqueeze(2),
    "at least": lambda m, x, n: m.embed(x) * x.ge(n.unsqueeze(1)).unsqueeze(2),
    "equal": lambda m, x, n: m.embed(x) * (x == n.unsqueeze(1)).unsqueeze(2),
    "different from a number": lambda m, x, n: m.embed(x) * (x != 3).unsqueeze(2),
    "numbers of either sign": lambda m, x, n: m.embed(x) * (m.embed(x) > 0) + (m.embed(x) < m.embed(x.flip(1))),
    "numbers, in turn": lambda m, x, n: (
        m.embed(x) * torch.le(0.1 * m.embed(x), m.embed(x).square()) + (m.embed(x) >= x.unsqueeze(2))
    ),
    "equal numbers": lambda m, x, n: m.embed(x) * (m.embed(x) == m.embed(x.flip(1))) + (m.embed(x) != 0.5),
    "not a number": lambda m, x, n: torch.stack(
        [f(m.embed(x) / 0 * 0, 0).to(D) for f in (torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne)]
    ).sum(0),
    "not, and, or": lambda m, x, n: m.embed(x) * (~((x > 1) & (x != 4)) | (x == 3)).unsqueeze(2),
    "by names": lambda m, x, n: m.embed(x) * torch.logical_or((x < 2).logical_not(), x.eq(4)).unsqueeze(2),
    "fill": lambda m, x, n: m.embed(x).masked_fill((x == 0).unsqueeze(-1), -1e9),
    "fill with -inf": lambda m, x, n: m.embed(x).masked_fill(x.bool().unsqueeze(-1), -torch.inf),
    "leave out what is not finite": lambda m, x, n: (m.embed(x) / 0).masked_fill((x < 9).unsqueeze(-1), 0.5),
    "choose": lambda m, x, n: torch.where((n < 3).view(-1, 1, 1), m.embed(x), m.embed(x.flip(1))),
    "choose numbers": lambda m, x, n: torch.where((x > 2).unsqueeze(2), m.embed(x), 0.25),
    "count": lambda m, x, n: m.embed(x).sum(1) / (x != 0).sum(1).clamp(min=1).unsqueeze(-1),
    "causal": lambda m, x, n: (m.embed(x) @ m.embed(x).transpose(1, 2)).masked_fill(
        torch.arange(5)[None, :] > torch.arange(5)[:, None], -1e9
    ),
    "positions": lambda m, x, n: m.embed(x) + m.positions(torch.arange(x.size(1))),
    "positions in a row": lambda m, x, n: m.embed(x) + m.positions(torch.arange(5).unsqueeze(0)),
    "positions from the end": lambda m, x, n: m.embed(x) + m.positions(4 - torch.arange(5)),
    "every other": lambda m, x, n: m.embed(x)[:, torch.arange(0, 5, 2)],
    "numbers": lambda m, x, n: m.embed(x) * (torch.arange(5, dtype=D) / 5).unsqueeze(1),
    "a loop": lambda m, x, n: sum(m.embed(x[:, i]) for i in torch.arange(3)),
    "a list": lambda m, x, n: sum(m.embed(x[:, i]) for i in torch.arange(1, 3).tolist()),
    "its shape": lambda m, x, n: m.embed(x) * torch.arange(3).shape[0] * len(torch.arange(2)),
}


@pytest.mark.parametrize("name", NATIVE)
def test_what_code_makes_of_integers_is_what_torch_makes(name: str) -> None:
    torch.manual_seed(0)
    model = Model(NATIVE[name]).to(D)
    x, n = torch.randint(6, (7, 5)), torch.randint(6, (7,), dtype=torch.int32)
    program = lowered(model)
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    row = torch.cat([x, n[:, None]], 1).to(D)
    made = interpreter.run(program, [tensors[p.name] for p in program.parameters], row)
    assert torch.equal(made, model(x, n))


REFUSED: list[tuple[str, Body, str]] = [
    ("a mask of numbers", lambda m, x, n: m.embed(x).masked_fill(x.unsqueeze(2), 0), "torch.int64 for a mask"),
    ("an infinite fill", lambda m, x, n: m.embed(x).masked_fill((x == 0).unsqueeze(2), torch.inf), "are finite"),
    ("a larger mask", lambda m, x, n: m.embed(x[:, :1]).masked_fill((x == 0).unsqueeze(2), 0), "more elements"),
    ("a choice of integers", lambda m, x, n: m.embed(torch.where(x > 2, x, n[:, None])), "chooses among torch.int64"),
    ("computed rows", lambda m, x, n: m.embed((x > 2).long()), "integers that are computed"),
    ("counted rows", lambda m, x, n: m.embed((x > 2).sum(1)), "integers that are computed"),
    ("a position too many", lambda m, x, n: m.embed(x)[:, :1] + m.positions(torch.arange(6)), "out of range"),
    ("positions with padding", lambda m, x, n: m.embed(x) + m.padded(torch.arange(5)), "padding_idx"),
    ("another type", lambda m, x, n: m.embed(x) * torch.arange(4).float(), "makes a tensor of torch.float32"),
    ("in place", lambda m, x, n: m.embed(x) * torch.arange(4).add_(1), "in place"),
]


@pytest.mark.parametrize(("body", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_has_no_native_form_is_refused(body: Body, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        lowered(Model(body).to(D))
