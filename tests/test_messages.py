"""What metafast says when it refuses or warns can be understood by someone who knows torch and not metafast."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from metafast.model.builder import Unsupported
from metafast.model.lowering import lower
from models import Cumulative


class Of(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.fc(x))


#: what a layer computes, and what is said of it
ARITHMETIC: list[tuple[Callable[[Any, Tensor], Any], str]] = [
    (lambda m, h: h // 2, "the operator // in Of divides a tensor computed from the input by the number 2"),
    (lambda m, h: 2**h, "the operator ** in Of raises the number 2 to a tensor computed from the input, which has"),
    (lambda m, h: h**h, "the operator ** in Of raises a tensor computed from the input to a tensor computed from"),
    (lambda m, h: h * 2j, "the operator * in Of multiplies a tensor computed from the input by 2j"),
    (lambda m, h: h.erfinv(), "erfinv() in Of has no native form"),
    (lambda m, h: h % 2, "the operator % in Of has no native form"),
]


@pytest.mark.parametrize(("function", "says"), ARITHMETIC, ids=[says for _, says in ARITHMETIC])
def test_arithmetic_is_named_as_it_was_written(function: Callable[[Any, Tensor], Any], says: str) -> None:
    with pytest.raises(Unsupported) as caught:
        lower(nn.Sequential(nn.ReLU(), Of(function)), (4,))
    assert str(caught.value).startswith("layer '1': ") and says in str(caught.value)
    assert "no native form" in str(caught.value)


def test_a_module_named_by_a_number_is_called_a_layer(warned: list[warnings.WarningMessage]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    batch = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    mf.MAML(model)(batch, batch)
    assert "layer '1' (BatchNorm1d) is in eval mode and its running statistics" in str(warned[0].message)
    mf.MAML(nn.Sequential(nn.Linear(4, 3), Cumulative(3)))(batch, batch)
    assert "because of layer '1': logcumsumexp() in Cumulative has no native form;" in str(warned[1].message)
    mf.MAML(nn.BatchNorm1d(4).eval())(batch, (batch[0], batch[1]))
    assert "the model (BatchNorm1d) is in eval mode" in str(warned[2].message)
    with pytest.raises(ValueError, match=r"N=1, but layer '1' \(batch norm\) in training mode"):
        mf.MAML(model.train())(tuple(t[:, :1] for t in batch), batch)


EXECUTED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.fc(x)) if isinstance(x, torch.Tensor) else x
"""


def test_a_class_made_by_exec_runs_natively() -> None:
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "__builtins__": __builtins__}
    exec(EXECUTED, scope)
    assert "__name__" not in scope
    model = scope["Net"]()
    batch = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
    mf.MAML(nn.Sequential(scope["Net"](), Cumulative(3)), backend="torch")(batch, batch)
    found = mf.MAML(model, strict=True)(batch, batch)
    expected = mf.MAML(nn.Sequential(model.fc, nn.ReLU()), strict=True)(batch, batch)
    assert torch.equal(found.loss, expected.loss)
    assert "isinstance" not in scope and "len" not in scope


def test_code_that_decides_by_a_tensor_is_told_so_in_words() -> None:
    with pytest.raises(Unsupported, match=r"layer '0': Of cannot be traced: its code may take another way for other"):
        lower(nn.Sequential(Of(lambda m, h: h if h.sum() > 0 else -h)), (4,))
    with pytest.raises(Unsupported, match="Of cannot be traced: KeyError 'head'"):
        lower(Of(lambda m, h: {}["head"]), (4,))


PAD = r".*differ in shape.*pad the smaller ones.*weight 0 in \(x, y, weights\)"
#: what is given for the support inputs, and what is advised
INPUTS: dict[str, tuple[Any, str]] = {
    "ragged tensors": ([torch.zeros(5, 4), torch.zeros(3, 4)], r"it is a list.* in shape \(\[5, 4\], \[3, 4\]\)"),
    "a tuple of arrays": ((np.zeros((5, 4)), np.zeros((3, 4))), "it is a tuple whose" + PAD),
    "ragged arrays": ([np.zeros((5, 4)), np.zeros((3, 4))], PAD),
    "an array of arrays": (np.array([np.zeros((5, 4)), np.zeros((3, 4))], dtype=object), PAD),
    "ragged numbers": ([[[1.0], [2.0]], [[3.0]]], PAD),
    "ragged further in": ([[torch.zeros(4), torch.zeros(4)], [torch.zeros(4)]], PAD),
    "tensors of one shape": ([torch.zeros(5, 4), torch.zeros(5, 4)], "it is a list; use torch.stack$"),
    "an array": (np.zeros((2, 5, 4)), "it is a numpy.ndarray; use torch.as_tensor$"),
    "numbers": ([[[1.0], [2.0]]], "it is a list; use torch.as_tensor$"),
    "text": ("xs", "it is a str$"),
    "nothing": (None, "it is a NoneType$"),
}  # fmt: skip


@pytest.mark.parametrize(("x", "advice"), INPUTS.values(), ids=INPUTS)
def test_advice_for_what_is_no_tensor_works(x: Any, advice: str) -> None:
    maml, y = mf.MAML(nn.Linear(4, 3)), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"(?s)support x must be a torch.Tensor; {advice}"):
        maml((x, y), (torch.randn(2, 5, 4), y))
    if "as_tensor" in advice:
        torch.as_tensor(x)
    if "stack" in advice:
        torch.stack(x)


def test_axes_are_named() -> None:
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected \[T, N, ...\]: tasks, examples, ..."):
        mf.MAML(nn.Linear(4, 3))((torch.randn(5), y), (torch.randn(5), y))
