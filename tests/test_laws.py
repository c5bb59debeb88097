"""Every law for every row; and that the laws can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import judge
from judge import Case
from law import Law
from laws import LAWS
from rows import BY_NAME, ROWS

CASES = [(law, case) for law in LAWS for case in law.cases(ROWS, "cpu")]


def label(value: object) -> str:
    if isinstance(value, Law):
        return value.name
    assert isinstance(value, Case)
    return f"{value.row.name}-{str(value.dtype).removeprefix('torch.')}-{value.backend}-{value.device}"


@pytest.mark.parametrize(("law", "case"), CASES, ids=label)
def test_law(law: Law, case: Case) -> None:
    law.check(case)


def test_every_row_is_judged_by_every_law_that_applies() -> None:
    assert {case.row.name for _, case in CASES} == set(BY_NAME)
    assert all(list(law.cases(ROWS, "cpu")) for law in LAWS)


# ------------------------------------------------------------------------- a law that cannot fail would prove nothing

Tensors = dict[str, Tensor]


def noisy(tensors: Tensors) -> Tensors:
    """One element of one tensor wrong in the ninth digit."""
    name = next(iter(tensors))
    wrong = tensors[name].clone()
    wrong.view(-1)[0] += 2e-9 * wrong.norm()
    return tensors | {name: wrong}


MUTATIONS: dict[str, Callable[[Tensors], Tensors]] = {
    "last digits of one element": noisy,
    "a sign": lambda tensors: {name: -value for name, value in tensors.items()},
    "tasks swapped": lambda tensors: {name: value.flip(0) if value.dim() else value for name, value in tensors.items()},
    "transposed": lambda tensors: {n: v.mT if v.dim() > 1 else v for n, v in tensors.items()},
    "everything zero": lambda tensors: {name: torch.zeros_like(value) for name, value in tensors.items()},
    "not a number": lambda tensors: {name: value * float("nan") for name, value in tensors.items()},
    "one missing": lambda tensors: dict(list(tensors.items())[1:]),
    "float32 inside": lambda tensors: {name: value.float().double() for name, value in tensors.items()},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_comparison_catches(mutation: str) -> None:
    _, pulled = judge.truth(BY_NAME["option/tasks-3"])
    judge.assert_close(pulled["loss"], pulled["loss"])
    with pytest.raises(AssertionError):
        judge.assert_close(MUTATIONS[mutation](pulled["loss"]), pulled["loss"])


def test_bit_comparison_catches_the_last_bit_and_a_moved_nan() -> None:
    value = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    judge.assert_same_bits({"x": value}, {"x": value.clone()})
    for wrong in (torch.nextafter(value, torch.tensor(2.0, dtype=torch.float64)), value.flip(0)):
        with pytest.raises(AssertionError):
            judge.assert_same_bits({"x": wrong}, {"x": value})


#: What a broken engine might do to the learner, and a law that must notice.
BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "first order instead of second": ({"first_order": True}, "gradient_of_loss_equals_the_oracle"),
    "first order, deferred": ({"first_order": True}, "gradient_of_logits_equals_the_oracle"),
    "first order, adapted": ({"first_order": True}, "gradient_of_adapted_equals_the_oracle"),
    "a step too many": ({"steps": 4}, "outputs_equal_the_oracle"),
    "another loss": ({"loss": torch.nn.CrossEntropyLoss(label_smoothing=1e-6)}, "outputs_equal_the_oracle"),
    "another reduction": ({"reduction": "sum"}, "outputs_equal_the_oracle"),
    "adapting less": ({"adapt_params": "*.bias"}, "outputs_equal_the_oracle"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_laws_catch(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, name = BROKEN[fault]
    healthy = judge.learner
    case = Case(BY_NAME["option/steps-3"], torch.float64, "cpu", "torch")
    check = next(law.check for law in LAWS if law.name == name)
    check(case)
    monkeypatch.setattr(judge, "learner", lambda case, problem, **given: healthy(case, problem, **(given | options)))
    with pytest.raises((AssertionError, KeyError)):
        check(case)
